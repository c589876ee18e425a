"""`kill -9` after each step on the way of an attachment: run again in the ordinary way, everything is there once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from dagster import DagsterInstance
from dagster._serdes import serialize_value

from ingest_project.attachments.catalog import ATTACHMENTS
from ingest_project.attachments.queue import PENDING_QUEUE, RETRY_QUEUE
from ingest_project.attachments.tables import AttachmentState
from ingest_project.contracts.attachments import DownloadResult
from ingest_project.core.settings import load_settings
from ingest_project.platform.work_queue.queue import JobState
from ingest_project_tests.attachments.system import HOURS, RESULTS, STORED, AttachmentSystem, attachment_environment
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint, SavedCursors, bury_the_dead
from ingest_project_tests.services.http_server import HttpServer, content_of
from ingest_project_tests.services.kafka import Server

WAY = "ingest_project_tests.attachments.system:AttachmentSystem.drive_to_the_end"
EVENTS = "ingest_project.attachments.queue:EventQueue"
QUEUE = "ingest_project.attachments.queue:AttachmentQueue"
OUTCOMES = "ingest_project.attachments.attempts:AttemptResults"
STEPS = "ingest_project.attachments"
STORE = "ingest_project.platform.object_store:FolderStore"
CURSOR_SAVED = "ingest_project_tests.crashes.deadly_process:SavedCursors.__setitem__"
INTENDED = "ingest_project.platform.kafka.publisher:MessageOutbox.record_intent"
SENT = "ingest_project.platform.kafka.producer:TopicWriter.send_all"
MARKED_SENT = "ingest_project.platform.kafka.publisher:MessageOutbox.mark_sent"
APPENDED = "ingest_project.platform.delta.table:DeltaStore.append"

# In the order in which they come. The second call of a step on attachments is of the one that is tried again.
KILL_POINTS = [
    KillPoint("event recorded", f"{EVENTS}.record"),
    KillPoint("event batch requested", f"{EVENTS}.claim"),
    KillPoint("event cursor saved", CURSOR_SAVED),
    KillPoint("events started", f"{EVENTS}.begin"),
    KillPoint("attachments entered", f"{QUEUE}.record_extracted"),
    KillPoint("tasks intended", INTENDED),
    KillPoint("tasks announced", SENT),
    KillPoint("tasks marked as sent", MARKED_SENT),
    KillPoint("attachment partitions added", "dagster:DagsterInstance.add_dynamic_partitions"),
    KillPoint("events finished", f"{EVENTS}.finish"),
    KillPoint("hour shown", f"{STEPS}.assets:report"),
    KillPoint("events marked as reported", f"{EVENTS}.mark_reported"),
    KillPoint("attachments started", f"{QUEUE}.begin"),
    KillPoint("first file downloaded", "ingest_project.platform.http.download:Downloader.download"),
    KillPoint("cached files published", f"{STEPS}.assets:publish_cached"),
    KillPoint("first file uploaded", f"{STORE}._store_temporary"),
    KillPoint("first file described", f"{STORE}._describe"),
    KillPoint("first file renamed", f"{STORE}.put"),
    KillPoint("second file renamed", f"{STORE}.put", 2),
    KillPoint("ends entered", f"{QUEUE}.finish_attempts"),
    KillPoint("first topic sent", SENT, 2),
    KillPoint("second topic sent, not marked", SENT, 3),
    KillPoint("second topic marked as sent", MARKED_SENT, 3),
    KillPoint("results published", f"{STEPS}.assets:publish_outcomes"),
    KillPoint("attachments shown", f"{STEPS}.assets:report", 2),
    KillPoint("results marked as published", f"{OUTCOMES}.mark_published"),
    KillPoint("commit numbered", f"{OUTCOMES}.number_next_commit"),
    KillPoint("committed", APPENDED),
    KillPoint("marked as committed", f"{OUTCOMES}.mark_committed"),
    KillPoint("results shown", f"{STEPS}.assets:report", 3),
    KillPoint("attachments marked as reported", f"{QUEUE}.mark_reported"),
    KillPoint("announced tasks read", f"{QUEUE}.record"),
    KillPoint("task cursor saved", CURSOR_SAVED, 2),
    KillPoint("retry task read", f"{QUEUE}.record", 2),
    KillPoint("retry requested", f"{QUEUE}.claim"),
    KillPoint("retry started", f"{QUEUE}.begin", 2),
    KillPoint("retried file renamed", f"{STORE}.put", 3),
    KillPoint("end of the retry entered", f"{QUEUE}.finish_attempts", 2),
    KillPoint("retry marked as published", f"{OUTCOMES}.mark_published", 2),
    KillPoint("retry committed", APPENDED, 2),
    KillPoint("retry marked as reported", f"{QUEUE}.mark_reported", 2),
]
GOOD = {"one.pdf": 3_000, "two.jpg": 70_000}


@pytest.fixture
def environ(kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path) -> dict[str, str]:
    """The settings of the system that dies and of the one that goes on; what a dead run holds is taken back at once."""
    del instance
    return attachment_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path) | {
        "INGEST_LAUNCH_GRACE_SECONDS": "0",
        "DAGSTER_POSTGRES_URL": os.environ["DAGSTER_POSTGRES_URL"],
    }


@pytest.mark.parametrize("point", KILL_POINTS, ids=lambda point: point.step)
def test_killed_after_a_step_and_run_again_every_attachment_is_there_once_with_one_final_result(  # noqa: PLR0913, PLR0917 - fixtures
    point: KillPoint,
    deadly_process: DeadlyProcess,
    environ: dict[str, str],
    instance: DagsterInstance,
    http_server: HttpServer,
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    system = AttachmentSystem(load_settings(environ, tmp_path).settings, instance, tmp_path / "in")
    system.send_event(
        *(http_server.url(f"/files/{name}?size={size}") for name, size in GOOD.items()),
        http_server.url("/flaky/late.pdf?size=500&failures=1"),
        http_server.url("/status/404"),
    )
    exit_code = deadly_process.drive(point, tmp_path / "in", serialize_value(instance.get_ref()), environ, WAY)
    assert exit_code == -signal.SIGKILL, "it did not reach the step where it should have died"
    assert_nothing_half_is_visible(system)
    bury_the_dead(instance)

    system.cursors = SavedCursors(tmp_path)
    system.drive_to_the_end()
    assert_stored_once(system)
    assert_told_once(system)
    assert_shown(system)
    assert_nothing_is_held(system)
    system.close()


def _visible_files(system: AttachmentSystem) -> list[Path]:
    """What somebody who lists the store sees: neither the hidden files nor what is in them."""
    root = system.folder.parent / "state" / "attachments"
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def assert_nothing_half_is_visible(system: AttachmentSystem) -> None:
    for path in _visible_files(system):
        assert path.read_bytes() == content_of(path.name, (GOOD | {"late.pdf": 500})[path.name])


def _identities(system: AttachmentSystem) -> list[tuple[str, int, str]]:
    def name(key: str) -> str:
        return key.partition("~")[0]

    return [(name(row["attachment_key"]), row["attempt"], row["status"]) for row in system.results()]


def assert_stored_once(system: AttachmentSystem) -> None:
    states = system.services.attachments.counts_by_state()
    assert (states[AttachmentState.STORED], states[AttachmentState.FAILED], sum(states.values())) == (3, 1, 4)
    assert sorted(path.name for path in _visible_files(system)) == ["late.pdf", "one.pdf", "two.jpg"]
    assert_nothing_half_is_visible(system)
    # The retry may come a second time only where the first answer, a 503, was lost with its process.
    late = [identity for identity in _identities(system) if identity[0] == "late.pdf"]
    lost = [("late.pdf", 1, "success")]
    assert late in (lost, [("late.pdf", 1, "failed_transient"), ("late.pdf", 2, "success")])
    rest = [identity for identity in _identities(system) if identity[0] != "late.pdf"]
    assert rest == [("404", 1, "failed_permanent"), ("one.pdf", 1, "success"), ("two.jpg", 1, "success")]
    assert list(system.settings.cache_dir.iterdir()) == []


def assert_told_once(system: AttachmentSystem) -> None:
    def sent(kind: str) -> int:
        return len(system.on_topic(getattr(system.settings.topics, f"downloads_{kind}")))

    results = [
        msgspec.json.decode(message.value or b"", type=DownloadResult)
        for message in system.on_topic(system.settings.topics.downloads_results)
    ]
    ends = Counter((result.attachment_url, result.attempt, result.status.value) for result in results)
    assert ends == Counter((row["attachment_url"], row["attempt"], row["status"]) for row in system.results())
    assert (sent("pending"), sent("cached"), sent("dlq")) == (4, 3, 1)
    assert sent("retry_5m") == sum(result.status.value == "failed_transient" for result in results)


def assert_shown(system: AttachmentSystem) -> None:
    records = system.services.attachments.list()
    stored = {record.attachment_key for record in records if record.state is AttachmentState.STORED}
    assert set(system.instance.get_dynamic_partitions(ATTACHMENTS)) == {record.attachment_key for record in records}
    assert system.instance.get_materialized_partitions(STORED) == stored
    shown = {key: "SUCCEEDED" if key in stored else "FAILED" for key in (r.attachment_key for r in records)}
    assert system.shown_checks() == shown
    (hour,) = system.services.attachment_events.hours(sorted(system.instance.get_materialized_partitions(HOURS)))
    assert (hour.events, hour.addresses, hour.tasks, hour.duplicates) == (1, 4, 4, 0)
    assert system.instance.get_materialized_partitions(RESULTS)
    for check in ("every_event_accounted", "stored_results_match", "nothing_overdue"):
        assert system.check(check).passed, check


def assert_nothing_is_held(system: AttachmentSystem) -> None:
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert system.services.attachments.leases(PENDING_QUEUE, later) == ()
    assert system.services.attachments.leases(RETRY_QUEUE, later) == ()
    assert system.services.attachment_events.leases(system.settings.topics.events_raw, later) == ()
    assert system.services.attachment_events.counts_by_state()[JobState.DONE] == 1
    assert system.services.outcomes.uncommitted() == 0
    assert system.services.outcomes.unpublished() == 0
