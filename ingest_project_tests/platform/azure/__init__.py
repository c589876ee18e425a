"""Tests of `ingest_project.platform.azure`."""
