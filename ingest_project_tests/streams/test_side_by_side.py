"""Two live processes that store the same stream at once: each offset is stored once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance

from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.streams.crm.records import opportunities
from ingest_project.streams.delta.sink import DeltaSink
from ingest_project.streams.engine import settle, store_stream
from ingest_project.streams.positions import StreamPositions
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.streams.crm.messages import opportunity
from ingest_project_tests.streams.crm.system import CrmSystem, crm_environment
from ingest_project_tests.streams.declared.system import (
    DELTA,
    KEYED,
    DeclaredSystem,
    declare,
    declared_environment,
    order,
)
from ingest_project_tests.streams.user_activity.events import event
from ingest_project_tests.streams.user_activity.system import ActivitySystem, activity_environment

pytestmark = pytest.mark.long

MESSAGES, PER_COMMIT = 120, 10
CHECKS = ("no_gap_in_offsets", "no_duplicate_offsets")


def store_on_order(stream: str) -> None:
    """Connect, say so, wait for a line, and store all of a stream; prints how many messages were stored."""
    services = SystemResources(load_settings().settings)
    positions, sink = parts_of(services, stream)
    sink.chunk_messages = PER_COMMIT
    services.range_reader.backlog(positions.topic, None, 0)
    print("ready", flush=True)  # noqa: T201 - to the test
    sys.stdin.readline()
    run = store_stream(services, positions, sink, run_id=f"run-{os.getpid()}")
    settle(services, positions, run)
    assert not run.failures, run.failures
    print(sum(len(one) for one in run.stored), flush=True)  # noqa: T201 - to the test


def parts_of(services: SystemResources, stream: str) -> tuple[StreamPositions, Any]:
    if stream == "activity":
        return services.positions_of(services.shipped_streams.user_activity), DeltaSink(services.user_activity)
    if stream == "crm":
        return services.positions_of(services.shipped_streams.crm), services.sql_sink(services.shipped_streams.crm)
    (declaration,) = services.declared_streams.usable
    if stream == "declared delta":
        return services.positions_of(declaration), DeltaSink(services.delta_stream(declaration))
    return services.positions_of(declaration), services.sql_sink(declaration)


def process(environ: Mapping[str, str], stream: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import store_on_order; store_on_order({stream!r})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environ},
        text=True,
        cwd=Path(__file__).parents[2],
    )


def store_in_two_processes(environ: Mapping[str, str], stream: str) -> None:
    with process(environ, stream) as one, process(environ, stream) as other:
        for each in (one, other):
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in (one, other):
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        stored = [int(each.communicate(timeout=120)[0].splitlines()[-1]) for each in (one, other)]
    assert max(stored) > 0


def test_two_processes_store_each_event_once(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> None:
    environ = activity_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path) | {
        "INGEST_USER_ACTIVITY_RANGE_MESSAGES": str(PER_COMMIT)
    }
    kafka_server.create_topic(environ["KAFKA_TOPIC_USER_ACTIVITY_EVENTS"], 1)
    system = ActivitySystem(load_settings(environ, tmp_path).settings, instance, tmp_path)
    messages = [event(f"e{number}") for number in range(MESSAGES)]
    system.put(*messages[:50], b"not JSON", *messages[50:])
    store_in_two_processes(environ, "activity")

    system.drive()
    assert [row["event_id"] for row in system.rows("event_id, kafka_topic_id, kafka_partition, kafka_offset")] == [
        f"e{number}" for number in range(MESSAGES)
    ]
    assert [letter.value for letter in system.dead_letters] == [b"not JSON"]
    assert system.statistics("2026-01-15-10:00")["page_view"].events == MESSAGES
    assert system.passed(*CHECKS) == [True, True]
    system.close()


def test_two_processes_count_and_store_each_crm_message_once(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> None:
    environ = crm_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path)
    kafka_server.create_topic(environ["KAFKA_TOPIC_SALES_EVENTS"], 1)
    system = CrmSystem(load_settings(environ, tmp_path).settings, instance, tmp_path)
    system.put(*(opportunity(f"opp_{number}") for number in range(MESSAGES)), b"?")
    store_in_two_processes(environ, "crm")

    system.drive()
    assert len(system.rows(opportunities)) == MESSAGES
    assert system.outcome == {"opportunity_messages": MESSAGES, "opportunity_rows_changed": MESSAGES, "unidentified": 1}
    assert system.passed(*CHECKS) == [True, True]
    system.close()


@pytest.mark.parametrize(
    ("stream", "attributes"),
    [("declared delta", {**DELTA, "sink": {"commit_messages": PER_COMMIT}}), ("declared sql", KEYED)],
)
def test_two_processes_store_each_message_of_a_declared_stream_once(  # noqa: PLR0913, PLR0917 - fixtures
    kafka_server: Server,
    postgres_url: str,
    instance: DagsterInstance,
    tmp_path: Path,
    stream: str,
    attributes: dict[str, Any],
) -> None:
    environ = declared_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path)
    topic = f"{environ['KAFKA_GROUP_ID']}.orders"
    declare(tmp_path, {"topic": topic, **attributes})
    kafka_server.create_topic(topic, 1)
    system = DeclaredSystem(load_settings(environ, tmp_path).settings, instance, tmp_path)
    messages = [order(number) for number in range(MESSAGES)]
    system.put(*messages[:50], b"not JSON", *messages[50:])
    store_in_two_processes(environ, stream)

    system.drive()
    expected = [f"o{number}" for number in range(MESSAGES)]
    if stream == "declared sql":
        assert sorted(system.table()) == sorted(expected)
        assert (system.outcome["rows"], system.outcome["rows_changed"]) == (MESSAGES, MESSAGES)
    else:
        assert [row["order_id"] for row in system.rows()] == expected
    assert [letter.value for letter in system.dead_letters] == [b"not JSON"]
    assert system.passed(*CHECKS) == [True, True]
    system.close()
