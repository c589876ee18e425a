"""`ingest activity`: the figures of an hour, and reading the topic from its beginning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from ingest_project.core.items import hour_key, parse_hour_key
from ingest_project.core.settings import load_settings
from ingest_project.devstack import free_port
from ingest_project.devstack.embedded_kafka import EmbeddedBroker
from ingest_project.operations import SystemResources
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.streams.positions import OffsetRange, removed
from ingest_project.streams.user_activity.hours import HourOfType, replace_hours
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.journeys.system import close
from ingest_project_tests.streams.user_activity.events import event

HOUR = "2026-01-15-10:00"
TOPIC = "user-activity-events"


def count(services: SystemResources, hour: datetime, **events: int) -> None:
    """Store figures as a run does."""
    figures = [
        HourOfType(
            hour=hour,
            event_type=event_type,
            events=number,
            users=1,
            sessions=2,
            processing_ms_p50=4.5 if number > 1 else None,
            processing_ms_p95=8.25 if number > 1 else None,
            deliveries=number,
        )
        for event_type, number in events.items()
    ]
    replace_hours(services.engine, {hour: figures}, {hour: 1}, datetime.now(UTC))


def test_an_hour_is_shown_by_type_the_one_with_most_events_first(ingest: Ingest, services: SystemResources) -> None:
    count(services, parse_hour_key(HOUR), click=1, page_view=12)
    shown = ingest("activity", "hour", HOUR)
    assert shown.exit_code == 0, shown.err
    assert HOUR in shown.out
    assert shown.out.index("page_view") < shown.out.index("click")
    assert "4.5" in shown.out
    assert "None" not in shown.out
    found = ingest("activity", "hour", HOUR, "--json").json
    assert found["hour"] == HOUR
    assert [(one["event_type"], one["events"]) for one in found["types"]] == [("page_view", 12), ("click", 1)]


def test_without_an_hour_it_is_the_present_one(ingest: Ingest, services: SystemResources) -> None:
    before = hour_key(datetime.now(UTC))
    count(services, parse_hour_key(before), click=3)
    found = ingest("activity", "hour", "--json").json
    # Unless another hour began in between.
    assert [one["events"] for one in found["types"]] == ([3] if found["hour"] == before else [])


def test_an_hour_without_events_and_an_invalid_hour_have_different_answers(
    ingest: Ingest, services: SystemResources
) -> None:
    del services
    empty = ingest("activity", "hour", HOUR)
    assert (empty.exit_code, empty.out) == (0, "")
    assert f"No events are counted for {HOUR}." in empty.err
    assert ingest("activity", "hour", HOUR, "--json").json == {"hour": HOUR, "types": []}
    wrong = ingest("activity", "hour", "2026-01-15 10:00")
    assert wrong.exit_code != 0
    assert "2026-01-15-10:00" in wrong.err


@pytest.fixture
def stream(
    services: SystemResources, embedded_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SystemResources]:
    """The services, with a topic that has three events and is read from the second one."""
    del services
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", embedded_broker.bootstrap_servers)
    embedded_broker.create_topic(TOPIC, 1)
    system = SystemResources(load_settings().settings)
    writer = TopicWriter(system.settings.kafka)
    writer.send_all(TOPIC, [ProducerRecord(json.dumps(event(f"e{number}")).encode()) for number in range(3)])
    writer.close()
    backlog = system.range_reader.backlog(TOPIC, Positions("", {0: 1}), 0)
    assert backlog is not None
    system.positions_of(system.shipped_streams.user_activity).begin(backlog, datetime.now(UTC))
    yield system
    close(system)


def test_reading_from_the_beginning_stores_skipped_messages_each_time_it_is_requested(
    ingest: Ingest, stream: SystemResources
) -> None:
    for _ in range(2):
        done = ingest("streams", "read-from-beginning", "activity", "--json")
        assert done.exit_code == 0, done.err
    (position,) = stream.positions_of(stream.shipped_streams.user_activity).all()
    assert (position.first_offset, position.next_offset) == (0, 0)
    assert "3 offsets of 1 partition" in ingest("streams", "read-from-beginning", "activity").out


def test_while_events_are_being_stored_nothing_is_read_again(ingest: Ingest, stream: SystemResources) -> None:
    positions = stream.positions_of(stream.shipped_streams.user_activity)
    positions.lease(positions.all(), "run-1")
    refused = ingest("streams", "read-from-beginning", "activity")
    assert refused.exit_code == 1
    assert "user_activity_events_sensor" in refused.err
    (position,) = stream.positions_of(stream.shipped_streams.user_activity).all()
    assert position.first_offset == 1


def test_positions_are_listed_with_lag_failures_and_what_was_lost(ingest: Ingest, stream: SystemResources) -> None:
    positions = stream.positions_of(stream.shipped_streams.user_activity)
    (position,) = positions.all()
    positions.lease([position], "run-1")
    positions.fail([(position, "the disk is full")], "run-1", stream.settings.retries, datetime.now(UTC))
    positions.add_lost([removed(OffsetRange(TOPIC, position.topic_id, 0, 0, 1), datetime.now(UTC))])
    found = ingest("streams", "positions", "--json").json
    (one,) = found["partitions"]
    assert (one["topic"], one["next_offset"], one["waiting"], one["attempts"]) == (TOPIC, 1, 2, 1)
    assert one["reason"] == "the disk is full"
    assert [lost["messages"] for lost in found["lost"]] == [1]
    shown = ingest("streams", "positions")
    assert "the disk is full" in shown.out
    assert f"{TOPIC}[0] 0 to 0" in shown.err


@pytest.mark.usefixtures("stream")
def test_positions_without_a_broker_are_shown_and_exit_code_1_says_that_lag_is_unknown(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("KAFKA_REQUEST_TIMEOUT_SECONDS", "1")
    for arguments in ((), ("--json",)):
        shown = ingest("streams", "positions", *arguments)
        assert shown.exit_code == 1
        assert TOPIC in shown.out
        assert "does not answer" in (shown.out if arguments else shown.err)
