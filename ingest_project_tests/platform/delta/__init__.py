"""Tests of `ingest_project.platform.delta`."""
