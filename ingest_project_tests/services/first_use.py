"""Downloads and system packages that the first of several test processes installs for all of them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED_IN_MEMORY_BYTES = 3 * 1024**3


def cache_folder() -> Path:
    """Return the folder that keeps what was brought, made where it is missing."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ingest_project"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folder_in_memory() -> str | None:
    """Return the folder for servers that write thousands of files, None where there is none or it has little room.

    On a disk, a copy of a database takes ten times the processor time, and a new topic of Kafka nearly twice.
    """
    folder = "/dev/shm"  # noqa: S108 - each server makes a folder of its own there
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return None
    return folder if free > NEEDED_IN_MEMORY_BYTES and os.access(folder, os.W_OK) else None


@contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Hold a lock of this user's processes; a process that waited for it checks again if anything is left to do."""
    with locked(cache_folder() / f"{what}.lock"):
        yield


@contextmanager
def locked(file: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock, which ends with this process at the latest."""
    with file.open("w") as lock:
        fcntl.flock(lock, how)
        yield
