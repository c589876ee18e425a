"""Tests of `ingest_project.platform.object_store`."""
