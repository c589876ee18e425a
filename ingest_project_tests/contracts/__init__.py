"""Tests of `ingest_project.contracts`."""
