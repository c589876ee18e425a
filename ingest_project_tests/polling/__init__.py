"""Tests of `ingest_project.polling`."""
