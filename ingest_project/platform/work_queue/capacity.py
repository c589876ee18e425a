"""Limit how many batches a sensor may start: by batches in flight, while the warehouse is slow or a disk nearly full.

What is not started waits on its topic or in the queue, and the next tick decides again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from ingest_project.core.settings import BackpressureSettings
from ingest_project.platform.azure.accounts import is_address
from ingest_project.platform.database.engine import writing
from ingest_project.platform.object_store.store import location_of

MEBIBYTE = 1024**2
# While the warehouse is slow, one batch continues: it shows when the warehouse has recovered.
BATCHES_WHILE_SLOW = 1
# A transaction of nothing but a commit, which PostgreSQL has to write and flush like any other.
COMMITTED = "SELECT pg_logical_emit_message(true, 'ingest_project', '')"


class Disk(NamedTuple):
    """The disk that a folder is on.

    Args:
        free_bytes: available to this process.
        needed_bytes: below this, no new work begins.
    """

    folder: Path
    free_bytes: int
    needed_bytes: int

    @property
    def is_nearly_full(self) -> bool:
        """Test whether less is free than is needed."""
        return self.free_bytes < self.needed_bytes

    def __str__(self) -> str:
        """Return one line, with the remedy where the disk is nearly full."""
        free = f"{self.free_bytes / MEBIBYTE:,.0f} MiB free at {self.folder}"
        if not self.is_nearly_full:
            return free
        needed = f"{self.needed_bytes / MEBIBYTE:,.0f} MiB (INGEST_MIN_FREE_DISK_BYTES)"
        return f"{free}, less than {needed}. No new work begins until there is space."


class Capacity(NamedTuple):
    """Number of further batches that may be requested, and the reason where that is limited."""

    batches: int
    reason: str | None = None


def fullest_disk(urls: Sequence[str], settings: BackpressureSettings) -> Disk:
    """Return the disk with the least free space among those that local stores are on.

    It is this machine's: a remote store, and the disk of runs on other machines, is not known here.

    Args:
        urls: of the stores, at least one of them a local folder.
        settings: the free space that is needed.
    """
    disks = [Disk(folder, _free_bytes(folder), settings.min_free_disk_bytes) for folder in _local_folders(urls)]
    return min(disks, key=lambda disk: disk.free_bytes)


def available_slots(in_flight: int, limit: int, slow_seconds: float | None = None) -> Capacity:
    """Return the number of further batches that may be requested.

    Args:
        in_flight: batches of the same sensor that are requested or running.
        limit: limit of them.
        slow_seconds: how long the warehouse took for a small transaction, where that is too long.
    """
    if slow_seconds is not None:
        limit = min(limit, BATCHES_WHILE_SLOW)
        reason = f"The warehouse takes {slow_seconds:.1f} s for an empty transaction: {limit} batch at a time."
    else:
        reason = f"{in_flight} batches are in flight, the most allowed; the next starts when one has ended."
    free = max(0, limit - in_flight)
    return Capacity(free, None if free and slow_seconds is None else reason)


def commit_seconds(engine: sa.Engine, slow_seconds: float) -> float:
    """Measure an empty transaction in seconds; a slow one is repeated, and the better of the two counts.

    Args:
        engine: of the warehouse.
        slow_seconds: counts as slow. A connection that had to be opened first, or a single hiccup, does not.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: it does not answer, or only with an error.
    """
    once = _commit(engine)
    return min(once, _commit(engine)) if once > slow_seconds else once


def _commit(engine: sa.Engine) -> float:
    began = time.monotonic()
    with writing(engine) as connection:
        connection.execute(sa.text(COMMITTED if connection.dialect.name == "postgresql" else "SELECT 1"))
    return time.monotonic() - began


def _local_folders(urls: Sequence[str]) -> Iterator[Path]:
    for url in urls:
        is_local = "://" not in url or url.startswith("file://")
        if is_local and not is_address(url) and isinstance(location := location_of(url), Path):
            yield location.absolute()


def _free_bytes(folder: Path) -> int:
    """Return the free space of the disk that a folder is on, or will be once it is created."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
