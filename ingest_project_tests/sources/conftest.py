"""Fixtures for tests of several kinds of source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_project_tests.sources.served import OPENED


@pytest.fixture(autouse=True)
def closed_connections() -> Iterator[None]:
    """No test finds the connections of another."""
    yield
    while OPENED:
        OPENED.pop().pool.close_idle()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a server serves; empty."""
    folder = tmp_path / "served"
    folder.mkdir()
    return folder
