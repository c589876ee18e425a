"""Start Python parts of the stack as forks of one process that has imported what they need (on Linux).

Code server, daemon, webserver and monitor import mostly the same modules, for seconds each, and keep them in memory
each on its own. Here one process imports them once; the parts share its memory and start at once. It has no connections
and threads of its own. It is asked through a socket, ends with it, and makes of each request what a cold start makes: a
guard (`process_guard`), as a child of who asked, and the part as the guard's child, each with its own command line.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from ingest_project.devstack import process_guard

MODULES = (
    "ingest_project.platform.dagster.code_server",
    "ingest_project.operations.daemon",
    "ingest_project.platform.dagster.webserver",
    "ingest_project.operations.dashboard",
    "dagster._cli.api",
    "uvicorn",
)
ANSWER_SECONDS = 120.0
MAX_REQUEST_BYTES = 128 * 1024
# Room for the command lines of the parts, which are written over this process's own.
PROGRAM = f"from {__name__} import main; main()"
PADDING = " " * 4_096
# Threads of libraries would be missing in its forks, and be waited for.
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "_RJEM_MALLOC_CONF": "background_thread:false",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
CLONE_PARENT = 0x8000
POLL_SECONDS = 0.02
# The 48th value of /proc/<pid>/stat, counted from behind the name.
ARG_START = 45
SYS_CLONE = {"x86_64": 56, "aarch64": 220}


class _Become(BaseException):
    """Raised in a new process up to `main`, so that the part's own end is that of the program."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = arguments


def main() -> None:
    """Serve requests until the socket closes; in a part, run it."""
    # While it imports it would not see that; its forks are not concerned.
    process_guard.end_with_parent()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        for name in MODULES:
            import_module(name)
        for name in getattr(sys.modules.get(MODULES[0]), "HEAVY_MODULES", ()):
            import_module(name)
        gc.collect()
        # What is never collected is never written to, and stays shared.
        gc.freeze()
        try:
            _serve(requests)
        except _Become as part:
            arguments = part.arguments
        else:
            return
    _, _, module, *rest = arguments
    sys.argv, sys.orig_argv = [module, *rest], [*arguments]
    # Run as the program, not as the module that was imported before.
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _serve(requests: socket.socket) -> None:
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 2)
        if not data:
            return
        pid = _clone_as_sibling()
        if pid == 0:
            requests.close()
            _guard(json.loads(data), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(str(pid).encode())


def _clone_as_sibling() -> int:
    """Fork a child of this process's own parent, which waits for it."""
    library = ctypes.PyDLL(None)
    pid = int(library.syscall(SYS_CLONE[os.uname().machine], CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        library.PyOS_AfterFork_Child()
    return pid


def _guard(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Be the guard of a part."""
    os.setsid()
    stop, log = descriptors
    for descriptor, standard in ((stop, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, standard)
    for descriptor in descriptors:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environ"])
    spec = request["spec"]
    _show([sys.executable, process_guard.__file__, json.dumps(spec)])
    os._exit(process_guard.guard(spec, lambda: _start_part(spec)))


def _start_part(spec: dict[str, Any]) -> Forked:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        process_guard.prepare(spec)
        _show(spec["arguments"])
        raise _Become(spec["arguments"])
    return Forked(pid)


class Forked:
    """A child of this process, with the interface of `subprocess.Popen` as far as it is used.

    Args:
        pid: of the process.
        stdin: writes to its standard input.
    """

    def __init__(self, pid: int, stdin: IO[bytes] | None = None) -> None:
        self.pid = pid
        self.stdin = stdin
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._collect(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code, as soon as it has ended.

        Raises:
            TimeoutExpired: it has not ended within the time.
        """
        if timeout is None:
            return self._collect(0)
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("part", timeout)
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def _collect(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                # Collected by others, who know how it ended.
                self.returncode = 0
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


class WarmStart:
    """The process that imports what parts need, as its requester sees it.

    Args:
        environ: of the process.
        log: of what it says.
    """

    def __init__(self, environ: Mapping[str, str], log: Path) -> None:
        self._requests, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.settimeout(ANSWER_SECONDS)
        arguments = [sys.executable, "-c", PROGRAM, str(other.fileno()), PADDING]
        with other, log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                arguments,
                env={**environ, **ONE_THREAD},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def guard(self, spec: Mapping[str, Any], environ: Mapping[str, str], log: int) -> Forked | None:
        """Start a part under a guard; waits until the modules are imported. None where it must be started cold.

        Args:
            spec: of the part, see `process_guard`.
            environ: of the part.
            log: descriptor of the file that it writes to.
        """
        reading, writing = os.pipe()
        request = json.dumps({"spec": spec, "environ": dict(environ)}).encode()
        try:
            socket.send_fds(self._requests, [request], [reading, log])
            answer = self._requests.recv(32)
        except OSError:
            answer = b""
        finally:
            os.close(reading)
        if not answer:
            os.close(writing)
            return None
        return Forked(int(answer), os.fdopen(writing, "wb"))

    def close(self) -> None:
        """End it; parts that it has started go on."""
        self._requests.close()
        self._process.kill()
        self._process.wait()


def _show(arguments: Sequence[str]) -> None:
    """Have the system show this command line of the process."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as the guard does
        fields = file.read().rpartition(")")[2].split()
    begin, end = int(fields[ARG_START]), int(fields[ARG_START + 1])
    size = end - begin
    shown = b" ".join(map(os.fsencode, arguments))[: size - 2]
    # Where the last byte is no zero, the kernel shows what is in front of the first zero.
    ctypes.memmove(begin, shown.ljust(size - 1, b"\0") + b"\1", size)
