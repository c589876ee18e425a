"""Tests of `ingest_project.formats`."""
