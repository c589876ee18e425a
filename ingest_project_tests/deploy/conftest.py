"""Settings are read once in a process; tests of this folder set their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ingest_project.settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    """Forget what an earlier test had set, and what this one sets."""
    current_settings.cache_clear()
    yield
    current_settings.cache_clear()
