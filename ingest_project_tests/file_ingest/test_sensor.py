"""The sensors on `file-event-queue` and `file_events`: an event is claimed once, or dead-lettered."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus, build_sensor_context
from dagster._core.test_utils import create_run_for_test

from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.file_queue import FileArrival
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project_tests.journeys.system import (
    FILE_EVENTS,
    SHORT_FILE_EVENTS,
    System,
    changed,
    file_event,
    move_to,
    paused,
    readings,
)
from ingest_project_tests.services.kafka import OwnServer, Server


def test_a_message_that_is_not_a_file_event_is_a_dead_letter_with_its_reason_and_intake_continues(
    system: System, tmp_path: Path
) -> None:
    good = system.write("good.csv", readings())
    (system.folder / "way_out.csv").symlink_to(tmp_path / "secret.csv")
    (tmp_path / "secret.csv").write_text("no business of theirs")
    topic = system.settings.topics.file_event_queue
    bad: list[tuple[bytes, str]] = [
        (b"\xff\xfe not JSON", "Not UTF-8"),
        (b"", "empty"),
        (b"[" * 100_000, "must be an object"),
        (json.dumps({"file_name": "a.csv"}).encode(), "file_path"),
        (json.dumps({"file_path": 7, "file_name": "a.csv"}).encode(), "file_path"),
        (json.dumps(file_event(good, size_bytes="many")).encode(), "size_bytes"),
        (json.dumps(file_event(good, source_type="carrier-pigeon")).encode(), "carrier-pigeon"),
        (json.dumps(file_event("in/notes.txt")).encode(), "csv, xlsx, xls"),
        (json.dumps(file_event(f"{system.folder}/../../../etc/passwd.csv")).encode(), "outside the folders"),
        (json.dumps(file_event(system.folder / "way_out.csv")).encode(), "outside the folders"),
        (json.dumps(file_event("x.csv") | {"file_path": "file:///etc/passwd.csv"}).encode(), "not a URL"),
        (json.dumps(file_event(good, metadata={"note": "x" * 5_000_000})).encode(), "bytes"),
    ]
    system.send(topic, *(raw for raw, _ in bad))
    system.send_files(good)

    ticks = [system.tick() for _ in range(2)]
    system.cursors.clear()
    ticks.append(system.tick())

    assert [len(tick.run_requests or []) for tick in ticks] == [1, 0, 1], "read again, its batch counts as never saved"
    letters = {letter.value or b"": letter for letter in system.on_topic(system.settings.topics.file_event_queue_dlq)}
    assert len(system.on_topic(system.settings.topics.file_event_queue_dlq)) == len(bad)
    for raw, reason in bad:
        letter = letters[raw]
        assert reason in (letter.header("dlq.reason") or b"").decode(), letter.headers
        assert letter.header("dlq.original-topic") == topic.encode()
        assert letter.header("dlq.error-class") in {b"UnreadableMessageError", b"ForbiddenPathError", b"PermanentError"}
        assert letter.header("dlq.original-offset")
    assert list(system.files()) == ["good.csv"]


def test_one_file_is_a_run_on_its_partition_and_a_burst_is_a_few_batches(system: System) -> None:
    system.settings = changed(system.settings, "file_ingest", batch_files=4, max_parallel_batches=2)
    system.restart()
    system.send_files(system.write("single.csv", readings()))
    (alone,) = system.requests()
    assert alone.partition_key == system.file("single.csv").file_key
    assert alone.partition_key in system.instance.get_dynamic_partitions("files")

    system.send_files(*(system.write(f"{number}.csv", readings(1)) for number in range(20)))
    batches = system.requests()
    assert [request.partition_key for request in batches] == [None] * 3
    assert [request.tags["ingest/batch_size"] for request in batches] == ["4"] * 3
    keys = [system.services.files.batch(request.tags["ingest/batch_id"]) for request in batches]
    assert len({key for batch in keys for key in batch}) == 12
    assert system.requests() == [], "as many batches are in flight as may be"
    assert system.services.files.counts_by_state()[FileState.PENDING] == 8
    assert len(system.instance.get_dynamic_partitions("files")) == 21


def test_a_message_read_twice_is_one_file_and_one_run(system: System) -> None:
    system.send_files(system.write("a.csv", readings()))
    (lost,) = system.requests(save=False)
    (kept,) = system.requests()
    assert kept.run_key != lost.run_key
    assert system.services.files.batch(lost.tags["ingest/batch_id"]) == ()
    assert system.execute("file_batch", kept).success
    system.cursors.clear()
    assert system.requests() == []
    record = system.file("a.csv")
    assert (record.state, record.attempts) == (FileState.INGESTED, 1)


def test_the_short_form_means_the_file_that_is_there_now(system: System) -> None:
    path = system.write("older.csv", readings())
    short = {"file_path": str(path), "file_name": path.name}
    system.send(system.settings.topics.file_events, short, short)
    (request,) = system.requests(SHORT_FILE_EVENTS)
    assert system.execute("file_batch", request).success
    record = system.file("older.csv")
    assert record.event.size_bytes == path.stat().st_size
    system.send_files(path)
    assert system.requests() == [], "the long form names the same version"
    path.write_text(readings(5))
    system.send(system.settings.topics.file_events, short)
    (newer,) = system.requests(SHORT_FILE_EVENTS)
    assert newer.partition_key != request.partition_key


def test_with_nothing_configured_a_tick_says_in_one_line_what_to_set(instance: DagsterInstance) -> None:
    from ingest_project.definitions import defs  # reads the settings of the process

    for name in (FILE_EVENTS, SHORT_FILE_EVENTS, "polling_queue_sensor"):
        repository = defs.get_repository_def()
        with build_sensor_context(
            instance=instance, resources={"services": SystemResources(Settings())}, repository_def=repository
        ) as context:
            tick = repository.get_sensor_def(name).evaluate_tick(context)
        assert tick.skip_message == (
            "KAFKA_BOOTSTRAP_SERVERS and DATABASE_URL not set. Start the services (ingest dev) or set them."
        )


def test_while_the_broker_is_away_ticks_fail_and_afterwards_they_go_on(
    system: System, own_kafka_server: OwnServer
) -> None:
    move_to(system, own_kafka_server)
    system.send_files(system.write("a.csv", readings()))
    with paused(own_kafka_server, system), pytest.raises(BrokerUnavailableError, match="does not answer"):
        system.tick()
    system.drive()
    assert system.states() == {"a.csv": "ingested"}


def test_a_recreated_topic_is_read_from_its_beginning_with_a_log_line(
    system: System, kafka_server: Server, logged: Callable[[], str]
) -> None:
    topic = system.settings.topics.file_event_queue
    system.send_files(*(system.write(f"{number}.csv", readings(1, f"d{number}")) for number in range(3)))
    system.drive()
    kafka_server.delete_topic(topic)
    kafka_server.create_topic(topic, 4)
    system.send_files(system.write("later.csv", readings()))
    (request,) = system.requests()
    assert request.partition_key == system.file("later.csv").file_key
    assert "created again" in logged()


def test_a_position_that_retention_has_passed_is_said_and_reading_goes_on(
    system: System, kafka_server: Server, logged: Callable[[], str]
) -> None:
    topic = system.settings.topics.file_event_queue
    kafka_server.create_topic(topic, 1)
    system.send_files(system.write("first.csv", readings(1)))
    system.drive()
    system.send_files(*(system.write(f"lost{number}.csv", readings(2)) for number in range(2)))
    kafka_server.delete_records(topic, 0, 3)
    system.send_files(system.write("after.csv", readings(4)))
    system.drive()
    assert system.states() == {"first.csv": "ingested", "after.csv": "ingested"}
    assert "2 messages were removed before they were read" in logged()


def test_orphaned_work_is_requeued_and_finally_failed_visibly(system: System) -> None:
    system.settings = changed(system.settings, "retries", max_attempts=4, launch_grace_seconds=0.0)
    system.restart()
    paths = [system.write(f"{number}.csv", readings()) for number in range(2)]
    system.send_files(*paths)
    sizes = []
    for attempt in range(4):
        requests = system.requests()
        sizes.append([request.tags["ingest/batch_size"] for request in requests])
        if attempt == 1:
            _die_with(system, requests[0].tags)
    assert sizes == [["2"], ["2"], ["1", "1"], ["1", "1"]], "suspects go alone"
    assert system.requests() == []
    for record in system.files().values():
        assert (record.state, record.error_class, record.attempts) == (FileState.FAILED, "RunLostError", 4)
        assert "ended before this was done" in (record.reason or "")
    assert system.requests() == [], "failed for good"


def test_after_a_lost_batch_the_file_that_crashes_its_run_is_found_by_halving(system: System) -> None:
    system.settings = changed(system.settings, "retries", max_attempts=5, launch_grace_seconds=0.0, delay_seconds=0.0)
    system.restart()
    system.send_files(*(system.write(f"{number}.csv", readings(1, f"d{number}")) for number in range(16)))
    culprit = "5.csv"
    lost = []
    while requests := system.requests():
        for request in requests:
            keys = system.services.files.batch(request.tags["ingest/batch_id"])
            if system.file(culprit).file_key in keys:
                lost.append(len(keys))
                _die_with(system, request.tags)
            else:
                assert system.execute("file_batch", request).success
    assert lost == [16, 8, 4, 2, 1]
    files = system.files()
    record = files.pop(culprit)
    assert (record.state, record.error_class) == (FileState.FAILED, "RunLostError")
    assert "marked as failed from outside" in (record.reason or ""), "what Dagster says of the run's end"
    assert {(file.state, file.attempts <= 5) for file in files.values()} == {(FileState.INGESTED, True)}


def test_files_whose_source_is_away_stay_together(system: System) -> None:
    system.settings = changed(system.settings, "retries", delay_seconds=0.0)
    system.restart()
    system.send_files(*(system.write(f"{number}.csv", readings(1, f"d{number}")) for number in range(6)))
    unmounted = None
    for _ in range(4):
        (request,) = system.requests()
        unmounted = unmounted or system.folder.rename(system.folder.with_name("unmounted"))
        system.execute("file_batch", request)
        assert request.tags["ingest/batch_size"] == "6"
    assert unmounted is not None
    unmounted.rename(system.folder)
    system.drive()
    assert set(system.states().values()) == {"ingested"}


def test_an_event_that_the_queue_cannot_store_is_a_dead_letter_and_the_others_are_recorded(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FileArrival.own_columns

    def unrecordable(arrival: FileArrival, now: datetime) -> dict[str, object]:
        row = original(arrival, now)
        return row | {"size_bytes": 2**70} if arrival.event.file_name == "5.csv" else row

    monkeypatch.setattr(FileArrival, "own_columns", unrecordable)
    system.send_files(*(system.write(f"{number}.csv", readings(1, f"d{number}")) for number in range(10)))
    (request,) = system.requests()
    assert request.tags["ingest/batch_size"] == "9"
    (letter,) = system.on_topic(system.settings.topics.file_event_queue_dlq)
    assert b"5.csv" in (letter.value or b"")
    assert b"cannot be processed" in (letter.header("dlq.reason") or b"")


def _die_with(system: System, tags: Mapping[str, str]) -> None:
    """A run takes the batch, and its process is gone."""
    run = create_run_for_test(system.instance, job_name="file_batch", tags=dict(tags), status=DagsterRunStatus.STARTED)
    keys = system.services.files.batch(tags["ingest/batch_id"])
    system.services.files.begin(keys, run.run_id, system.file("0.csv").created_at)
    system.instance.report_run_failed(run)


def test_work_is_requeued_with_a_growing_delay(system: System) -> None:
    system.settings = changed(system.settings, "retries", delay_seconds=30.0, launch_grace_seconds=0.0)
    system.restart()
    system.send_files(system.write("a.csv", readings()))
    assert len(system.requests()) == 1
    assert system.requests() == [], "given back, and to be waited for"
    record = system.file("a.csv")
    assert record.state is FileState.PENDING
    assert 25 < (record.next_attempt_at - record.updated_at).total_seconds() < 35


def test_both_topics_find_every_file_once(system: System) -> None:
    paths = [system.write(f"{number}.csv", readings(1, f"d{number}")) for number in range(6)]
    system.send_files(*paths)
    system.send(system.settings.topics.file_events, *({"file_path": str(p), "file_name": p.name} for p in paths))
    system.drive()
    assert Counter(system.states().values()) == {"ingested": 6}
    assert system.services.warehouse.totals().rows == 6
