"""Tests of `ingest_project.devstack`."""
