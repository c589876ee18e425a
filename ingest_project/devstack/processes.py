"""The monitor as a process of the stack, and what the operating system knows of other processes."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ingest_project.devstack.child import Child, Command, start

HOST = "127.0.0.1"


def start_monitor(port: int, environ: Mapping[str, str], log_folder: Path) -> Child:
    """Start it; does not wait: nothing else needs it."""
    arguments = ["-m", "ingest_project.cli.main", "monitor", "--host", HOST, "--port", str(port)]
    return start(Command("monitor", [sys.executable, *arguments], environ), log_folder)


POLL_SECONDS = 0.02
# Below those that systems give to outgoing connections: one of these could have a port before the server it is for.
NOT_FOR_OUTGOING = range(20_000, 32_000)


def command_of(pid: int) -> str:
    """The command line of a process, its parts separated by spaces; empty when there is no such process."""
    proc = Path("/proc")
    if (proc / "self").exists():
        try:
            return (proc / str(pid) / "cmdline").read_text("utf-8", "replace").replace("\x00", " ").strip()
        except (FileNotFoundError, ProcessLookupError):
            return ""
    arguments = ["ps", "-o", "command=", "-p", str(pid)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


def wait_until_gone(pid: int, seconds: float) -> bool:
    """Whether the process ended within that time; one that only waits to be collected has ended."""
    deadline = time.monotonic() + seconds
    while command_of(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def port_is_free(port: int) -> bool:
    """Whether this process could listen on the port of the loopback interface now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do it: a port whose old connections are fading away is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    while not port_is_free(port := random.choice(NOT_FOR_OUTGOING)):  # noqa: S311 - no secret
        pass
    return port


def listener_on(port: int) -> str:
    """Who listens on the port, e.g. `process 4711, nginx`; empty when that cannot be found out."""
    inodes = {f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening_inodes(table, port)}
    if not inodes:
        return ""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _holds(process, inodes):
            return f"process {process.name}, {Path(command_of(int(process.name)).partition(' ')[0]).name}"
    return ""


def _listening_inodes(table: str, port: int) -> list[str]:
    listening = "0A"
    try:
        rows = (Path("/proc/net") / table).read_text("ascii").splitlines()[1:]
    except OSError:
        return []
    fields = [row.split() for row in rows]
    return [row[9] for row in fields if row[3] == listening and int(row[1].rpartition(":")[2], 16) == port]


def _holds(process: Path, inodes: set[str]) -> bool:
    try:
        return any(os.readlink(link) in inodes for link in (process / "fd").iterdir())  # noqa: PTH115 - text is compared
    except OSError:
        return False  # somebody else's process, or one that has just ended
