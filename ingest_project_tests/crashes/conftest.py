"""The ordinary run kills at some of the points, `make test-all` at all."""

from __future__ import annotations

from pathlib import Path

import pytest

# Every so many of them, the first included.
TAKEN = 14


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
