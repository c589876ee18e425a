"""Tests of `ingest_project.core`."""
