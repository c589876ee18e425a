"""Stores in every kind of place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ingest_project.file_ingest.resources import open_warehouse
from ingest_project.file_ingest.warehouse.sql import SqlWarehouse


@pytest.fixture
def warehouse(database_url: str) -> Iterator[SqlWarehouse]:
    opened = open_warehouse(database_url)
    yield opened
    opened.close()
