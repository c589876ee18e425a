"""When less is asked for: as many batches as may be are in flight, the warehouse is slow, a disk is nearly full.

What is not asked for waits where it is, on its topic or in the ledger, and the next tick looks again: nothing has to be
switched on again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from ingest_project.core.settings import BackpressureSettings
from ingest_project.platform.azure.address import is_address
from ingest_project.platform.database.engine import writing
from ingest_project.platform.object_store.locations import location_of

MEBIBYTE = 1024**2
# While the warehouse is slow: the one that is under way shows by itself when it is quick again.
BATCHES_WHILE_SLOW = 1
# A transaction that is nothing but its commit, which PostgreSQL has to write and flush as any other.
COMMITTED = "SELECT pg_logical_emit_message(true, 'ingest_project', '')"


class Disk(NamedTuple):
    """The disk that a folder is on.

    Args:
        free_bytes: what this process may still write.
        needed_bytes: below that nothing new is begun.
    """

    folder: Path
    free_bytes: int
    needed_bytes: int

    @property
    def is_nearly_full(self) -> bool:
        """Whether less is free than is needed."""
        return self.free_bytes < self.needed_bytes

    def __str__(self) -> str:
        """One line on it, which says what to do where it is nearly full."""
        free = f"{self.free_bytes / MEBIBYTE:,.0f} MiB free at {self.folder}"
        if not self.is_nearly_full:
            return free
        needed = f"{self.needed_bytes / MEBIBYTE:,.0f} MiB (INGEST_MIN_FREE_DISK_BYTES)"
        return f"{free}, less than {needed}. Nothing new is begun until there is room."


class Capacity(NamedTuple):
    """How many more batches may be asked for, and why it is not more; None where nothing is in the way."""

    batches: int
    reason: str | None = None


def fullest_disk(urls: Sequence[str], settings: BackpressureSettings) -> Disk:
    """Return the disk with the least room among those that local stores are on.

    It is this machine's: a store that is elsewhere, and the disk of runs on other machines, is not known here.

    Args:
        urls: of the stores, at least one of them a local folder.
        settings: say how much room is needed.
    """
    disks = [Disk(folder, _free_bytes(folder), settings.min_free_disk_bytes) for folder in _local_folders(urls)]
    return min(disks, key=lambda disk: disk.free_bytes)


def available_slots(in_flight: int, most: int, slow_seconds: float | None = None) -> Capacity:
    """Decide how many more batches may be asked for.

    Args:
        in_flight: batches of the same sensor that are asked for or running.
        most: of them at a time.
        slow_seconds: how long the warehouse took for a small transaction, where that is too long.
    """
    if slow_seconds is not None:
        most = min(most, BATCHES_WHILE_SLOW)
        reason = f"The warehouse takes {slow_seconds:.1f} s for an empty transaction: {most} batch at a time."
    else:
        reason = f"{in_flight} batches are in flight, as many as may be; more are asked for when one has ended."
    free = max(0, most - in_flight)
    return Capacity(free, None if free and slow_seconds is None else reason)


def commit_seconds(engine: sa.Engine, slow_seconds: float) -> float:
    """How long the warehouse takes for an empty transaction; once more where that was slow, and the better of the two.

    Args:
        engine: of the warehouse.
        slow_seconds: what counts as slow: a connection that had to be opened first, or a single hiccup, does not.

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
        if not is_address(url) and isinstance(place := location_of(url), Path):
            yield place.absolute()


def _free_bytes(folder: Path) -> int:
    """Of the disk that a folder is on, or will be once it is made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
