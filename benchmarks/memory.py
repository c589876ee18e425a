"""The most memory that any one process used, of those that some processes started."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_SECONDS = 0.25
PROC = Path("/proc")


class PeakMemory:
    """Watches process trees while it is open.

    The kernel itself keeps each process's peak, so a peak between two looks is not missed; only what a process needs in
    the last moments before its end can be.

    Args:
        roots: process ids at the top of the trees; the roots themselves count.
    """

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = frozenset(roots)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self._peak_kib = 0
        self._peak_command = ""

    @property
    def megabytes(self) -> float:
        """Resident memory (millions of bytes) of the process that had most at any time."""
        return round(self._peak_kib * 1024 / 1e6, 1)

    @property
    def command(self) -> str:
        """Command line of that process, shortened."""
        return self._peak_command

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            for process in trees(self._roots):
                self._look_at(process)
            if self._stop.wait(SAMPLE_SECONDS):
                return

    def _look_at(self, process: int) -> None:
        # It may end at any time.
        with suppress(OSError, ValueError, IndexError):
            status = (PROC / str(process) / "status").read_text("utf-8", "replace")
            peak_kib = int(status.split("VmHWM:")[1].split()[0])
            if peak_kib > self._peak_kib:
                command = (PROC / str(process) / "cmdline").read_bytes().replace(b"\0", b" ")
                self._peak_kib, self._peak_command = peak_kib, command.decode("utf-8", "replace")[:100]


def trees(roots: frozenset[int]) -> set[int]:
    """Process ids of these processes and of all that they started, directly or not."""
    parents = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                # The name of a program, in brackets, may hold anything; what follows the last bracket is numbers.
                stat = (entry / "stat").read_text("utf-8", "replace")
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = set(roots)
    while more := {child for child, parent in parents.items() if parent in found and child not in found}:
        found |= more
    return found
