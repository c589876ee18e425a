"""Test processes as forks of one that has imported what all of them need: each by itself takes a processor ten seconds.

pytest-xdist starts a process as `PYTHON -u -c PROGRAM`, and talks to it over its standard streams. Here this module is
that Python: it passes its streams to the process that has imported everything, whose fork runs the program. It ends
with the fork, and the fork with it.
"""

from __future__ import annotations

import gc
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

MAX_PROGRAM_BYTES = 65_536
THREADS_OF_POLARS = "polars-0"


def start_parent(modules: Collection[str], tests: Collection[str]) -> str:
    """Start the process that imports modules, and then forks; it ends with this one.

    Args:
        modules: imported at once.
        tests: modules of tests, imported when the first fork is asked for: they are compiled by then. One that cannot
            be imported is reported by the process that collects it.

    Returns:
        what pytest-xdist is to start as Python.
    """
    address = os.path.join(tempfile.mkdtemp(), "workers")  # noqa: PTH118 - of a socket
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    still_there, ours = os.pipe()
    if not os.fork():
        try:
            os.close(ours)
            _fork_on_request(listener, still_there, modules, tests)
        except BaseException:  # noqa: BLE001 - a fork must never return into the process that it is one of
            traceback.print_exc(file=sys.__stderr__)
        finally:
            shutil.rmtree(os.path.dirname(address))  # noqa: PTH120 - as above
            os._exit(0)
    os.close(still_there)
    listener.close()
    return f"{sys.executable} -S {__file__} {address}"


def _fork_on_request(
    listener: socket.socket, still_there: int, modules: Collection[str], tests: Collection[str]
) -> None:
    # Ctrl-C is for the process that started this one, which ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in modules:
        import_module(name)
    select.select([listener.fileno(), still_there], [], [])
    for name in tests:
        _import_tests(name)
    gc.freeze()
    # By the descriptor of a fork, readable when that has ended: its id, and the connection with who asked for it.
    forks: dict[int, tuple[int, socket.socket]] = {}
    while True:
        by_request = {request.fileno(): pid for pid, request in forks.values()}
        for ready in select.select([listener.fileno(), still_there, *by_request, *forks], [], [])[0]:
            if ready == still_there:
                return
            if ready == listener.fileno():
                pid, request = _forked(listener, [still_there, *by_request, *forks])
                forks[os.pidfd_open(pid)] = (pid, request)
                break
            if ready in by_request:
                os.kill(by_request[ready], signal.SIGKILL)
            if ready in forks:
                pid, request = forks.pop(ready)
                os.waitpid(pid, 0)
                os.close(ready)
                request.close()
                break


def _import_tests(name: str) -> None:
    with suppress(BaseException):
        import_module(name)
    if any(thread.read_text() == f"{THREADS_OF_POLARS}\n" for thread in Path("/proc/self/task").glob("*/comm")):
        raise RuntimeError(f"importing {name} starts the threads of Polars, for which a fork would wait forever")


def _forked(listener: socket.socket, of_others: Sequence[int]) -> tuple[int, socket.socket]:
    request, _ = listener.accept()
    program, streams, *_ = socket.recv_fds(request, MAX_PROGRAM_BYTES, 3)
    if not (pid := os.fork()):
        # Where a fork had the connections of others, nobody would see that these have ended.
        for descriptor in (listener.fileno(), request.fileno(), *of_others):
            os.close(descriptor)
        _run(program, streams)
    for stream in streams:
        os.close(stream)
    return pid, request


def _run(program: bytes, streams: Sequence[int]) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
        sys.argv = ["-c"]
        # What a process that is spawned finds of its parent, as of a new interpreter.
        sys.modules["__main__"] = ModuleType("__main__")
        exec(program, vars(sys.modules["__main__"]))  # noqa: S102 - pytest-xdist's own program
        code = 0
    except BaseException:  # noqa: BLE001 - as above
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Pass the program and the streams on, and wait for its end."""
    # Ctrl-C is for the fork.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    address, *_, program = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as request:
        request.connect(address)
        socket.send_fds(request, [program.encode()], [0, 1, 2])
        # From now on they are the fork's alone: that it has ended is seen by them.
        with open(os.devnull, "r+b") as nothing:  # noqa: PTH123 - pathlib takes a while to import
            for number in (0, 1):
                os.dup2(nothing.fileno(), number)
        request.recv(1)


if __name__ == "__main__":
    main()
