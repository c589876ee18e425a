"""From messages on `sales_events` to rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import dagster as dg
import pytest

from ingest_project.core.settings import RetrySettings
from ingest_project.streams.crm.tables import opportunities, projects
from ingest_project.streams.crm.unidentified_store import log_path
from ingest_project.streams.range_record import OffsetRange, RangeState
from ingest_project_tests.journeys.system import changed
from ingest_project_tests.streams.crm.messages import encoded, opportunity, project
from ingest_project_tests.streams.crm.system import SENSOR, CrmSystem

ASSETS = ("opportunities", "projects", "unidentified_messages")


def metadata_of(crm: CrmSystem, asset: str) -> Mapping[str, Any]:
    event = crm.instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None
    assert event.asset_materialization is not None
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def test_each_message_ends_in_the_table_it_belongs_to(crm: CrmSystem) -> None:
    crm.put(encoded(opportunity(), amount="50000.00"), encoded(project()), b"\xff\x00", None, {"event_id": "x"})
    (run,) = crm.drive()
    assert run.success
    assert crm.rows(opportunities)["opp_1"]["amount"] == Decimal("50000.00")
    assert set(crm.rows(projects)) == {"proj_1"}
    kept = crm.unidentified
    assert [message.payload for message in kept] == [b"\xff\x00", None, b'{"event_id": "x"}']
    assert [message.payload_text for message in kept] == [None, None, '{"event_id": "x"}']
    assert [message.reason.split(":")[0] for message in kept] == [
        "Not UTF-8",
        "The message is empty.",
        "Neither an opportunity nor a project",
    ]
    assert {message.kafka_topic for message in kept} == {crm.topic}
    assert kept[0].message_key == b"one"
    for asset in ASSETS:
        shown = metadata_of(crm, asset)
        assert (shown["messages_read"], shown["consumer_lag"]) == (5, 0)
    assert metadata_of(crm, "opportunities")["rows_changed"] == 1
    assert metadata_of(crm, "unidentified_messages")["open_messages"] == 3


def test_a_quiet_topic_asks_for_nothing_and_one_that_is_not_there_yet_is_no_failure(crm: CrmSystem) -> None:
    assert crm.requests(SENSOR) == []
    missing = changed(crm.settings, "topics", sales_events=f"{crm.topic}.other")
    other = CrmSystem(missing, crm.instance, crm.folder)
    assert other.requests(SENSOR) == []
    other.close()


def test_a_run_is_told_exactly_what_to_read(crm: CrmSystem) -> None:
    crm.put(*(opportunity(f"opp_{number}") for number in range(3)))
    (request,) = crm.requests(SENSOR)
    (told,) = request.run_config["ops"]["crm"]["config"]["ranges"]
    assert (told["first_offset"], told["end_offset"]) == (0, 3)
    assert request.run_key == request.tags["ingest/batch_id"]
    crm.put(*(opportunity(f"opp_{number}") for number in range(3, 5)))
    crm.execute("crm_batch", request)
    assert len(crm.rows(opportunities)) == 3
    crm.drive()
    assert len(crm.rows(opportunities)) == 5


def test_a_tick_whose_cursor_was_never_saved_asks_for_the_same_run_again(crm: CrmSystem) -> None:
    crm.put(opportunity())
    (lost,) = crm.requests(SENSOR, save=False)
    crm.put(opportunity("opp_2"))
    (again,) = crm.requests(SENSOR)
    (first, second) = again.run_config["ops"]["crm"]["config"]["ranges"]
    assert [first] == lost.run_config["ops"]["crm"]["config"]["ranges"]
    assert (second["first_offset"], second["end_offset"]) == (1, 2)
    crm.execute("crm_batch", again)
    crm.drive()
    assert set(crm.rows(opportunities)) == {"opp_1", "opp_2"}
    assert crm.services.stream_intervals.seams(crm.topic) == ()
    assert {record.attempts for record in crm.services.stream_ranges.list(crm.topic)} == {1}


def test_a_run_that_was_asked_for_and_never_came_is_asked_for_again(crm: CrmSystem) -> None:
    crm.put(opportunity())
    (lost,) = crm.requests(SENSOR)
    (again,) = crm.requests(SENSOR)
    assert again.run_key != lost.run_key
    crm.execute("crm_batch", again)
    assert len(crm.rows(opportunities)) == 1


def test_far_behind_ranges_are_cut_and_read_side_by_side(crm: CrmSystem) -> None:
    crm.settings = changed(crm.settings, "crm", batch_messages=10)
    crm.restart()
    crm.put(*(opportunity(f"opp_{number}") for number in range(95)))
    requests = crm.requests(SENSOR)
    assert len(requests) == 4
    assert {request.tags["ingest/batch_size"] for request in requests} == {"10"}
    for request in requests:
        crm.execute("crm_batch", request)
    crm.drive()
    assert len(crm.rows(opportunities)) == 95
    ranges = crm.services.stream_ranges.list(crm.topic)
    assert sum(len(record.offsets) for record in ranges) == 95
    assert {record.state for record in ranges} == {RangeState.DONE}


def test_messages_that_were_removed_before_they_were_read_are_said_to_be_lost(
    crm: CrmSystem,
    kafka_server: Any,  # noqa: ANN401 - either broker
) -> None:
    crm.put(*(opportunity(f"opp_{number}") for number in range(4)))
    (request,) = crm.requests(SENSOR)
    (told,) = request.run_config["ops"]["crm"]["config"]["ranges"]
    kafka_server.delete_records(crm.topic, told["partition"], 3)
    assert crm.execute("crm_batch", request).success
    assert set(crm.rows(opportunities)) == {"opp_3"}
    (record,) = crm.services.stream_ranges.list(crm.topic)
    assert (record.state, record.messages) == (RangeState.LOST, 1)
    check = crm.check("no_gap_in_offsets")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)


def test_a_topic_that_was_created_anew_is_read_from_its_beginning(
    crm: CrmSystem,
    kafka_server: Any,  # noqa: ANN401 - either broker
) -> None:
    crm.put(opportunity("opp_1"), opportunity("opp_2"))
    crm.drive()
    kafka_server.delete_topic(crm.topic)
    kafka_server.create_topic(crm.topic, 2)
    crm.restart()
    crm.put(opportunity("opp_3"), b"?")
    crm.drive()
    assert set(crm.rows(opportunities)) == {"opp_1", "opp_2", "opp_3"}
    assert len(crm.unidentified) == 1
    assert crm.check("no_gap_in_offsets").passed


def test_of_one_moment_the_later_offset_wins_and_the_recreated_topic_over_the_old_one_also_when_read_again(
    crm: CrmSystem,
    kafka_server: Any,  # noqa: ANN401 - either broker
) -> None:
    crm.settings = changed(crm.settings, "crm", batch_messages=2)
    crm.restart()
    crm.put(*(opportunity(stage=f"Old {number}") for number in range(3)))
    old = crm.requests(SENSOR)
    for request in (*old, *reversed(old)):
        assert crm.execute("crm_batch", request).success
    assert crm.rows(opportunities)["opp_1"]["stage"] == "Old 2"
    kafka_server.delete_topic(crm.topic)
    kafka_server.create_topic(crm.topic, 2)
    crm.restart()
    crm.put(opportunity(stage="New"))
    crm.drive()
    row = crm.rows(opportunities)["opp_1"]
    assert (row["stage"], row["kafka_offset"], row["kafka_epoch"]) == ("New", 0, 1)


def test_all_checks_pass_where_all_is_well_and_fail_where_it_is_not(crm: CrmSystem) -> None:
    crm.put(opportunity(), project())
    crm.drive()
    names = ("no_gap_in_offsets", "no_duplicate_offsets", "amounts_and_probabilities_in_range", "budgets_in_range")
    assert [crm.check(name).passed for name in names] == [True] * 4
    crm.put(opportunity("opp_2", amount=-1), project("proj_2", budget=-1))
    crm.drive()
    (record, *_) = crm.services.stream_ranges.list(crm.topic)
    one = record.offsets
    ledger, now = crm.services.stream_ranges, record.created_at
    ledger.plan([OffsetRange(one.topic, one.topic_id, one.partition, 3, 5)], [], now)
    ledger.plan([OffsetRange(one.topic, one.topic_id, one.partition, 7, 9)], [], now)
    assert [crm.check(name).passed for name in names] == [False] * 4


def test_a_person_who_names_no_ranges_gets_what_is_due_and_what_was_given_up(crm: CrmSystem) -> None:
    crm.put(opportunity())
    crm.requests(SENSOR)
    ledger = crm.services.stream_ranges
    (record,) = ledger.list(crm.topic)
    ledger.requeue_later(
        [record.range_key], "broken", "X", RetrySettings(max_attempts=1, delay_seconds=0), record.created_at
    )
    assert ledger.counts_by_state(crm.topic)[RangeState.FAILED] == 1
    assert not crm.check("no_gap_in_offsets").passed
    assert crm.run("crm_batch").success
    assert set(crm.rows(opportunities)) == {"opp_1"}
    assert crm.run("crm_batch").success


def test_a_message_the_database_refuses_is_kept_and_the_others_are_stored(crm: CrmSystem) -> None:
    if crm.services.engine.dialect.name != "postgresql":
        pytest.skip("SQLite keeps JSON as text and refuses none")
    # A number of more digits after the point than NUMERIC, and with it jsonb, has room for.
    wild = opportunity("opp_wild", custom={"fine": 0})
    raw = encoded(wild).replace(b'"fine": 0', b'"fine": ' + b"0." + b"1" * 20_000)
    crm.put(opportunity("opp_1"), raw, opportunity("opp_2"))
    crm.drive()
    assert {"opp_1", "opp_2"} <= set(crm.rows(opportunities))
    assert [message.reason[:20] for message in crm.unidentified] == ["The database refuses"]
    assert crm.unidentified[0].payload == raw


def test_unidentified_messages_have_a_log_of_their_own(crm: CrmSystem) -> None:
    log_file = crm.folder / "logs" / "ingest.log"
    crm.settings = changed(crm.settings, "logging", file=log_file)
    crm.restart()
    crm.put(b"not JSON", opportunity(), b"\xff")
    crm.drive()
    path = log_path(log_file)
    assert path is not None
    assert path.name == "ingest.unidentified.log"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("message") or line.get("message_base64") for line in lines] == ["not JSON", "/w=="]
    assert [line["message_id"] for line in lines] == [message.message_id for message in crm.unidentified]


def test_a_log_that_cannot_be_written_stops_nothing(crm: CrmSystem) -> None:
    (crm.folder / "file").write_text("in the way")
    crm.settings = changed(crm.settings, "logging", file=crm.folder / "file" / "ingest.log")
    crm.restart()
    crm.put(b"not JSON")
    (run,) = crm.drive()
    assert run.success
    assert len(crm.unidentified) == 1
