"""Tests of `ingest_project.platform.work_queue`."""
