"""From messages on `sales_events` to rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster import DagsterRunStatus
from dagster._core.definitions.sensor_definition import SensorType
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, InstigatorType, SensorInstigatorData
from dagster._core.test_utils import create_run_for_test

from ingest_project.core.errors import PermanentError
from ingest_project.operations import RunningTotals
from ingest_project.platform.capability import EVENT_TO_STORED, PROCESSING
from ingest_project.platform.dagster.control import open_instance, running_sensors
from ingest_project.platform.database import writing
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.crm import unidentified as kept_messages
from ingest_project.streams.crm.records import opportunities, projects
from ingest_project.streams.crm.unidentified import log_of, log_path
from ingest_project.streams.engine import MAX_FAILURES
from ingest_project.streams.from_beginning import read_from_beginning
from ingest_project.streams.positions import sink_positions
from ingest_project.streams.resources import StreamResources
from ingest_project_tests.journeys.system import changed, close
from ingest_project_tests.services.kafka import wait_until
from ingest_project_tests.streams.crm.messages import encoded, opportunity, project
from ingest_project_tests.streams.crm.system import SENSOR, TABLES, CrmSystem

ASSETS = ("opportunities", "projects", "unidentified_messages")


def metadata_of(crm: CrmSystem, asset: str) -> Mapping[str, Any]:
    event = crm.instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None
    assert event.asset_materialization is not None
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def test_each_message_is_found_by_its_id_its_trace_and_its_position_and_has_a_page(crm: CrmSystem) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    deal = ProducerRecord(encoded(opportunity()), b"one", (("traceparent", traceparent.encode()),))
    crm.services.writer.send_all(crm.topic, [deal])
    crm.put(encoded(project()), b"\xff\x00")
    crm.drive()
    (kept,) = crm.unidentified
    partition = kept.kafka_partition
    view = crm.item("opp_1", traceparent, traceparent.split("-")[1], f"{crm.topic}:{partition}:0")
    assert (view.state, view.facts["Stored in"]) == ("stored", "opportunities")
    assert ("amount", Decimal(50000)) in view.rows["opportunities"].page(0, 100).rows
    assert crm.item("proj_1", f"{crm.topic}[{partition}]@1").facts["Stored in"] == "projects"
    view = crm.item(kept.message_id, f"{crm.topic}/{partition}/2")
    assert (view.state, view.contents["message"].open()) == ("unidentified", b"\xff\x00")
    assert view.reason


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


def test_latency_is_measured_of_each_message_and_processing_of_each_batch(crm: CrmSystem) -> None:
    crm.put(opportunity("opp_0"), opportunity("opp_1"), {"event_id": "x"})
    crm.drive()
    crm.put(opportunity("opp_2"))
    crm.drive()
    messages, waited = crm.observed(EVENT_TO_STORED)
    batches, worked = crm.observed(PROCESSING)
    assert (messages, batches) == (4, 2)
    assert 0 < worked < waited < 4 * 60
    RunningTotals(crm.services.engine).count(datetime.now(UTC))
    totals = RunningTotals(crm.services.engine).totals()
    buckets = [
        value for (name, labels), value in totals.items() if name == EVENT_TO_STORED.bucket and labels[0] == "crm"
    ]
    assert sum(buckets) == 4
    assert totals[EVENT_TO_STORED.sum, ("crm",)] == pytest.approx(waited)


def test_a_quiet_topic_requests_nothing_and_a_missing_one_is_no_failure(crm: CrmSystem) -> None:
    assert crm.requests(SENSOR) == []
    missing = changed(crm.settings, "topics", sales_events=f"{crm.topic}.other")
    other = CrmSystem(missing, crm.instance, crm.folder)
    assert other.requests(SENSOR) == []
    other.close()


def test_a_run_stores_up_to_the_offsets_that_were_requested(crm: CrmSystem) -> None:
    crm.put(*(opportunity(f"opp_{number}") for number in range(3)))
    (request,) = crm.requests(SENSOR)
    assert list(crm.ends_in(request).values()) == [3]
    crm.put(*(opportunity(f"opp_{number}") for number in range(3, 5)))
    crm.execute("crm_batch", request)
    assert len(crm.rows(opportunities)) == 3
    crm.drive()
    assert len(crm.rows(opportunities)) == 5
    assert crm.outcome == {"opportunity_messages": 5, "opportunity_rows_changed": 5}


def test_a_run_that_is_done_again_starts_where_the_sink_is(crm: CrmSystem) -> None:
    crm.put(*(opportunity(f"opp_{number}") for number in range(3)))
    (request,) = crm.requests(SENSOR)
    for _ in range(2):
        assert crm.execute("crm_batch", request).success
    assert crm.outcome["opportunity_messages"] == 3
    assert crm.check("no_duplicate_offsets").passed


def test_a_tick_whose_cursor_was_never_saved_and_a_run_that_never_came_lose_nothing(crm: CrmSystem) -> None:
    crm.put(opportunity())
    (lost,) = crm.requests(SENSOR, save=False)
    crm.put(opportunity("opp_2"))
    (again,) = crm.requests(SENSOR)
    assert (list(crm.ends_in(lost).values()), list(crm.ends_in(again).values())) == ([1], [2])
    (once_more,) = crm.requests(SENSOR)
    crm.execute("crm_batch", once_more)
    crm.execute("crm_batch", lost)
    crm.drive()
    assert set(crm.rows(opportunities)) == {"opp_1", "opp_2"}
    assert crm.outcome["opportunity_messages"] == 2


def test_far_behind_a_run_stores_a_bounded_number_of_messages_and_the_next_continues(crm: CrmSystem) -> None:
    crm.settings = changed(crm.settings, "crm", batch_messages=10)
    crm.restart()
    crm.put(*(opportunity(f"opp_{number}") for number in range(25)))
    sizes = []
    while requests := crm.requests(SENSOR):
        (request,) = requests
        sizes.append(request.tags["ingest/batch_size"])
        crm.execute("crm_batch", request)
    assert sizes == ["10", "10", "5"]
    assert len(crm.rows(opportunities)) == 25


def test_messages_that_were_removed_before_they_were_read_are_said_to_be_lost(
    crm: CrmSystem,
    kafka_server: Any,  # noqa: ANN401 - either broker
) -> None:
    crm.put(*(opportunity(f"opp_{number}") for number in range(4)))
    (request,) = crm.requests(SENSOR)
    (partition,) = crm.ends_in(request)
    kafka_server.delete_records(crm.topic, partition, 3)
    assert crm.execute("crm_batch", request).success
    assert set(crm.rows(opportunities)) == {"opp_3"}
    (lost,) = crm.positions.lost()
    assert (lost.offsets.first, lost.offsets.end, lost.messages) == (0, 3, 3)
    assert crm.outcome["lost"] == 3
    assert metadata_of(crm, "opportunities")["offsets_lost"] == 3
    check = crm.check("no_gap_in_offsets")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)


def test_a_topic_that_was_created_again_is_read_from_its_beginning(
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
    assert {one.epoch for one in crm.positions.all()} == {0, 1}
    assert crm.check("no_gap_in_offsets").passed


def test_at_equal_times_the_later_offset_and_the_recreated_topic_win(
    crm: CrmSystem,
    kafka_server: Any,  # noqa: ANN401 - either broker
) -> None:
    crm.settings = changed(crm.settings, "crm", batch_messages=2)
    crm.restart()
    crm.put(*(opportunity(stage=f"Old {number}") for number in range(3)))
    old = crm.requests(SENSOR)
    crm.drive()
    for request in old:
        assert crm.execute("crm_batch", request).success
    assert crm.rows(opportunities)["opp_1"]["stage"] == "Old 2"
    kafka_server.delete_topic(crm.topic)
    kafka_server.create_topic(crm.topic, 2)
    crm.restart()
    crm.put(opportunity(stage="New"))
    crm.drive()
    row = crm.rows(opportunities)["opp_1"]
    assert (row["stage"], row["kafka_offset"], row["kafka_epoch"]) == ("New", 0, 1)


def test_all_checks_pass_on_correct_data_and_fail_on_errors(crm: CrmSystem) -> None:
    crm.put(opportunity(), project())
    crm.drive()
    names = ("no_gap_in_offsets", "no_duplicate_offsets", "amounts_and_probabilities_in_range", "budgets_in_range")
    assert crm.passed(*names) == [True] * 4
    crm.put(opportunity("opp_2", amount=-1), project("proj_2", budget=-1))
    crm.drive()
    (position,) = (one for one in crm.positions.all() if one.next_offset)
    run_id = "a run that is over"
    for _ in range(MAX_FAILURES):
        crm.positions.lease([position], run_id)
    crm.positions.fail([(position, "broken")], run_id, crm.settings.retries, position.updated_at)
    with writing(crm.services.engine) as connection:
        counted = {**position.outcome, "opportunity_messages": 9}
        connection.execute(sa.update(sink_positions).values(outcome=counted))
    assert crm.passed(*names) == [False] * 4
    assert "broken" in str(crm.check("no_gap_in_offsets").metadata["failing"].value)


def test_a_run_without_offsets_also_stores_messages_that_wait_for_a_retry(crm: CrmSystem) -> None:
    crm.put(opportunity())
    crm.requests(SENSOR)
    (position,) = (one for one in crm.positions.all() if one.partition in crm.partitions_with_messages)
    crm.positions.lease([position], "run")
    retries = crm.settings.retries.model_copy(update={"delay_seconds": 60.0})
    crm.positions.fail([(position, "broken")], "run", retries, datetime.now(UTC))
    assert crm.requests(SENSOR) == []
    assert crm.run("crm_batch").success
    assert set(crm.rows(opportunities)) == {"opp_1"}
    assert crm.run("crm_batch").success
    assert crm.positions.current()[position.partition].reason is None


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
    assert path.name == "ingest.unidentified.log"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("message") or line.get("message_base64") for line in lines] == ["not JSON", "/w=="]
    assert [line["message_id"] for line in lines] == [message.message_id for message in crm.unidentified]


def test_the_log_of_unidentified_messages_is_bounded_and_is_where_a_setting_says(
    crm: CrmSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_messages, "MAX_LOG_BYTES", 1_000)
    assert log_of(crm.settings) == crm.settings.state_dir.absolute() / "logs" / "unidentified_messages.log"
    path = crm.folder / "elsewhere" / "unidentified_messages.log"
    crm.settings = changed(crm.settings, "crm", unidentified_log=path)
    crm.restart()
    for number in range(9):
        crm.put(f"not JSON {number} {'x' * 500}".encode())
        crm.drive()
    files = sorted(one for one in path.parent.iterdir() if one.suffix != ".lock")
    assert [one.name for one in files] == [path.name, *(f"{path.name}.{number}" for number in range(1, 5))]
    newest = [json.loads(line) for line in path.read_text().splitlines()]
    assert newest[-1]["message"].startswith("not JSON 8")
    assert newest[-1]["reason"].startswith("Not JSON")
    assert all(one.stat().st_size <= 1_000 for one in files)


def test_from_the_beginning_nothing_is_doubled_and_the_sensor_is_stopped_meanwhile(
    crm: CrmSystem, tmp_path: Path
) -> None:
    crm.put(opportunity(), project(), b"not JSON", opportunity(amount=70000))
    crm.drive()
    before = [crm.rows(table) for table in TABLES]
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    settings = changed(crm.settings, "dagster", home=home)
    services = StreamResources(settings)
    with open_instance(settings) as dagster:
        location = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("ingest"), "__repository__")
        origin = RemoteInstigatorOrigin(location, SENSOR)
        data = SensorInstigatorData(sensor_type=SensorType.STANDARD)
        running = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.DECLARED_IN_CODE, data)
        dagster.add_instigator_state(running)
        run = create_run_for_test(dagster, status=DagsterRunStatus.STARTED)
        positions = crm.positions.all()
        crm.positions.lease(positions, run.run_id)
        done: list[dict[int, int]] = []
        reading = Thread(target=lambda: done.append(read_from_beginning(services, "crm")))
        reading.start()
        wait_until(lambda: not running_sensors(dagster, [SENSOR]))
        assert crm.positions.all()[0].next_offset == positions[0].next_offset, "a run is storing them"
        dagster.delete_run(run.run_id)
        reading.join(30)
        assert running_sensors(dagster, [SENSOR]) == [SENSOR]
    assert sum(done[0].values()) == 4
    assert sum(one.next_offset for one in crm.positions.all()) == 0
    crm.positions.release(crm.positions.all(), run.run_id, is_stored=True)
    crm.drive()
    assert [crm.rows(table) for table in TABLES] == before
    assert crm.check("no_duplicate_offsets").passed
    counted = sum((Counter(one.outcome) for one in crm.positions.all()), Counter[str]())
    assert (counted["unidentified"], counted["opportunity_messages"], counted["project_messages"]) == (1, 2, 1)
    with pytest.raises(PermanentError, match="did you mean crm"):
        read_from_beginning(services, "crn")
    close(services)  # type: ignore[arg-type]


def test_a_log_that_cannot_be_written_stops_nothing(crm: CrmSystem) -> None:
    (crm.folder / "file").write_text("in the way")
    crm.settings = changed(crm.settings, "logging", file=crm.folder / "file" / "ingest.log")
    crm.restart()
    crm.put(b"not JSON")
    (run,) = crm.drive()
    assert run.success
    assert len(crm.unidentified) == 1
