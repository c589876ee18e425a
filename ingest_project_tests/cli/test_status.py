"""`ingest status`: the progress of all work, and when the system is idle."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance, DagsterRun
from dagster import DagsterRunStatus as RunState
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, SensorInstigatorData
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from ingest_project.attachments.tables import attachments as table
from ingest_project.core.settings import Settings, load_settings
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project.operations.snapshot import Sample, SystemSnapshot, WarehouseState
from ingest_project.operations.topics import BrokerState, TopicLag
from ingest_project.platform.capability import QueueState, WorkState
from ingest_project.platform.database import writing
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.streams.engine import MAX_FAILURES
from ingest_project.streams.hours import count_changes
from ingest_project.streams.positions import move
from ingest_project_tests.cli import known_attachments as attachments
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.cli.known_files import arrive, finish, job_arrives, take
from ingest_project_tests.services.kafka import FaultyBroker

HOST = "127.0.0.1"
SENSORS = {
    "polling_queue_sensor": "polling-queue",
    "file_event_queue_sensor": "file-event-queue",
    "file_events_sensor": "file_events",
}
OTHER_TOPICS = ("events.raw", "downloads.pending", *(f"downloads.retry.{n}m" for n in (5, 10, 20, 40)))
STREAMS = {"user_activity_events_sensor": "user-activity-events", "sales_events_sensor": "sales_events"}


@pytest.fixture
def system(
    services: SystemResources, embedded_broker: FaultyBroker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SystemResources]:
    """Work queues, stores and a broker whose topics are empty."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", embedded_broker.bootstrap_servers)
    for topic in (*SENSORS.values(), *OTHER_TOPICS, *STREAMS.values()):
        embedded_broker.create_topic(topic, 2)
    del services
    system = SystemResources(load_settings().settings)
    yield system
    system.warehouse.close()
    system.engine.dispose()


def send(services: SystemResources, topic: str, count: int) -> None:
    writer = TopicWriter(services.settings.kafka)
    writer.send_all(topic, [ProducerRecord(b"{}") for _ in range(count)])
    writer.close()


def save_cursor(instance: DagsterInstance, sensor: str, cursor: str, at: float = 1.0) -> None:
    """As the daemon does at the end of a tick."""
    location = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="m"), location_name=f"l{at}")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), sensor)
    data = SensorInstigatorData(last_tick_timestamp=at, cursor=cursor)
    instance.add_instigator_state(InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, data))


def topic_of(status: Any, topic: str) -> Any:  # noqa: ANN401 - JSON
    return next(lag for lag in status["topics"] if lag["topic"] == topic)


def test_an_idle_system_is_said_to_be_idle(
    ingest: Ingest, system: SystemResources, any_instance: DagsterInstance
) -> None:
    del system, any_instance
    shown = ingest("status")
    assert shown.exit_code == 0, shown.err
    assert "Idle" in shown.out
    waited = ingest("status", "--wait-until-idle", "5", "--json")
    assert waited.exit_code == 0
    assert waited.json["idle"] is True
    assert waited.json["going_on"] == []


def test_an_idle_system_with_dead_letters_says_how_many_it_keeps_on_which_topic(
    ingest: Ingest, system: SystemResources, any_instance: DagsterInstance
) -> None:
    del any_instance
    before = ingest("status", "--json").json["dead_letters"].get("polling-queue.dlq", 0)
    send(system, "polling-queue.dlq", 2)
    assert ingest("status", "--json").json["dead_letters"]["polling-queue.dlq"] == before + 2
    waited = ingest("status", "--wait-until-idle", "5")
    assert waited.exit_code == 0
    assert f"{before + 2} on polling-queue.dlq" in waited.out
    assert "ingest dlq list polling-queue.dlq" in waited.out


def test_lag_is_measured_from_the_cursor_that_ticked_last(
    ingest: Ingest, system: SystemResources, dagster_instance: DagsterInstance
) -> None:
    send(system, "file-event-queue", 5)
    ends = system.reader.end_offsets("file-event-queue")
    save_cursor(dagster_instance, "file_event_queue_sensor", Positions("", dict.fromkeys(ends, 0)).to_cursor(), at=1.0)
    read_to = {partition: max(0, end - 1) for partition, end in ends.items()}
    save_cursor(dagster_instance, "file_event_queue_sensor", Positions("", read_to).to_cursor(), at=2.0)
    status = ingest("status", "--json").json
    lag = topic_of(status, "file-event-queue")
    assert lag["waiting"] == sum(ends.values()) - sum(read_to.values())
    assert lag["measured_from"] == "saved cursor"
    assert status["idle"] is False


