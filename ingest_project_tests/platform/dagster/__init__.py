"""Tests of `ingest_project.platform.dagster`."""
