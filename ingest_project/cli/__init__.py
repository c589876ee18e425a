"""The `ingest` command: `main`, and the commands that are not specific to one capability."""
