"""The fixtures of tests of declared datasets."""

from __future__ import annotations

from ingest_project_tests.file_ingest.datasets.system import weather

__all__ = ["weather"]
