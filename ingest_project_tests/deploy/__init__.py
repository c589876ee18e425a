"""What the deployment files promise, and the processes they start."""
