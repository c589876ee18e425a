"""Events to stored files: extract addresses, download, store, and record each attempt in Delta."""
