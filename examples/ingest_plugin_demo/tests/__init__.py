"""The contract suites of ingest_project, passed by this package."""
