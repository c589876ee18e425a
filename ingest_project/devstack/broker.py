"""The embedded broker as a process of the stack."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ingest_project.core.settings import TopicSettings
from ingest_project.devstack.child import Child, Command, start

NAME = "broker"
MODULE = "ingest_project.devstack.embedded_kafka"
START_SECONDS = 30.0
POLL_SECONDS = 0.02
PARTITIONS = 4


def start_broker(log_folder: Path, environ: Mapping[str, str], topics: TopicSettings, port: int = 0) -> Child:
    """Start it on a port of the loopback interface, 0 for any, with every topic of ours; does not wait."""
    named = [f"--topic={name}={PARTITIONS}" for name in topics.model_dump().values()]
    return start(Command(NAME, [sys.executable, "-m", MODULE, f"--port={port}", *named], environ), log_folder)


def wait_for_broker(broker: Child) -> str:
    """Its address, host:port, once it serves.

    Raises:
        ServiceFailedError: it ended, or said nothing for START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if address := _announced_address(broker.log_path):
            return address
        broker.require_running()
        time.sleep(POLL_SECONDS)
    raise broker.failed(f"did not announce itself within {START_SECONDS:.0f} s")


def _announced_address(log_path: Path) -> str | None:
    """From the one line of JSON on its standard output, which may stand among warnings."""
    for line in log_path.read_text("utf-8", "replace").splitlines(keepends=True):
        if line.startswith("{") and line.endswith("\n"):
            try:
                return str(json.loads(line)["bootstrap_servers"])
            except (ValueError, KeyError):
                continue
    return None
