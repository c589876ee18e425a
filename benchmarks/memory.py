"""Peak memory of the largest process in some process trees, and the processor time of all of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_SECONDS = 0.25
PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
RUN_WORKERS = "run workers"


class PeakMemory:
    """Watches process trees while it is open.

    The kernel itself keeps each process's peak, so a peak between two looks is not missed; only what a process needs in
    the last moments before its end can be.

    Args:
        roots: process ids at the top of the trees; the roots themselves count.
        others: of which only the processor time counts: the database, the broker.
    """

    def __init__(self, roots: Iterable[int], others: Iterable[int] = ()) -> None:
        self._roots = frozenset(roots)
        self._others = frozenset(others)
        # By process: its name, and the ticks of its first and its last look.
        self._ticks: dict[int, tuple[str, int, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self._peak_kib = 0
        self._peak_command = ""

    @property
    def megabytes(self) -> float:
        """Peak resident memory (millions of bytes) of the largest process."""
        return round(self._peak_kib * 1024 / 1e6, 1)

    @property
    def command(self) -> str:
        """Command line of that process, shortened."""
        return self._peak_command

    @property
    def cpu_seconds(self) -> dict[str, float]:
        """Processor time meanwhile, by program; what a process used in its last moments can be missing."""
        seconds: dict[str, float] = {}
        for name, first, last in self._ticks.values():
            seconds[name] = seconds.get(name, 0.0) + (last - first) / TICKS_PER_SECOND
        ordered = sorted(seconds.items(), key=lambda one: -one[1])
        return {name: round(used, 2) for name, used in ordered if used >= 0.01}

    def __enter__(self) -> Self:
        for process in trees(self._roots | self._others):
            self._count(process, is_new=False)
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
                self._measure(process)
            for process in trees(self._roots | self._others):
                self._count(process)
            if self._stop.wait(SAMPLE_SECONDS):
                return

    def _measure(self, process: int) -> None:
        # It may end at any time.
        with suppress(OSError, ValueError, IndexError):
            status = (PROC / str(process) / "status").read_text("utf-8", "replace")
            peak_kib = int(status.split("VmHWM:")[1].split()[0])
            if peak_kib > self._peak_kib:
                command = (PROC / str(process) / "cmdline").read_bytes().replace(b"\0", b" ")
                self._peak_kib, self._peak_command = peak_kib, command.decode("utf-8", "replace")[:100]

    def _count(self, process: int, *, is_new: bool = True) -> None:
        with suppress(OSError, ValueError, IndexError):
            user, system = (
                (PROC / str(process) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[11:13]
            )
            ticks = int(user) + int(system)
            if process not in self._ticks:
                self._ticks[process] = (_name_of(process), 0 if is_new else ticks, ticks)
            name, first, _ = self._ticks[process]
            self._ticks[process] = (name, first, ticks)


def _name_of(process: int) -> str:
    """Return a short name of a process's program: its module, or its file."""
    words = (PROC / str(process) / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
    if any("multiprocessing" in word for word in words):
        return RUN_WORKERS
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    return Path(words[0].split(" ")[0].rstrip(":")).name


def trees(roots: frozenset[int]) -> set[int]:
    """Return the ids of these processes and of all their descendants."""
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
