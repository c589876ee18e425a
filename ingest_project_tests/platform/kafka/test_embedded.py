"""The embedded broker as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingest_project.core.errors import SettingsError
from ingest_project.devstack import free_port
from ingest_project.devstack.embedded_kafka import EmbeddedBroker
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project_tests.services.kafka import FaultyBroker, settings_for, wait_until

COMMAND = [sys.executable, "-m", "ingest_project.devstack.embedded_kafka"]


def test_a_broker_process_announces_itself_and_has_its_topics_on_the_chosen_port() -> None:
    port = free_port()
    process = subprocess.Popen(
        [*COMMAND, "--port", str(port), "--topic", "polling-queue=4", "--topic", "a=b=1"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    announced = json.loads(process.stdout.readline())
    reader = TopicReader(settings_for(announced["bootstrap_servers"]))

    assert announced == {"bootstrap_servers": f"127.0.0.1:{port}", "pid": process.pid}
    assert reader.end_offsets("polling-queue") == {0: 0, 1: 0, 2: 0, 3: 0}
    assert reader.end_offsets("a=b") == {0: 0}
    reader.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    process.stdout.close()


def test_a_broker_process_ends_with_the_process_that_started_it() -> None:
    script = f"import subprocess, time; subprocess.Popen({COMMAND!r}); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    broker_pid = json.loads(parent.stdout.readline())["pid"]
    parent.kill()
    parent.wait()

    # Its output ends when it does, and a zombie that nobody collects would still have a pid.
    assert parent.stdout.read() == b""
    parent.stdout.close()
    wait_until(lambda: not is_running(broker_pid))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_port_in_use_is_reported_in_one_line() -> None:
    with EmbeddedBroker(port=free_port()) as broker:
        port = broker.bootstrap_servers.partition(":")[2]
        with pytest.raises(SettingsError, match=f"Port {port} .* cannot be used"):
            EmbeddedBroker(port=int(port))
        second = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, check=False)

    assert second.returncode == 2
    assert second.stderr.startswith(f"Port {port} ")
    assert len(second.stderr.splitlines()) == 1


def test_closing_releases_every_descriptor(embedded_broker: FaultyBroker) -> None:
    def cycle() -> int:
        with EmbeddedBroker(port=free_port(), topics={"events": 2}):
            pass
        return len(list(Path("/proc/self/fd").iterdir()))

    open_files = [cycle() for _ in range(6)]
    # Other servers of this test process open and close files of their own meanwhile; a leak would grow with each cycle.
    assert open_files[-1] - open_files[1] < len(open_files) - 2
    assert embedded_broker.bootstrap_servers


def test_a_long_stream_passes_the_embedded_broker(embedded_broker: FaultyBroker) -> None:
    settings = settings_for(embedded_broker.bootstrap_servers)
    writer, reader = TopicWriter(settings), TopicReader(settings)
    embedded_broker.create_topic("events", 2)
    started = time.monotonic()

    assert writer.send_all("events", (ProducerRecord(b"%d" % number) for number in range(50_000))) == 50_000
    assert time.monotonic() - started < 10
    writer.close()
    reader.close()


def test_unknown_topics_cannot_be_deleted(embedded_broker: FaultyBroker) -> None:
    with pytest.raises(ValueError, match=r"[Uu]nknown"):
        embedded_broker.delete_topic("absent")
