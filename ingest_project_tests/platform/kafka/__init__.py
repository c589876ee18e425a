"""Tests of `ingest_project.platform.kafka`."""