def test_without_dagsters_records_lag_is_measured_from_the_committed_offsets_and_it_says_so(
    ingest: Ingest, system: SystemResources
) -> None:
    send(system, "polling-queue", 3)
    ends = system.reader.end_offsets("polling-queue")
    system.reader.commit("polling-queue", Positions("", ends))
    send(system, "polling-queue", 1)
    status = ingest("status", "--json")
    lag = topic_of(status.json, "polling-queue")
    assert (lag["waiting"], lag["measured_from"]) == (1, "committed offsets")
    assert "Dagster's records" in lag["problem"]
    assert status.exit_code == 1
    shown = ingest("status")
    assert "committed offsets" in shown.out
    assert shown.err.count("DAGSTER_POSTGRES_URL") == 1


def test_files_jobs_and_runs_that_are_not_finished_are_listed(
    ingest: Ingest, system: SystemResources, dagster_instance: DagsterInstance
) -> None:
    for run_id, state in (("r1", RunState.NOT_STARTED), ("r2", RunState.STARTED), ("r3", RunState.SUCCESS)):
        dagster_instance.add_run(DagsterRun(job_name="j", run_id=run_id, status=state))
    arrive(system, "first.csv~1", "second.csv~2", "third.csv~3")
    job_arrives(system, "job_1")
    take(system, "second.csv~2")
    finish(system, "third.csv~3", FileState.INGESTED, reported=False)
    late = ingest("status", "--wait-until-idle", "0.2", "--json")
    assert late.exit_code == 1
    assert late.json["going_on"] == [
        "1 polling job pending",
        "1 file pending",
        "1 file ingesting",
        "1 finished entry not yet shown in Dagster",
        "1 run queued",
        "1 run started",
    ]
    oldest = late.json["oldest_unfinished"]["key"]
    assert oldest in {"first.csv~1", "second.csv~2", "job_1"}
    shown = ingest("status", "--wait-until-idle", "0")
    assert shown.exit_code == 1
    assert f"{oldest} is " in shown.out
    assert "1 file pending" in shown.err


def test_waiting_ends_as_soon_as_the_system_is_idle(
    ingest: Ingest, system: SystemResources, dagster_instance: DagsterInstance
) -> None:
    del dagster_instance
    arrive(system, "a.csv~1")
    timer = threading.Timer(1.0, finish, (system, "a.csv~1", FileState.INGESTED))
    timer.start()
    waited = ingest("status", "--wait-until-idle", "60", "--json")
    timer.join()
    assert waited.exit_code == 0
    assert waited.json["files"]["ingested"] == 1


def test_lag_of_every_topic_of_attachments_is_measured_from_its_part_of_the_cursor(
    ingest: Ingest, system: SystemResources, dagster_instance: DagsterInstance
) -> None:
    counts = {topic: number for number, topic in enumerate(OTHER_TOPICS, start=2)}
    for topic, number in counts.items():
        send(system, topic, number)
    ends = {topic: system.reader.end_offsets(topic) for topic in OTHER_TOPICS}
    read = {topic: Positions("", ends[topic]).to_cursor() for topic in OTHER_TOPICS}
    save_cursor(dagster_instance, "attachment_events_sensor", read["events.raw"])
    one_unread = {partition: max(0, end - 1) for partition, end in ends["downloads.retry.5m"].items()}
    cursors = read | {"downloads.retry.5m": Positions("", one_unread).to_cursor()}
    del cursors["downloads.retry.40m"]
    save_cursor(dagster_instance, "downloads_retry_sensor", json.dumps(cursors))
    status = ingest("status", "--json").json
    lags = {topic: topic_of(status, topic) for topic in OTHER_TOPICS}
    assert {lag["measured_from"] for lag in lags.values()} == {"saved cursor"}
    unread = sum(end > 0 for end in ends["downloads.retry.5m"].values())
    assert {topic: lag["waiting"] for topic, lag in lags.items()} == {
        "events.raw": 0,
        "downloads.pending": counts["downloads.pending"],  # nobody has read it
        "downloads.retry.5m": unread,
        "downloads.retry.10m": 0,
        "downloads.retry.20m": 0,
        "downloads.retry.40m": counts["downloads.retry.40m"],
    }


