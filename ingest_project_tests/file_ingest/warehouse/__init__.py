"""Tests of `ingest_project.file_ingest.warehouse`."""
