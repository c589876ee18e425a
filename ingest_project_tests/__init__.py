"""The promises of ingest_project, kept by tests against real servers."""
