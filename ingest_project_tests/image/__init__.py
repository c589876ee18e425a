"""The image and the Compose file's processes in it, built and run by Debian's container tools: `make image-test`."""
