"""Tests of `ingest_project.readers`."""
