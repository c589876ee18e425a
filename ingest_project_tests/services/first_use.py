"""What the first of several test processes brings for all: downloads, and packages of this machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder that keeps what was brought, made where it is missing."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ingest_project"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