def test_attachments_are_counted_by_state_and_by_retry_tier(
    ingest: Ingest, system: SystemResources, dagster_instance: DagsterInstance
) -> None:
    del dagster_instance
    attachments.finish(system, attachments.arrive(system, "stored.pdf"))
    attachments.dead(system, "dead.pdf")
    for hours, name in enumerate(("one.pdf", "two.pdf"), start=1):
        key = attachments.arrive(system, name)
        attachments.finish(system, key, error_class="DownloadFailedError", again_in=timedelta(hours=hours))
    attachments.arrive(system, "third.pdf", attempt=3)
    attachments.arrive(system, "first.pdf")
    status = ingest("status", "--json").json
    counts = {state: n for state, n in status["attachments"].items() if n}
    assert counts == {"pending": 4, "stored": 1, "failed": 1}
    assert status["later"] == 2
    assert [(tier["topic"], tier["waiting"], tier["due"]) for tier in status["retry_tiers"]] == [
        ("downloads.retry.5m", 2, 0),
        ("downloads.retry.10m", 1, 1),
        ("downloads.retry.20m", 0, 0),
        ("downloads.retry.40m", 0, 0),
    ]
    assert status["next_due_at"] == status["retry_tiers"][0]["next_due_at"]
    assert status["going_on"] == ["2 attachments due"]
    shown = ingest("status").out
    assert "4 pending, 1 stored, 1 failed" in shown
    assert "Downloads to be tried again" in shown


def test_a_stream_is_busy_until_its_messages_are_stored_and_its_hours_counted_and_one_that_fails_is_named(
    ingest: Ingest, system: SystemResources, dagster_instance: DagsterInstance
) -> None:
    del dagster_instance
    for topic in STREAMS.values():
        send(system, topic, 3)
    waiting = [f"3 messages waiting on {topic}" for topic in STREAMS.values()]
    status = ingest("status", "--json").json
    assert status["going_on"] == waiting
    assert {lag["sensor"]: lag["topic"] for lag in status["topics"]}.items() >= STREAMS.items()

    now, positions = datetime.now(UTC), {}
    for stream in map(system.positions_of, system.shipped_streams):
        backlog = system.range_reader.backlog(stream.topic, None, 0)
        assert backlog is not None
        begun = stream.begin(backlog, now)
        (positions[stream.topic],) = (begun[partition] for partition, end in backlog.ends.items() if end)
    for _ in range(MAX_FAILURES):
        system.positions_of(system.shipped_streams.crm).lease([positions["sales_events"]], "run")
    failures = [(positions["sales_events"], "the disk is full")]
    system.positions_of(system.shipped_streams.crm).fail(failures, "run", system.settings.retries, now)
    with writing(system.engine) as connection:
        move(connection, positions["user-activity-events"], 3, {"events": 2, "dead_letters": 1}, now)
        count_changes(connection, "user_activity", [datetime(2026, 1, 15, 10, tzinfo=UTC)], now)
    status = ingest("status", "--json").json
    assert status["going_on"][2:] == ["1 hour of user activity to be counted"]
    assert status["stored"]["user-activity-events"] == {"events": 2, "dead_letters": 1}
    assert f"{positions['sales_events']}: the disk is full" in status["problems"]
    assert "2 events, 1 dead_letters" in ingest("status").out


