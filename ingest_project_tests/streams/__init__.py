"""Tests of `ingest_project.streams`."""
