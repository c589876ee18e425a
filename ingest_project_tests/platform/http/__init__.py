"""Tests of `ingest_project.platform.http`."""
