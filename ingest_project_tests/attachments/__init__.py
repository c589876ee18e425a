"""Tests of `ingest_project.attachments`."""
