"""Tests of `ingest_project.streams.user_activity`."""
