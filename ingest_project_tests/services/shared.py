"""Servers that all processes of a test run share.

A process of its own has such a server: the first test process that needs it starts it, and it ends with the last one.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from ingest_project_tests.services.first_use import locked

START_TIMEOUT_SECONDS = 180.0
ROOT = Path(__file__).parents[2]


class Server(Protocol):
    """A server that other processes may use."""

    @property
    def address(self) -> dict[str, Any]:
        """What they need to know of it, as JSON."""


@contextmanager
def shared_server(module: str, factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Use the server of this run: yields its address.

    Args:
        module: whose `running_server` starts and ends it.
        factory: knows the folder of this run.
    """
    folder = run_folder(factory) / module.rpartition(".")[2]
    folder.mkdir(exist_ok=True)
    with locked(folder / "used", fcntl.LOCK_SH):
        with locked(folder / "starting"):
            if not (folder / "address").exists():
                _start(module, folder)
        yield json.loads((folder / "address").read_text())


def made_once(name: str, factory: pytest.TempPathFactory, make: Callable[[], str]) -> str:
    """Return what the first process of this run that asked for it has made."""
    made = run_folder(factory) / name
    with locked(made.with_suffix(".lock")):
        if not made.exists():
            made.write_text(make())
    return made.read_text()


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of this run have, and no other run."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _start(module: str, folder: Path) -> None:
    to_log = (str(folder / "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    # In a session of its own, and nobody waits for its end: it outlives the process that starts it.
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", __name__, module, str(folder)],
        {**os.environ, "PYTHONPATH": str(ROOT)},
        file_actions=[(os.POSIX_SPAWN_OPEN, number, *to_log) for number in (1, 2)],
        setsid=True,
    )
    give_up_at = time.monotonic() + START_TIMEOUT_SECONDS
    while not (folder / "address").exists():
        if os.waitpid(pid, os.WNOHANG) != (0, 0) or time.monotonic() > give_up_at:
            raise RuntimeError(f"{module} started no server:\n{(folder / 'log').read_text()[-3_000:]}")
        time.sleep(0.05)


def _serve(running_server: AbstractContextManager[Server], folder: Path) -> None:
    with running_server as server:
        unfinished = folder / "unfinished"
        unfinished.write_text(json.dumps(server.address))
        address = unfinished.rename(folder / "address")
        # Given when nobody uses it any more; whoever comes now starts another.
        with locked(folder / "used"):
            address.unlink()


if __name__ == "__main__":
    _serve(importlib.import_module(sys.argv[1]).running_server(), Path(sys.argv[2]))