def test_a_broker_that_is_away_is_queried_once_and_every_topic_says_so(
    ingest: Ingest,
    system: SystemResources,
    dagster_instance: DagsterInstance,
    embedded_broker: FaultyBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del system, dagster_instance
    embedded_broker.go_down()
    monkeypatch.setenv("KAFKA_REQUEST_TIMEOUT_SECONDS", "1")
    status = ingest("status", "--json").json
    assert {lag["waiting"] for lag in status["topics"]} == {None}
    assert len({lag["problem"] for lag in status["topics"]}) == 1
    assert "sales_events cannot be read" in status["going_on"]


def test_entries_that_are_not_due_leave_the_system_idle_and_are_reported(
    ingest: Ingest, system: SystemResources, dagster_instance: DagsterInstance
) -> None:
    del dagster_instance
    key = attachments.arrive(system, "a.pdf")
    attachments.finish(system, key, error_class="DownloadFailedError", again_in=timedelta(minutes=5))
    shown = ingest("status", "--wait-until-idle", "5")
    assert shown.exit_code == 0, shown.err
    assert re.search("1 attachment, the next in [45] min", shown.out)
    assert "Idle: nothing is due and nothing runs; 1 attachment waits for its time." in shown.out


def test_an_attachment_leased_by_a_run_is_work_and_an_unreported_one_too(
    ingest: Ingest, system: SystemResources, dagster_instance: DagsterInstance
) -> None:
    del dagster_instance
    now = datetime.now(UTC)
    system.attachments.begin([attachments.arrive(system, "a.pdf")], "run-1", now)
    unreported = attachments.arrive(system, "b.pdf")
    attachments.finish(system, unreported)
    with writing(system.engine) as connection:
        connection.execute(sa.update(table).where(table.c.attachment_key == unreported).values(reported_at=None))
    assert ingest("status", "--json").json["going_on"] == [
        "1 attachment downloading",
        "1 finished entry not yet shown in Dagster",
    ]


@pytest.mark.parametrize(
    "state_dir", ["state", pytest.param("x" * 300, id="one that the file system does not take, as a closed one")]
)
def test_without_services_every_part_names_what_to_start_or_set(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch, state_dir: str
) -> None:
    monkeypatch.setenv("INGEST_STATE_DIR", state_dir)
    shown = ingest("status")
    assert shown.exit_code == 1
    assert "unknown" in shown.out
    for setting in ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "DAGSTER_POSTGRES_URL"):
        assert setting in shown.err
    assert "Traceback" not in shown.err


def test_a_dagster_database_that_is_away_is_reported_quickly_and_without_its_password(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://me:hunter2@127.0.0.1:1/dagster")
    shown = ingest("status")
    assert "Dagster's records at postgresql://me:***@127.0.0.1:1/dagster" in shown.err
    assert "hunter2" not in shown.out + shown.err


def test_parts_that_accept_connections_and_never_answer_are_tried_once_each(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_REQUEST_TIMEOUT_SECONDS", "1")
    monkeypatch.setenv("INGEST_DATABASE_CONNECT_TIMEOUT_SECONDS", "2")
    with socket.create_server((HOST, 0)) as broker, socket.create_server((HOST, 0)) as databases:
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"{HOST}:{broker.getsockname()[1]}")
        for name in ("DATABASE_URL", "DAGSTER_POSTGRES_URL"):
            monkeypatch.setenv(name, f"postgresql://me@{HOST}:{databases.getsockname()[1]}/{name.lower()}")
        shown = ingest("status")
        databases.setblocking(False)
        attempts = 0
        with suppress(BlockingIOError):
            while True:
                databases.accept()[0].close()
                attempts += 1
    assert shown.exit_code == 1
    assert [line.split(" at ")[0] for line in shown.err.splitlines()] == ["Kafka", "The database", "Dagster's records"]
    assert attempts == 2


def test_a_status_is_idle_only_when_every_part_said_so() -> None:
    work = {
        "polling": WorkState(queues=(QueueState(kind="polling_job", counts={"done": 3}),)),
        "file_ingest": WorkState(queues=(QueueState(kind="file", counts={"ingested": 3, "failed": 1}),)),
        "attachments": WorkState(queues=(QueueState(kind="attachment", counts={"pending": 7}),), later=7),
    }
    quiet = SystemSnapshot(
        settings=Settings(),
        at=datetime.now(UTC),
        broker=Sample(BrokerState((TopicLag(topic="t", sensor="s", waiting=0),))),
        warehouse=Sample(WarehouseState(work=work)),
    )
    assert quiet.going_on == ["Dagster's runs cannot be read"]
    assert not quiet.is_idle
