"""The `ingest` command: `main`, and the commands that concern more than one capability."""
