"""Stores in every kind of place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ingest_project.stores.warehouse import Warehouse, open_warehouse

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def warehouse(database_url: str) -> Iterator[Warehouse]:
    opened = open_warehouse(database_url)
    yield opened
    opened.close()
