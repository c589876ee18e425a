"""Settings are read once in a process; tests of this folder set their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ingest_project.core.settings import current_settings


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    """Forget what an earlier test had set, and what this one sets."""
    current_settings.cache_clear()
    yield
    current_settings.cache_clear()
