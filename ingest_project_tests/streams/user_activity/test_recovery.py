"""A Delta table that was restored: missing rows are read from Kafka again, once, and reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest_project.streams.delta.recovery import complete_all, runs_between, subtract
from ingest_project.streams.delta.sink import DeltaSink
from ingest_project.streams.engine import settle, store_stream
from ingest_project.streams.user_activity.definitions import USER_ACTIVITY_EVENTS
from ingest_project_tests.fuzz import examples
from ingest_project_tests.streams.user_activity import foreign
from ingest_project_tests.streams.user_activity.events import event
from ingest_project_tests.streams.user_activity.system import ActivitySystem

HOUR, NEXT_HOUR = "2026-01-15-10:00", "2026-01-15-11:00"
BACK: dict[str, Callable[[ActivitySystem, int], None]] = {
    "removed log entries": lambda activity, version: foreign.remove_log_after(activity.services, version),
    "a restore": lambda activity, version: foreign.restore(activity.services, version),
    "a dropped table": lambda activity, _: foreign.drop(activity.services),
    "an overwrite": lambda activity, _: foreign.empty(activity.services),
    "a delete": lambda activity, _: foreign.delete(activity.services, "kafka_offset >= 10 AND kafka_offset < 17"),
}


def numbered(first: int, end: int, **more: object) -> list[dict[str, Any]]:
    return [event(f"e{number}", **more) for number in range(first, end)]


def version(activity: ActivitySystem) -> int:
    return foreign.table_of(activity.services).version()


def hour_key(activity: ActivitySystem) -> int:
    return activity.offsets()[0][0]


def store_everything(activity: ActivitySystem) -> None:
    """Store as a run does, without Dagster around it."""
    sink = DeltaSink(activity.services.user_activity)
    run = store_stream(activity.services, activity.positions, sink, run_id="a run")
    settle(activity.services, activity.positions, run)
    assert run.failures == {}


def went_back(activity: ActivitySystem, how: str) -> int:
    """Ten events, ten more of which two are none, and the table as it was after the first ten; their partition."""
    activity.put(*numbered(0, 10))
    store_everything(activity)
    before, partition = version(activity), hour_key(activity)
    activity.put(*numbered(10, 14), b"no event", *numbered(14, 17, timestamp="2026-01-15T11:00:00Z"), b"nor this")
    activity.put(event("e17"))
    store_everything(activity)
    assert len(activity.offsets()) == 18
    BACK[how](activity, before)
    assert len(activity.offsets()) < 18
    return partition


def is_whole(activity: ActivitySystem) -> bool:
    return [row["event_id"] for row in activity.rows()] == [f"e{number}" for number in range(len(activity.rows()))]


LONG = {"a dropped table", "an overwrite", "a delete"}


@pytest.mark.parametrize("how", [pytest.param(how, marks=pytest.mark.long if how in LONG else ()) for how in BACK])
def test_rows_missing_from_the_table_are_recovered_once_before_new_events_are_stored(
    activity: ActivitySystem, how: str
) -> None:
    partition = went_back(activity, how)
    activity.put(event("e18"))
    assert all(run.success for run in activity.drive())
    assert len(activity.rows()) == 19
    assert is_whole(activity)
    assert len(activity.dead_letters) == 2
    shown = activity.metadata(USER_ACTIVITY_EVENTS, NEXT_HOUR)
    assert shown["rows_recovered"] >= 6
    assert f"{activity.topic}[{partition}]" in shown["recovered"]
    assert [activity.statistics(hour)["page_view"].events for hour in (HOUR, NEXT_HOUR)] == [16, 3]
    assert activity.passed("no_gap_in_offsets", "no_duplicate_offsets") == [True, True]
    # Looked at once, the same commits are no reason to look again.
    assert complete_all(activity.services.user_activity).rows == 0
    activity.put(event("e19"))
    activity.drive()
    assert is_whole(activity)
    assert "recovered" not in activity.metadata(USER_ACTIVITY_EVENTS, HOUR)


@pytest.mark.parametrize("how", ["a restore", pytest.param("a dropped table", marks=pytest.mark.long)])
def test_maintenance_recovers_missing_rows_though_nothing_new_arrives(activity: ActivitySystem, how: str) -> None:
    went_back(activity, how)
    assert activity.run("user_activity_maintenance").success
    assert len(activity.rows()) == 18
    assert is_whole(activity)
    activity.drive()
    assert activity.statistics(NEXT_HOUR)["page_view"].events == 3


@pytest.mark.parametrize("how", ["removed log entries", "a restore"])
def test_the_gap_check_names_the_missing_offsets_and_hours_before_recovery(activity: ActivitySystem, how: str) -> None:
    partition = went_back(activity, how)
    check = activity.check("no_gap_in_offsets")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    (line,) = check.metadata["missing"].value  # type: ignore[misc]
    assert line == f"8 rows of {activity.topic}[{partition}] 10 to 19; hours {HOUR}, {NEXT_HOUR}"
    assert check.metadata["rows_missing"].value == 8
    behind = check.metadata["table_behind"].value
    assert behind == (
        [f"the table is at 10 and lacks {activity.topic}[{partition}] 10 to 19; hours {HOUR}, {NEXT_HOUR}"]
        if how == "removed log entries"
        else []
    )
    found = complete_all(activity.services.user_activity)
    assert [str(span) for span in found.spans] == [f"{activity.topic}[{partition}] 10 to 19"]
    assert (found.rows, sorted(found.hours.values()), found.lost) == (8, [3, 5], [])


@pytest.mark.parametrize("how", ["removed log entries", pytest.param("a restore", marks=pytest.mark.long)])
def test_messages_that_kafka_no_longer_has_are_reported_lost_with_their_offsets_and_hours(
    activity: ActivitySystem,
    kafka_server: Any,  # noqa: ANN401 - either broker
    how: str,
) -> None:
    partition = went_back(activity, how)
    kafka_server.delete_records(activity.topic, partition, 16)
    activity.put(event("e18"))
    assert all(run.success for run in activity.drive())
    gone = {f"e{number}" for number in range(10, 15)}
    assert {row["event_id"] for row in activity.rows()} == {f"e{number}" for number in range(19)} - gone
    check = activity.check("no_gap_in_offsets")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    (line,) = check.metadata["lost"].value  # type: ignore[misc]
    assert "5 rows are missing in the table" in str(line)
    assert f"{activity.topic}[{partition}] 10 to 15; hours {HOUR}, {NEXT_HOUR}" in str(line)
    assert "10 to 15 (5 rows)" in activity.metadata(USER_ACTIVITY_EVENTS, HOUR)["lost_from_table"]
    assert complete_all(activity.services.user_activity).lost == []


def test_messages_lost_with_a_dropped_table_are_reported_once_without_the_dead_letters(
    activity: ActivitySystem,
    kafka_server: Any,  # noqa: ANN401 - either broker
) -> None:
    partition = went_back(activity, "a dropped table")
    kafka_server.delete_records(activity.topic, partition, 15)
    found = complete_all(activity.services.user_activity)
    assert [(str(one.offsets).split("] ")[1], one.messages) for one in found.lost] == [("0 to 13", 14)]
    assert len(activity.rows()) == 4
    assert [one.messages for one in activity.positions.lost()] == [14]
    assert complete_all(activity.services.user_activity).lost == []
    foreign.drop(activity.services)
    assert complete_all(activity.services.user_activity).lost == []


def test_a_table_without_the_column_of_traces_continues(activity: ActivitySystem) -> None:
    activity.put(*numbered(0, 3))
    activity.drive()
    rows = activity.table().drop_columns(["trace_id"])
    foreign.drop(activity.services)
    activity.services.user_activity.store.append(rows, app_id="earlier", version=1)
    activity.put(event("e3", request_id="r-3"))
    activity.drive()
    assert is_whole(activity)
    assert [row["trace_id"] for row in activity.rows()] == [None, None, None, "r-3"]
    assert activity.materialize_hour(USER_ACTIVITY_EVENTS, HOUR).success
    assert [row["trace_id"] for row in activity.rows()] == ["r1", "r1", "r1", "r-3"]


@given(st.sets(st.integers(0, 30)), st.integers(0, 30), st.integers(0, 30))
def test_present_and_missing_offsets_cover_the_whole_range(present: set[int], first: int, length: int) -> None:
    inside = sorted(number for number in present if first <= number < first + length)
    runs = runs_between(inside, first, first + length)
    missing = [number for begin, end in runs for number in range(begin, end)]
    assert sorted([*inside, *missing]) == list(range(first, first + length))
    assert all(begin < end for begin, end in runs)


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_subtracted_offsets_are_in_none_of_the_known_ones(missing: set[int], known: set[int]) -> None:
    runs = runs_between(sorted(set(range(41)) - missing), 0, 41)
    left = subtract(runs, [(number, number + 1) for number in sorted(known)])
    assert sorted(number for first, end in left for number in range(first, end)) == sorted(missing - known)


def happen(activity: ActivitySystem, what: str, number: int) -> None:
    services, before = activity.services, max(0, version(activity) - number)
    match what:
        case "put":
            activity.put(*numbered(0, number), key=b"one" if number % 2 else b"three")
            store_everything(activity)
        case "poison":
            activity.put(b"no event")
            store_everything(activity)
        case "remove":
            foreign.remove_log_after(services, before)
        case "restore" if before < version(activity):
            foreign.restore(services, before)
        case "restore":
            pass  # Nothing is before the first version.
        case "delete":
            foreign.delete(services, f"kafka_offset % 21 = {number}")
        case "drop":
            foreign.drop(services)
            complete_all(services.user_activity)
        case "append":
            foreign.append_rows(services, event_id=["foreign"], colour=["red"])
        case "maintenance":
            complete_all(services.user_activity)
        case _:
            {"empty": foreign.empty, "compact": foreign.compact}[what](services)


OPERATIONS = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 9)),
    st.tuples(st.sampled_from(["remove", "restore"]), st.integers(1, 6)),
    st.tuples(st.just("delete"), st.integers(0, 20)),
    st.tuples(st.sampled_from(["drop", "empty", "compact", "append", "poison", "maintenance"]), st.just(0)),
)


@settings(
    max_examples=examples(10),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=st.lists(OPERATIONS, min_size=1, max_size=6))
def test_after_any_history_the_table_holds_each_offset_exactly_once(
    activity: ActivitySystem, history: Sequence[tuple[str, int]]
) -> None:
    services = activity.services
    activity.put(event("first"), key=b"one")
    activity.put(event("first"), key=b"three")
    store_everything(activity)
    for what, number in history:
        happen(activity, what, number)
    activity.put(event("last"))
    store_everything(activity)
    complete_all(services.user_activity)
    of_ours = Counter((row["kafka_partition"], row["kafka_offset"]) for row in activity.rows() if row["kafka_topic"])
    letters = {
        (int(one.header("dlq.original-partition") or 0), int(one.header("dlq.original-offset") or 0))
        for one in activity.dead_letters
    }
    backlog = services.range_reader.backlog(activity.topic, None, 0)
    assert backlog is not None
    every = {(partition, offset) for partition, end in backlog.ends.items() for offset in range(end)}
    assert set(of_ours) == every - letters
    assert set(of_ours.values()) == {1}
    assert len(letters) == len(activity.dead_letters)
