"""`ingest monitor` as a process: it starts, answers clients that know the token, and ends."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

TOKEN = "a-token-of-this-test"  # noqa: S105 - of no use elsewhere
START_SECONDS, END_SECONDS = 120, 60
ANNOUNCED = re.compile(r"The monitor is at (http://127\.0\.0\.1:\d+/) ")
# As part of another server's process, which ends in good order at a stop signal.
BESIDE = """
import signal, sys, time
import uvicorn
from ingest_project.core.settings import current_settings
from ingest_project.devstack import free_port
from ingest_project.operations.dashboard import serving

def fail(server, sockets):
    raise RuntimeError("the server failed")

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with serving(current_settings(), free_port()):
    pass
print("it ended with the block", flush=True)
uvicorn.Server.run = fail
with serving(current_settings(), free_port()):
    time.sleep(60)
"""


@pytest.fixture
def monitor(tmp_path: Path, sqlite_url: str) -> Iterator[subprocess.Popen[str]]:
    """The process, with a warehouse and without a broker."""
    (tmp_path / "state").mkdir()
    environ = {
        **os.environ,
        "DATABASE_URL": sqlite_url,
        "INGEST_CONFIG_DIR": str(tmp_path),
        "INGEST_STATE_DIR": str(tmp_path / "state"),
        "INGEST_MONITOR_TOKEN": TOKEN,
    }
    command = [sys.executable, "-m", "ingest_project.cli.main", "monitor", "--port", "0"]
    with subprocess.Popen(command, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def address_of(process: subprocess.Popen[str]) -> str:
    """Where it says that it listens."""
    assert process.stderr is not None
    give_up_at = time.monotonic() + START_SECONDS
    said = ""
    while time.monotonic() < give_up_at and process.poll() is None:
        if select.select([process.stderr], [], [], 1)[0]:
            said += os.read(process.stderr.fileno(), 4_096).decode()
            if found := ANNOUNCED.search(" ".join(said.split())):
                return found[1]
    raise AssertionError(said)


def status_of(url: str, token: str = "") -> tuple[int, str]:
    """The status and text of an answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(Request(url, headers=headers), timeout=60) as answer:  # noqa: S310 - loopback
            return answer.status, answer.read().decode()
    except HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode()


def test_it_starts_answers_clients_that_know_the_token_and_ends_leaving_nothing(
    monitor: subprocess.Popen[str], tmp_path: Path
) -> None:
    address = address_of(monitor)
    assert status_of(f"{address}healthz") == (200, "ok\n")
    assert status_of(f"{address}metrics")[0] == 401
    assert status_of(f"{address}metrics", "another")[0] == 401
    status, metrics = status_of(f"{address}metrics", TOKEN)
    assert status == 200
    assert 'ingest_part_up{part="warehouse"} 1.0' in metrics
    assert 'ingest_part_up{part="broker"} 0.0' in metrics
    status, lines = status_of(f"{address}readyz", TOKEN)
    assert status == 503
    assert "ok   warehouse" in lines
    assert "down broker" in lines

    family = [psutil.Process(monitor.pid), *psutil.Process(monitor.pid).children(recursive=True)]
    monitor.send_signal(signal.SIGTERM)
    assert monitor.wait(END_SECONDS) in {0, -signal.SIGTERM}
    assert psutil.wait_procs(family, timeout=END_SECONDS)[1] == []
    assert monitor.stderr is not None
    assert "Traceback" not in monitor.stderr.read(), "parts that are away are named in one line"
    with pytest.raises(OSError, match="refused"):
        status_of(f"{address}healthz")
    assert list((tmp_path / "state").iterdir()) == []


def test_a_server_run_with_another_ends_with_it_and_ends_it_on_failure(sqlite_url: str, tmp_path: Path) -> None:
    environ = {**os.environ, "DATABASE_URL": sqlite_url, "INGEST_CONFIG_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", BESIDE],
        env={**environ, "INGEST_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=END_SECONDS + START_SECONDS,
        check=False,
    )
    assert ended.stdout == "it ended with the block\n", ended.stderr
    assert ended.returncode == 1, ended.stderr
    assert "the server failed" in ended.stderr
