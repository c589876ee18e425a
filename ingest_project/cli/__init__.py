"""The `ingest` command: one module a command, all registered by `main`."""
