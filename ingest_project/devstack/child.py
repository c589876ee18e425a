"""One process of the stack: started under a guard, with a log of its own, and ended for certain.

A child lives as long as this process holds the other end of its guard's pipe (see `guard`); `kill -9` closes it too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ingest_project.core.errors import IngestError

PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)


# A part that ran for longer than this has its restarts back.
REMEMBERED_SECONDS = 600.0


class Restarts:
    """Counts the ends of each part."""

    def __init__(self) -> None:
        self._ends: defaultdict[str, list[float]] = defaultdict(list)

    def pause_after_end(self, name: str, now: float) -> float | None:
        """Count one more end of a part.

        Args:
            name: of the part.
            now: on a clock that only goes on, in seconds.

        Returns:
            how long to wait before it is started again; None when it has ended too often.
        """
        recent = [at for at in self._ends[name] if now - at < REMEMBERED_SECONDS]
        self._ends[name] = [*recent, now]
        return PAUSES_SECONDS[len(recent)] if len(recent) < len(PAUSES_SECONDS) else None

    def ends(self, name: str) -> int:
        """Return how many ends of a part are remembered."""
        return len(self._ends[name])


GUARD = Path(__file__).with_name("process_guard.py")
TAIL_LINES = 15
TAIL_BYTES = 8_192
# On top of a command's own grace: orphans get theirs, then are killed.
GUARD_GRACE_SECONDS = 10.0


class ServiceFailedError(IngestError):
    """A part of the stack did not start, or ended by itself.

    Args:
        name: which part.
        what: what happened, without a full stop.
        log_path: its log.
        tail: the last lines of that log.
    """

    def __init__(self, name: str, what: str, log_path: Path, tail: str) -> None:
        self.name = name
        self.what = what
        self.log_path = log_path
        self.tail = tail
        super().__init__(f"{name} {what}. Its log is {log_path}" + (f" and ends with:\n{tail}" if tail else "."))

    def repeated(self, times: int) -> ServiceFailedError:
        """Say the same of a part that was started again in vain."""
        return ServiceFailedError(self.name, f"{self.what}, {times} times in a short while", self.log_path, self.tail)


@dataclass(frozen=True)
class RunAs:
    """The user a command runs as, where this process is root and the command must not be.

    Args:
        reach_all_folders: keep the right to pass through folders that are closed to this user.
    """

    uid: int
    gid: int
    reach_all_folders: bool = False


@dataclass(frozen=True)
class Command:
    """What to run and how to end it.

    Args:
        name: for people and for the log file.
        stop_signal: asks it to end in good order.
        grace_seconds: how long it may take to do so before it is killed.
        abandoned_grace_seconds: the same for when this process was killed, and nobody waits for good order.
        orphan_signal: what the kernel sends it when its guard was killed; the stop signal by default.
        stop_descendants: ask what it started to end as well, at the same time (on Linux).
    """

    name: str
    arguments: Sequence[str]
    environ: Mapping[str, str] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10.0
    abandoned_grace_seconds: float = 3.0
    orphan_signal: signal.Signals | None = None
    stop_descendants: bool = False
    run_as: RunAs | None = None


@dataclass(frozen=True)
class Child:
    """A running command."""

    command: Command
    log_path: Path
    guard: subprocess.Popen[bytes] = field(repr=False)

    @property
    def name(self) -> str:
        """For people."""
        return self.command.name

    @property
    def running(self) -> bool:
        """Whether it, or its guard still ending what it left, is there."""
        return self.guard.poll() is None

    def require_running(self) -> None:
        """Raise ServiceFailedError, with the end of its log, when it has ended."""
        if not self.running:
            raise self.failed(f"ended with exit code {self.guard.returncode}")

    def failed(self, what: str) -> ServiceFailedError:
        """The error that says so, with the end of the log."""
        return ServiceFailedError(self.name, what, self.log_path, log_tail(self.log_path))

    def ask_to_stop(self) -> None:
        """Tell the guard; does not wait."""
        if self.guard.stdin and not self.guard.stdin.closed:
            with suppress(BrokenPipeError):
                self.guard.stdin.write(b"stop")
                self.guard.stdin.flush()
            with suppress(BrokenPipeError):
                self.guard.stdin.close()

    def stop(self) -> None:
        """End it and everything it started; returns when nothing is left. Stopping twice is fine."""
        self.ask_to_stop()
        try:
            self.guard.wait(self.command.grace_seconds + GUARD_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.guard.kill()
            self.guard.wait()


def start(command: Command, log_folder: Path) -> Child:
    """Start a command; its output goes to `<log_folder>/<name>.log`, the log of the time before to `….log.1`."""
    log_path = log_folder / f"{command.name.replace(' ', '-')}.log"
    with suppress(FileNotFoundError):
        log_path.replace(log_path.with_suffix(".log.1"))
    spec = {
        "command": list(command.arguments),
        "stop_signal": int(command.stop_signal),
        "grace_seconds": command.grace_seconds,
        "abandoned_grace_seconds": command.abandoned_grace_seconds,
        "orphan_signal": int(command.orphan_signal or command.stop_signal),
        "stop_descendants": command.stop_descendants,
        "run_as": asdict(command.run_as) if command.run_as else None,
    }
    # It shows what is worked on, and ends up in reports of errors.
    with open(os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:  # noqa: PTH123
        guard = subprocess.Popen(  # noqa: S603 - our own script
            # -I and -S: it needs the standard library only, and must not read other people's site-packages.
            [sys.executable, "-I", "-S", str(GUARD), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(command.environ) if command.environ is not None else None,
            start_new_session=True,
        )
    return Child(command, log_path, guard)


def log_tail(path: Path) -> str:
    """The last lines of a log, or nothing when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line for line in lines[-TAIL_LINES:] if line.strip())
