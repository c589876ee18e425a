"""Tests of `ingest_project.operations.alerts`."""
