"""The process that is killed. The ordinary run takes a part of the points where that happens, `make test-all` all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_project_tests.crashes.deadly_process import DeadlyProcess

# Every so many of them, the first included.
TAKEN = 12


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the points that are left for the long run."""
    here = Path(__file__).parent
    points = [item for item in items if item.path.parent == here and hasattr(item, "callspec")]
    by_file: dict[Path, int] = {}
    for item in points:
        index = by_file.get(item.path, 0)
        by_file[item.path] = index + 1
        if index % TAKEN:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="module")
def deadly_process() -> Iterator[DeadlyProcess]:
    """A process that a test may kill forks of; imported once for all tests of a file."""
    process = DeadlyProcess()
    yield process
    process.close()
