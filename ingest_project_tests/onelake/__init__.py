"""Tests of `ingest_project.onelake`."""
