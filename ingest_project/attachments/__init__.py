"""Events to stored files: find the addresses, download, store, and say in Delta how each attempt ended."""
