"""From events on `user-activity-events` to rows and statistics."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from confluent_kafka import Producer

from ingest_project.core.settings import load_settings
from ingest_project.operations.items import describe
from ingest_project.platform.capability import EVENT_TO_STORED, PROCESSING
from ingest_project.platform.items import ItemRef
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.delta.rebuild import read_again_from_beginning
from ingest_project.streams.delta.sink import DeltaSink
from ingest_project.streams.engine import store_stream
from ingest_project.streams.user_activity.definitions import USER_ACTIVITY_EVENTS, USER_ACTIVITY_HOURLY
from ingest_project_tests.journeys.system import changed
from ingest_project_tests.streams.user_activity.events import encoded, event
from ingest_project_tests.streams.user_activity.system import BATCH, HOURLY_BATCH, HOURLY_SENSOR, SENSOR, ActivitySystem

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CHECKS = ("no_gap_in_offsets", "no_duplicate_offsets", "event_time_plausible")
HOUR, NEXT_HOUR = "2026-01-15-10:00", "2026-01-15-11:00"


def test_an_event_becomes_a_row_with_its_types_and_its_position(activity: ActivitySystem) -> None:
    activity.put(event(), event("e2", client_info=None, processing_info=None, page_url=None, colour="red"))
    assert all(run.success for run in activity.drive())
    first, second = activity.rows()
    assert first["timestamp"] == datetime(2026, 1, 15, 10, 30, 45, tzinfo=UTC)
    assert json.loads(first["event_data"])["form_data"] == {"field1": "value1"}
    assert first["client_info"]["screen_resolution"] == "1920x1080"
    assert first["processing_info"]["received_at"] == datetime(2026, 1, 15, 10, 30, 45, 100_000, tzinfo=UTC)
    assert (first["kafka_topic"], first["kafka_offset"], first["_rescued"]) == (activity.topic, 0, None)
    assert abs(first["kafka_timestamp"] - datetime.now(UTC)) < timedelta(minutes=5)
    assert (second["client_info"], second["processing_info"], second["page_url"]) == (None, None, None)
    assert json.loads(second["_rescued"]) == {"colour": "red"}
    shown = activity.metadata(USER_ACTIVITY_EVENTS, HOUR)
    assert (shown["rows_added"], shown["events"], shown["consumer_lag"]) == (2, 2, 0)
    assert activity.passed(*CHECKS) == [True] * 3
    assert (activity.observed(EVENT_TO_STORED)[0], activity.observed(PROCESSING)[0]) == (
        2,
        len(activity.partitions_with_messages),
    )


def test_an_event_is_found_by_its_id_its_trace_and_its_position_and_its_page_shows_its_row(
    activity: ActivitySystem,
) -> None:
    headers = (("traceparent", TRACEPARENT.encode()),)
    activity.services.writer.send_all(activity.topic, [ProducerRecord(encoded(event("e-7")), b"one", headers)])
    activity.drive()
    (row,) = activity.rows()
    place = (row["kafka_topic"], row["kafka_partition"], row["kafka_offset"])
    notations = ("{}/{}/{}", "{}:{}:{}", "{} {} {}", "{}[{}]@{}")
    trace_id = TRACEPARENT.split("-")[1]
    view = activity.item("e-7", trace_id, TRACEPARENT, *(one.format(*place) for one in notations))
    assert (view.ref.kind, view.state, view.trace_id) == ("message", "stored", trace_id)
    assert view.contents["message"].open() == encoded(event("e-7"))
    assert ("event_id", "e-7") in view.rows["user_activity_events"].page(0, 100).rows
    assert [moment.what for moment in view.history] == ["written to Kafka", "page_view"]
    assert activity.services.user_activity.store.opened() is not None


def test_with_a_corrupted_table_an_event_s_page_says_so_and_shows_its_message(activity: ActivitySystem) -> None:
    activity.put(event("e-8"))
    activity.drive()
    (row,) = activity.rows()
    for path in Path(activity.services.user_activity.store.url).rglob("*.parquet"):
        path.write_bytes(b"no Parquet")
    activity.restart()
    view = describe(activity.services, ItemRef("message", f"{row['kafka_topic']}/{row['kafka_partition']}/0"))
    assert view is not None
    assert view.contents["message"].open() == encoded(event("e-8"))
    (problem,) = view.problems
    assert "user_activity_events" in problem


def test_a_message_that_is_not_an_event_becomes_one_dead_letter_with_its_bytes(activity: ActivitySystem) -> None:
    bad = [
        b"\xff\x00",
        None,
        b"{}",
        json.dumps(event(user_id=5)).encode(),
        json.dumps(event(timestamp="soon")).encode(),
    ]
    activity.put(event(), *bad, event("e2"))
    (request,) = activity.requests(SENSOR)
    for _ in range(2):
        assert activity.execute(BATCH, request).success
    letters = activity.dead_letters
    assert [letter.value for letter in letters] == bad
    assert b"event_id" in (letters[2].header("dlq.reason") or b"")
    assert b"$.user_id" in (letters[3].header("dlq.reason") or b"")
    assert [row["event_id"] for row in activity.rows()] == ["e1", "e2"]
    assert activity.check("no_gap_in_offsets").passed


def test_a_quiet_topic_requests_nothing_and_a_missing_one_is_no_failure(activity: ActivitySystem) -> None:
    assert activity.requests(SENSOR) == activity.requests(HOURLY_SENSOR) == []
    missing = changed(activity.settings, "topics", user_activity_events=f"{activity.topic}.other")
    other = ActivitySystem(missing, activity.instance, activity.folder)
    assert other.requests(SENSOR) == []
    assert other.passed(*CHECKS) == [True] * 3
    assert other.run("user_activity_maintenance").success
    other.close()


@pytest.mark.parametrize("codec", ["snappy", "gzip", "lz4", "zstd"])
def test_every_compression_is_read(activity: ActivitySystem, codec: str) -> None:
    producer = Producer(
        {"bootstrap.servers": activity.settings.kafka.bootstrap_servers, "compression.type": codec, "linger.ms": 50}
    )
    for number in range(50):
        producer.produce(activity.topic, json.dumps(event(f"e{number}")).encode(), key=b"one")
    producer.flush()
    activity.drive()
    assert len(activity.rows()) == 50


def test_a_run_that_is_requested_and_done_twice_leaves_each_offset_once(activity: ActivitySystem) -> None:
    activity.put(*(event(f"e{number}") for number in range(30)))
    (lost,) = activity.requests(SENSOR, save=False)
    assert activity.execute(BATCH, lost).success
    assert activity.execute(BATCH, lost).success
    activity.drive()
    assert [offset for _, offset in activity.offsets()] == list(range(30))
    assert activity.outcome == {"events": 30}
    assert activity.statistics(HOUR)["page_view"].events == 30


@pytest.mark.long
def test_far_behind_runs_take_a_bounded_number_of_events_of_every_partition(activity: ActivitySystem) -> None:
    activity.settings = changed(activity.settings, "user_activity", range_messages=10, batch_messages=40)
    activity.restart()
    for partition_key in (b"one", b"three", b"a", b"b", b"c"):
        activity.put(*(event(f"{partition_key!r}{number}") for number in range(20)), key=partition_key)
    while requests := activity.requests(SENSOR):
        partitions = [set(activity.ends_in(request)) for request in requests]
        assert len(set().union(*partitions)) == sum(len(some) for some in partitions)
        assert all(int(request.tags["ingest/batch_size"]) <= 40 for request in requests)
        for request in requests:
            assert activity.execute(BATCH, request).success
    assert len(set(activity.offsets())) == len(activity.offsets()) == 100
    assert activity.is_idle


@pytest.mark.long
def test_messages_that_were_removed_before_they_were_read_are_said_to_be_lost(
    activity: ActivitySystem,
    kafka_server: Any,  # noqa: ANN401 - either broker
) -> None:
    activity.put(*(event(f"e{number}") for number in range(4)))
    (request,) = activity.requests(SENSOR)
    (partition,) = activity.ends_in(request)
    kafka_server.delete_records(activity.topic, partition, 3)
    assert activity.execute(BATCH, request).success
    activity.put(event("e4"))
    activity.drive()
    assert [row["event_id"] for row in activity.rows()] == ["e3", "e4"]
    (lost,) = activity.positions.lost()
    assert (lost.offsets.first, lost.offsets.end, lost.messages) == (0, 3, 3)
    assert activity.outcome == {"lost": 3, "events": 2}
    check = activity.check("no_gap_in_offsets")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)


@pytest.mark.long
def test_a_topic_that_was_created_again_is_another_stream(
    activity: ActivitySystem,
    kafka_server: Any,  # noqa: ANN401 - either broker
) -> None:
    activity.put(event("e1"), event("e2"))
    activity.drive()
    kafka_server.delete_topic(activity.topic)
    kafka_server.create_topic(activity.topic, 2)
    activity.restart()
    activity.put(event("e3"), event("e4"))
    activity.drive()
    assert {row["event_id"] for row in activity.rows()} == {"e1", "e2", "e3", "e4"}
    assert len({row["kafka_topic_id"] for row in activity.rows()}) == 2
    assert activity.passed(*CHECKS) == [True] * 3


def test_an_hour_counts_distinct_events_users_and_sessions_by_type(activity: ActivitySystem) -> None:
    def took(milliseconds: float) -> dict[str, float]:
        return {"processing_ms": milliseconds}

    activity.put(
        *(event(f"e{n}", user_id=f"u{n % 3}", session_id=f"s{n % 5}", processing_info=took(n)) for n in range(10)),
        event("e0", user_id="u0", session_id="s0", processing_info=took(0)),
        event("c1", event_type="click", user_id=None, processing_info=None),
        event("n1", timestamp="2026-01-15T12:59:59.999+01:00"),
    )
    activity.drive()
    views, clicks = activity.statistics(HOUR)["page_view"], activity.statistics(HOUR)["click"]
    assert (views.events, views.deliveries, views.users, views.sessions) == (10, 11, 3, 5)
    assert views.processing_ms_p50 == pytest.approx(4.5)
    assert views.processing_ms_p95 == pytest.approx(8.55)
    assert (clicks.events, clicks.users, clicks.sessions, clicks.processing_ms_p50) == (1, 0, 1, None)
    assert set(activity.statistics(NEXT_HOUR)) == {"page_view"}
    assert activity.metadata(USER_ACTIVITY_HOURLY, HOUR)["events"] == 11


def test_late_events_change_their_hour_and_events_of_the_future_wait_for_theirs(activity: ActivitySystem) -> None:
    soon = datetime.now(UTC) + timedelta(hours=2)
    activity.put(event("e1"), event("f1", timestamp=soon.isoformat()), event("x", timestamp="1970-01-01T00:00:00Z"))
    activity.drive()
    assert activity.statistics(HOUR)["page_view"].events == 1
    assert not activity.check("event_time_plausible").passed
    activity.put(event("late"))
    activity.drive()
    assert activity.statistics(HOUR)["page_view"].events == 2
    (waiting,) = activity.services.user_activity.hours.stale(until=soon, limit=10)
    assert (waiting.hour.hour, waiting.computed_at) == (soon.hour, None)
    assert len(activity.rows()) == 4


def test_an_hour_is_rebuilt_from_kafka_or_from_the_table_where_kafka_has_purged_it(
    activity: ActivitySystem,
    kafka_server: Any,  # noqa: ANN401 - either broker
) -> None:
    activity.put(event("e1"), event("e2"), event("n1", timestamp="2026-01-15T11:00:00Z"), event("e3"))
    activity.drive()
    before = activity.rows()
    table = activity.services.user_activity.store.opened()
    assert table is not None
    table.update({"page_url": "'spoilt'"})
    kafka_server.delete_records(activity.topic, before[0]["kafka_partition"], 1)
    assert activity.materialize_hour(USER_ACTIVITY_EVENTS, HOUR).success
    after = {row["event_id"]: row["page_url"] for row in activity.rows()}
    assert after == {"e1": "spoilt", "e2": "https://example.com", "n1": "spoilt", "e3": "https://example.com"}
    shown = activity.metadata(USER_ACTIVITY_EVENTS, HOUR)
    assert (shown["offsets_read_again"], shown["offsets_kept"]) == (3, 1)
    assert activity.materialize_hour(USER_ACTIVITY_HOURLY, HOUR).success
    assert activity.statistics(HOUR)["page_view"].events == 3
    assert activity.check("no_duplicate_offsets").passed


def test_latest_skips_earlier_messages_and_reading_from_the_beginning_stores_them(activity: ActivitySystem) -> None:
    activity.settings = changed(activity.settings, "kafka", auto_offset_reset="latest")
    activity.restart()
    activity.put(event("old"))
    assert activity.requests(SENSOR) == []
    activity.put(event("new"))
    activity.drive()
    assert [row["event_id"] for row in activity.rows()] == ["new"]
    for _ in range(2):
        read_again_from_beginning(activity.services.user_activity)
        activity.drive()
        assert [row["event_id"] for row in activity.rows()] == ["old", "new"]
    activity.put(event("newer"))
    activity.drive()
    assert [row["event_id"] for row in activity.rows()] == ["old", "new", "newer"]
    assert activity.statistics(HOUR)["page_view"].events == 3
    assert activity.passed(*CHECKS) == [True] * 3


def test_a_store_that_is_away_fails_the_run_and_the_events_are_stored_later(activity: ActivitySystem) -> None:
    (activity.folder / "state").mkdir(exist_ok=True)
    in_the_way = activity.folder / "state" / "delta"
    in_the_way.write_text("a file where the folder should be")
    activity.put(event("e1"), b"bad", event("e2"))
    (request,) = activity.requests(SENSOR)
    assert not activity.execute(BATCH, request).success
    in_the_way.unlink()
    activity.drive()
    assert [row["event_id"] for row in activity.rows()] == ["e1", "e2"]
    assert len(activity.dead_letters) == 1


def test_a_run_without_offsets_stores_all_messages(activity: ActivitySystem) -> None:
    activity.put(event())
    activity.requests(SENSOR)
    assert activity.run(BATCH).success
    assert len(activity.rows()) == 1
    assert activity.run(BATCH).success
    assert activity.run(HOURLY_BATCH).success


def test_hours_that_a_killed_run_did_not_report_are_reported_by_the_next(activity: ActivitySystem) -> None:
    activity.put(event())
    sink = DeltaSink(activity.services.user_activity)
    store_stream(activity.services, activity.positions, sink, run_id="killed")
    assert activity.times_materialized(USER_ACTIVITY_EVENTS) == 0
    activity.drive()
    activity.drive()
    assert activity.times_materialized(USER_ACTIVITY_EVENTS) == 1


@pytest.mark.long
def test_many_small_commits_are_merged_and_the_rows_stay(activity: ActivitySystem) -> None:
    for number in range(12):
        activity.put(event(f"e{number}"))
        activity.drive()
    assert activity.run("user_activity_maintenance").success
    figures = activity.services.user_activity.store.figures()
    assert figures is not None
    assert (figures.files, figures.rows) == (1, 12)
    activity.put(event("after"))
    activity.drive()
    assert len(activity.rows()) == 13


def test_another_engine_reads_the_table(activity: ActivitySystem) -> None:
    activity.put(*(event(f"e{number}", colour="red") for number in range(5)))
    activity.drive()
    import polars as pl  # heavy

    found = pl.read_delta(activity.settings.user_activity_url)
    assert found["client_info"].struct.field("language").to_list() == ["en-US"] * 5


def test_settings_without_services_request_nothing(activity: ActivitySystem) -> None:
    bare = ActivitySystem(load_settings({}, activity.folder).settings, activity.instance, activity.folder)
    assert bare.requests(SENSOR) == bare.requests(HOURLY_SENSOR) == []
