"""Projects that build on ingest_project."""
