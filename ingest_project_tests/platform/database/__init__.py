"""Tests of `ingest_project.platform.database`."""
