"""The promises of the deployment files, and the processes that they start."""
