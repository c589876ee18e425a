"""The monitor as a process of the stack, on the loopback interface."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ingest_project.cli.stack.child import Child, Command, start

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HOST = "127.0.0.1"


def start_monitor(port: int, environ: Mapping[str, str], log_folder: Path) -> Child:
    """Start it; does not wait: nothing else needs it."""
    arguments = ["-m", "ingest_project.cli.main", "monitor", "--host", HOST, "--port", str(port)]
    return start(Command("monitor", [sys.executable, *arguments], environ), log_folder)
