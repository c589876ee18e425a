"""Start the Python parts of the stack as forks of one process that has imported their common modules.

    python -m ingest_project.devstack.launcher dagster ingest_project.operations.monitor …

imports these modules once, and on each request of the stack forks a guard (`process_guard`), which forks the part: the
imports need CPU time once, and share their memory. A part behaves as in a new interpreter: it has its own session,
environment, command line and log, and runs as `__main__`. Guard and part depend on the stack, not on the launcher: if
the launcher is killed, or cannot fork safely, parts are started as new interpreters.

A fork has only the thread that forked. Imports start threads of memory allocators (jemalloc, OpenBLAS), which support
forks, and Polars' cleaner of spilled files, for which nothing waits. With any other thread, this process exits. It only
imports: it opens no connection, computes nothing and reads no settings.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from ingest_project.core.local_files import owner_only
from ingest_project.core.settings import build_model
from ingest_project.devstack import ForkedGuard, process_guard

ON_LINUX = sys.platform == "linux"
# A launcher that is still importing answers only afterwards.
ANSWER_SECONDS = 60.0
LARGEST_REQUEST_BYTES = 1 << 20
MADV_DONTNEED = 4
# Read-only mappings of files without a page that the loader has written to, e.g. with addresses of functions.
UNCHANGED_MAPPING = re.compile(r"^(\w+)-(\w+) r-.p .*/.*\n(?:\w+: .*\n)*?Anonymous: +0 kB$", re.MULTILINE)
# Size of a pool of CPython's allocator.
POOL_BYTES = 16_384
# Four times the usual number; it bounds the search in an interpreter with another allocator.
MOST_GAPS = 16_000
FILLING: list[bytes] = []
# By the first 15 characters of their names; OpenBLAS names its threads after the program.
HARMLESS_THREADS = ("jemalloc_bg_thd", "polars-ooc-clea")


class Launcher:
    """The stack's interface to the launcher process, which starts importing immediately.

    Args:
        modules: modules to import.
        environ: environment of the process.
        log_path: path of its log.
    """

    def __init__(self, modules: Sequence[str], environ: Mapping[str, str], log_path: Path) -> None:
        self._requests: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if ON_LINUX:
            self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._requests.settimeout(ANSWER_SECONDS)
            with theirs, open(log_path, "wb", opener=owner_only) as log:
                self._process = subprocess.Popen(  # noqa: S603 - ourselves
                    [sys.executable, "-m", __name__, *modules],
                    stdin=theirs.fileno(),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(environ),
                    start_new_session=True,
                )

    @property
    def pids(self) -> tuple[int, ...]:
        """Return its process id; empty once it has ended."""
        return (self._process.pid,) if self._process and self._process.poll() is None else ()

    def fork(self, spec: Mapping[str, Any], environ: Mapping[str, str], log: IO[bytes]) -> ForkedGuard | None:
        """Start a guard and its part; return None if the launcher is not available.

        Args:
            spec: specification of the guard; its arguments are `[python, "-m", module, …]`.
            environ: environment of both.
            log: file for their standard output and error.
        """
        if self._requests is None:
            return None
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                request = json.dumps({"spec": spec, "environ": dict(environ)}).encode()
                socket.send_fds(self._requests, [request], [theirs.fileno(), log.fileno()])
            return ForkedGuard(int(self._requests.recv(32)), ours)
        except (OSError, ValueError):
            # The launcher has ended or hangs: a late answer would be mistaken for that of another request.
            ours.close()
            self.close()
            return None

    def close(self) -> None:
        """End the launcher; the parts that it started continue to run."""
        if self._requests is not None and self._process is not None:
            self._requests.close()
            self._process.kill()
            self._process.wait()
            self._requests = None


def main() -> None:
    """Serve requests until the stack closes the connection; in a forked part, run the part."""
    if (request := serve(sys.argv[1:])) is None:
        return
    arguments = request["spec"]["arguments"]
    sys.orig_argv, sys.argv = arguments, arguments[2:]
    runpy.run_module(arguments[2], run_name="__main__", alter_sys=True)


def serve(modules: Sequence[str]) -> dict[str, Any] | None:
    """Import the modules, and fork at each request; return the request in the forked part, and None at the end."""
    # Standard input is the connection; every fork gets its own standard input.
    connection = socket.socket(fileno=os.dup(0))
    gc.disable()
    # Where hypothesis is installed, pandera would import it, and with it pytest; no part makes test data.
    vars(sys)["modules"]["hypothesis"] = None
    for module in modules:
        import_module(module)
    del sys.modules["hypothesis"]
    # A part that built it would inspect signatures, which counts a reference to every module: 10 MB of shared pages.
    build_model()
    _require_safe_forks()
    # The collector does not write to frozen objects, so their memory stays shared.
    gc.collect()
    _fill_gaps()
    gc.freeze()
    _unmap_files()
    # Guards are not waited for: they report their exit codes themselves.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Python 3.12 warns about a fork with any other thread.
    warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
    while True:
        content, descriptors, _, _ = socket.recv_fds(connection, LARGEST_REQUEST_BYTES, 2)
        if not content:
            return None
        if (guard := os.fork()) == 0:
            connection.close()
            request: dict[str, Any] = json.loads(content)
            _guard(request, descriptors)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(guard).encode())


def _require_safe_forks() -> None:
    names = {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    unsafe = names - {*HARMLESS_THREADS, Path("/proc/self/comm").read_text("utf-8").strip()}
    if unsafe or threading.active_count() > 1:
        sys.exit(f"Parts are started as new interpreters: the imports started threads ({', '.join(unsafe)}).")


def _fill_gaps() -> None:
    """Allocate the gaps that imports left in the heaps of Python and C: a part that writes to one copies a shared page.

    Both allocators fill gaps first: Python's (objects of up to 512 bytes) before it starts a pool, C's before its heap
    grows.
    """
    for size in range(48, 513, 16):
        in_pool = pool = 0
        while in_pool * size < POOL_BYTES * 3 // 4 and len(FILLING) < MOST_GAPS:
            FILLING.append(bytes(size - sys.getsizeof(b"")))
            pool, last = id(FILLING[-1]) // POOL_BYTES, pool
            in_pool = in_pool + 1 if pool == last else 1
    library = ctypes.CDLL(None)
    library.malloc.restype = library.sbrk.restype = ctypes.c_size_t
    # Only the GNU library has it.
    getattr(library, "malloc_trim", int)(0)
    end = library.sbrk(0)
    for power in range(16, 3, -1):
        while 0 < library.malloc(ctypes.c_size_t(1 << power)) < end:
            pass


def _unmap_files() -> None:
    """Release the pages of programs and libraries that this process has used; the kernel reloads those still needed."""
    library = ctypes.CDLL(None)
    for start, end in UNCHANGED_MAPPING.findall(Path("/proc/self/smaps").read_text("utf-8")):
        library.madvise(ctypes.c_void_p(int(start, 16)), ctypes.c_size_t(int(end, 16) - int(start, 16)), MADV_DONTNEED)


def _guard(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Turn this fork into a guard, which never returns, and return in its part."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor, number in zip((*descriptors, descriptors[-1]), (0, 1, 2), strict=True):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environ"])
    spec = request["spec"]
    show_as([sys.executable, "-I", "-S", process_guard.__file__, json.dumps(spec)])
    if command := process_guard.fork_command(spec):
        os.write(0, str(process_guard.watch(command, spec)).encode())
        os._exit(0)
    show_as(spec["arguments"])
    gc.enable()


def show_as(arguments: Sequence[str]) -> None:
    """Make `ps` show a command line for this process, cut to the length of its original one."""
    # Addresses of the first and last byte of the command line: fields 48 and 49 in proc(5).
    start, end = map(int, Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[45:47])
    text = b"\0".join(map(os.fsencode, arguments))[: max(0, end - start - 1)]
    if start and text:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))


if __name__ == "__main__":
    main()
