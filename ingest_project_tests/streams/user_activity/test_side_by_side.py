"""Two live processes with the same ranges in their hands: each offset is stored once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dagster import DagsterInstance

from ingest_project.core.errors import TransientError
from ingest_project.core.settings import load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.streams.range_record import RangeState
from ingest_project.streams.user_activity import event_table
from ingest_project.streams.user_activity.load import Stored, store_ranges
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.streams.user_activity.events import event
from ingest_project_tests.streams.user_activity.system import SENSOR, ActivitySystem, activity_environment

pytestmark = pytest.mark.long

EVENTS, PER_RANGE = 120, 10


def store_when_told(keys: Sequence[str]) -> None:
    """Take the ranges, say so, wait for a line, and store them; says how many were done."""
    assert event_table  # loaded before the other is waited for, so that both begin at once
    services = SystemResources(load_settings().settings)
    records = services.stream_ranges.begin(keys, f"run-{os.getpid()}", datetime.now(UTC))
    stored = Stored()
    print("ready", flush=True)  # noqa: T201 - to the test
    sys.stdin.readline()
    try:
        store_ranges(services, records, stored)
    except TransientError as error:
        print(f"{error.error_class}: {error}", file=sys.stderr)  # noqa: T201 - the other one was quicker
    print(len(stored.done), flush=True)  # noqa: T201 - to the test


def process(environ: Mapping[str, str], keys: Sequence[str]) -> subprocess.Popen[str]:
    code = f"from {__name__} import store_when_told; store_when_told({json.dumps(keys)})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environ},
        text=True,
        cwd=Path(__file__).parents[3],
    )


def test_two_processes_at_the_same_ranges_store_each_offset_once(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> None:
    environ = activity_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path) | {
        "INGEST_USER_ACTIVITY_RANGE_MESSAGES": str(PER_RANGE)
    }
    kafka_server.create_topic(environ["KAFKA_TOPIC_USER_ACTIVITY_EVENTS"], 1)
    system = ActivitySystem(load_settings(environ, tmp_path).settings, instance, tmp_path)
    messages = [event(f"e{number}") for number in range(EVENTS)]
    system.put(*messages[:50], b"not JSON", *messages[50:])
    system.requests(SENSOR)
    keys = [record.range_key for record in system.services.stream_ranges.list(system.topic, limit=1_000)]
    with process(environ, keys) as one, process(environ, keys) as other:
        for each in (one, other):
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in (one, other):
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        done = [int(each.communicate(timeout=120)[0].splitlines()[-1]) for each in (one, other)]
    assert max(done) > 0

    system.drive()
    assert [row["event_id"] for row in system.rows("event_id, kafka_topic_id, kafka_partition, kafka_offset")] == [
        f"e{number}" for number in range(EVENTS)
    ]
    assert [letter.value for letter in system.dead_letters] == [b"not JSON"]
    assert system.statistics("2026-01-15-10:00")["page_view"].events == EVENTS
    assert {record.state for record in system.services.stream_ranges.list(system.topic, limit=1_000)} == {
        RangeState.DONE
    }
    for name in ("no_gap_in_offsets", "no_duplicate_offsets"):
        assert system.check(name).passed
    system.close()
