"""Start the stack's processes, each with a guard and its own log and ended with this process, and choose their ports.

A child runs only while this process keeps the pipe to its guard open (`process_guard`); `kill -9` closes the pipe.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

from ingest_project.core.errors import IngestError
from ingest_project.core.local_files import owner_only

HOST = "127.0.0.1"
GUARD = Path(__file__).with_name("process_guard.py")
TAIL_LINES = 15
TAIL_BYTES = 8_192
# Added to a command's own grace period, for terminating and then killing its orphans.
GUARD_GRACE_SECONDS = 10.0
POLL_SECONDS = 0.02
# Below the ephemeral ports: an outgoing connection could occupy one of those before its server listens.
SERVER_PORTS = range(20_000, 32_000)
# Pauses before each restart of a part; if it ends again after the last one, the stack ends.
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
# A part that ran for longer than this gets its full number of restarts again.
REMEMBERED_SECONDS = 600.0

Found = TypeVar("Found")


class ServiceFailedError(IngestError):
    """A part of the stack did not start, or ended unexpectedly.

    Args:
        name: name of the part.
        what: the failure, without a full stop.
        log_path: path of its log.
        tail: last lines of that log.
    """

    def __init__(self, name: str, what: str, log_path: Path, tail: str) -> None:
        self.name = name
        self.what = what
        self.log_path = log_path
        self.tail = tail
        super().__init__(f"{name} {what}. Its log is {log_path}" + (f" and ends with:\n{tail}" if tail else "."))

    def repeated(self) -> ServiceFailedError:
        """Return the error of a part whose restarts failed as well."""
        what = f"{self.what}, {1 + len(PAUSES_SECONDS)} times in a short while"
        return ServiceFailedError(self.name, what, self.log_path, self.tail)


class Restarts:
    """Counts how often each part ended."""

    def __init__(self) -> None:
        self._ends: defaultdict[str, list[float]] = defaultdict(list)

    def pause_after_end(self, name: str, now: float) -> float | None:
        """Count an end of a part and return the pause before its restart in seconds; None if it has ended too often.

        Args:
            name: name of the part.
            now: time on a monotonic clock, in seconds.
        """
        recent = [at for at in self._ends[name] if now - at < REMEMBERED_SECONDS]
        self._ends[name] = [*recent, now]
        return PAUSES_SECONDS[len(recent)] if len(recent) < len(PAUSES_SECONDS) else None


@dataclass(frozen=True)
class RunAs:
    """The user as which a command runs if this process is root but the command must not be.

    Args:
        reach_all_folders: keep the right to traverse folders that are closed to this user.
    """

    uid: int
    gid: int
    reach_all_folders: bool = False


@dataclass(frozen=True)
class Command:
    """A command and how to end it.

    Args:
        name: name for people and for the log file.
        stop_signal: signal that requests an orderly end.
        grace_seconds: time until the command is killed.
        abandoned_grace_seconds: the same if this process was killed, so that nobody waits for an orderly end.
        orphan_signal: signal that the kernel sends if the guard is killed; the stop signal by default.
        stop_descendants: also send the stop signal to the command's descendants, at the same time (on Linux).
    """

    name: str
    arguments: Sequence[str]
    environ: Mapping[str, str] | None = field(default=None, repr=False)
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10.0
    abandoned_grace_seconds: float = 3.0
    orphan_signal: signal.Signals | None = None
    stop_descendants: bool = False
    run_as: RunAs | None = None


class ForkedGuard:
    """A guard that is a fork of the launcher, with the required part of the interface of `subprocess.Popen`.

    Args:
        pid: id of its process.
        connection: other end of its standard input, to which the guard writes its exit code.
    """

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin = connection.makefile("wb", buffering=0)
        self._connection = connection

    def poll(self) -> int | None:
        """Return the guard's exit code; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the guard's end and return its exit code.

        Raises:
            subprocess.TimeoutExpired: the guard still runs after that time.
        """
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("guard", timeout or 0)
            try:
                code = self._connection.recv(16)
            except ConnectionError:
                code = b""
            self.returncode = int(code) if code else -signal.SIGKILL
            self.stdin.close()
            self._connection.close()
        return self.returncode

    def kill(self) -> None:
        """Kill the guard; the kernel then ends its part."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Child:
    """A running command."""

    command: Command
    log_path: Path
    guard: subprocess.Popen[bytes] | ForkedGuard = field(repr=False)

    @property
    def name(self) -> str:
        """Return the name for people."""
        return self.command.name

    @property
    def running(self) -> bool:
        """Return True while the command runs, or its guard still ends processes that it left behind."""
        return self.guard.poll() is None

    def wait_until(
        self, ready: Callable[[], Found | None], seconds: float, complaint: str, poll_seconds: float = POLL_SECONDS
    ) -> Found:
        """Poll a condition until it returns a true value, and return that value.

        Raises:
            ServiceFailedError: the command ended, or the time is over; `complaint` describes what it failed to do.
        """
        deadline = time.monotonic() + seconds
        while not (found := ready()):
            self.require_running()
            if time.monotonic() > deadline:
                raise self.failed(f"{complaint} within {seconds:.0f} s")
            time.sleep(poll_seconds)
        return found

    def require_running(self) -> None:
        """Raise ServiceFailedError, with the end of the log, if the command has ended."""
        if not self.running:
            raise self.failed(f"ended with exit code {self.guard.returncode}")

    def require_success(self, complaint: str) -> None:
        """Wait for the command's end; raise ServiceFailedError if it failed."""
        try:
            if self.guard.wait() != 0:
                raise self.failed(complaint)
        finally:
            self.stop()

    def failed(self, what: str) -> ServiceFailedError:
        """Return an error with the end of the log."""
        return ServiceFailedError(self.name, what, self.log_path, log_tail(self.log_path))

    def request_stop(self) -> None:
        """Request the command's end without waiting."""
        if self.guard.stdin and not self.guard.stdin.closed:
            with suppress(BrokenPipeError):
                self.guard.stdin.write(b"stop")
                self.guard.stdin.flush()
            with suppress(BrokenPipeError):
                self.guard.stdin.close()

    def stop(self) -> None:
        """End the command and all its descendants, and wait until none is left. Idempotent."""
        self.request_stop()
        try:
            self.guard.wait(self.command.grace_seconds + GUARD_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.guard.kill()
            self.guard.wait()


Fork = Callable[[Mapping[str, Any], Mapping[str, str], IO[bytes]], ForkedGuard | None]


def start(command: Command, log_folder: Path, fork: Fork | None = None) -> Child:
    """Start a command with its output in `<log_folder>/<name>.log`; move the log of its last start to `….log.1`.

    Args:
        command: the command; one that is forked must run a module with this process's Python.
        log_folder: folder of the log.
        fork: `Launcher.fork`; if it returns None, the command is started as a new program.
    """
    log_path = log_folder / f"{command.name.replace(' ', '-')}.log"
    with suppress(FileNotFoundError):
        log_path.replace(log_path.with_suffix(".log.1"))
    spec = asdict(replace(command, environ=None))
    # The log contains processed data and may be quoted in error messages: keep it private.
    with open(log_path, "wb", opener=owner_only) as log:
        environ = os.environ if command.environ is None else command.environ
        guard = (fork and fork(spec, environ, log)) or subprocess.Popen(  # noqa: S603 - our own script
            # -I and -S: the guard needs only the standard library, and must not read site-packages of others.
            [sys.executable, "-I", "-S", str(GUARD), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            start_new_session=True,
        )
    return Child(command, log_path, guard)


def python_module(name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> Command:
    """Return the command that runs a module with this process's Python.

    Args:
        name: name for people and for the log file.
        arguments: the module and its arguments.
        environ: environment of the process.
    """
    return Command(name, [sys.executable, "-m", *arguments], environ)


def log_tail(path: Path) -> str:
    """Return the last lines of a log; empty if there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line for line in lines[-TAIL_LINES:] if line.strip())


def command_of(pid: int) -> str:
    """Return the command line of a process, its parts separated by spaces; empty if the process does not exist."""
    with suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def wait_until_gone(pid: int, seconds: float) -> bool:
    """Return True if the process ends within this time; a zombie counts as ended."""
    deadline = time.monotonic() + seconds
    while command_of(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def port_is_free(port: int) -> bool:
    """Return True if this process could listen on the port of the loopback interface now."""
    # Like servers: a port with old connections in TIME_WAIT counts as free.
    with suppress(OSError), socket.create_server((HOST, port)):
        return True
    return False


def free_port() -> int:
    """Return a free port of the loopback interface."""
    while not port_is_free(port := random.choice(SERVER_PORTS)):  # noqa: S311 - no secret
        pass
    return port


def listener_on(port: int) -> str:
    """Return the process that listens on a port, e.g. `process 4711, nginx`; empty if it cannot be found."""
    with suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
                return f"process {one.pid}, {psutil.Process(one.pid).name()}"
    return ""
