"""Start a stack as another process, and find what it left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 90
END_SECONDS = 40


@dataclass
class StackProcess:
    """A stack in another process; `addresses` as it printed them."""

    state_dir: Path
    process: subprocess.Popen[str]
    addresses: dict[str, Any]

    def end(self, number: signal.Signals) -> int:
        """Send the signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(END_SECONDS)


@contextmanager
def started_stack(state_dir: Path, *arguments: str, environ: dict[str, str] | None = None) -> Iterator[StackProcess]:
    """Start it and wait until it says that everything runs; killed at the end if it still does."""
    with subprocess.Popen(
        [sys.executable, "-m", "ingest_project_tests.devstack.stack_process", *arguments],
        env={**os.environ, "INGEST_STATE_DIR": str(state_dir), "INGEST_WEBSERVER_PORT": "0", **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield StackProcess(state_dir, process, json.loads(line))
        finally:
            process.kill()


def left_behind(state_dir: Path) -> dict[int, str]:
    """Command lines of the processes that have to do with the state folder, by process id, without this one."""
    wanted = os.fsencode(state_dir)
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes()
            if wanted in command or wanted in (process / "environ").read_bytes():
                found[int(process.name)] = command.replace(b"\x00", b" ").decode("utf-8", "replace")[:150]
        except OSError:
            continue
    return found


def wait_until_nothing_is_left(state_dir: Path) -> dict[int, str]:
    """What is still there after a while; empty is what a test wants."""
    deadline = time.monotonic() + END_SECONDS
    while (found := left_behind(state_dir)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
