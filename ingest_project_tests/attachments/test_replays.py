"""Repeated materialisation of hours whose addresses were missed, and replays of dead attachments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from ingest_project.attachments.catalog import ATTACHMENTS, hour_of_arrival
from ingest_project.attachments.tables import AttachmentState
from ingest_project_tests.attachments.system import HOURS, RESULTS, STORED, STORED_CHECK, AttachmentSystem
from ingest_project_tests.journeys.check_results import behind_its_back
from ingest_project_tests.journeys.system import changed
from ingest_project_tests.services.http_server import HttpServer, content_of


def hours_ago(hours: int) -> str:
    now = datetime.now(UTC)
    return hour_of_arrival(now - timedelta(hours=hours), now)


def mend(system: AttachmentSystem, **paths: list[str]) -> None:
    """Set other paths to addresses, and begin again with them."""
    system.settings = changed(system.settings, "attachments", url_paths=paths)
    system.restart()


def test_rematerialised_hours_publish_attachments_that_fixed_paths_find_once(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    mend(system, claims=["$.misspelt"])
    for number in range(2):
        scan = {"scan": http_server.url(f"/files/scan-{number}.pdf?size=500")}
        system.send_event(http_server.url(f"/files/declared-{number}.pdf?size=500"), payload=scan)
    system.drive_attachments()
    events = system.services.attachment_events
    first, second = sorted(events.of_hour(hours_ago(0)) or events.of_hour(hours_ago(1)))
    for key, hours in ((first, 2), (second, 1)):
        behind_its_back(system, "UPDATE attachment_events SET hour = %s WHERE event_key = %s", hours_ago(hours), key)

    mend(system, claims=["$.scan"])
    assert system.materialize_selected(HOURS, hours_ago(2)).success
    (found,) = system.services.attachments.list(AttachmentState.PENDING)
    assert (found.attempts, found.reason) == (0, None), "what is found is no leftover of a lost run"
    system.drive_attachments()
    assert system.services.attachments.counts_by_state()[AttachmentState.STORED] == 3
    assert system.metadata(HOURS, hours_ago(2))["addresses"] == 2

    assert system.materialize_selected(HOURS, hours_ago(2), hours_ago(1)).success
    system.drive_attachments()
    assert system.services.attachments.counts_by_state()[AttachmentState.STORED] == 4
    assert [system.metadata(HOURS, hours_ago(hours))["tasks"] for hours in (2, 1)] == [2, 2]
    assert len(system.on_topic(system.settings.topics.downloads_pending)) == 4
    assert [http_server.count(f"/files/{kind}-{n}.pdf") for kind in ("declared", "scan") for n in range(2)] == [1] * 4
    assert {(row["replays"], row["attempt"]) for row in system.results()} == {(0, 1)}
    assert system.check("every_event_accounted").passed


def test_a_selection_of_dead_and_stored_attachments_is_downloaded_again_with_an_audit(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    late, stored = "/published/late.pdf", "/files/stored.pdf"
    system.send_event(http_server.url(late), http_server.url(f"{stored}?size=500"))
    system.drive_attachments()
    http_server.publish(late, content_of("late.pdf", 5_000))
    keys = list(system.instance.get_dynamic_partitions(ATTACHMENTS))
    assert system.materialize_selected(STORED, keys[0], keys[-1]).success

    assert system.stored_bytes("late.pdf") == content_of("late.pdf", 5_000)
    assert http_server.count(stored) == 2
    rows = [(row["attachment_key"].partition("~")[0], row["replays"], row["status"]) for row in system.results()]
    assert rows == [
        ("late.pdf", 0, "failed_permanent"),
        ("late.pdf", 1, "success"),
        ("stored.pdf", 0, "success"),
        ("stored.pdf", 1, "success"),
    ]
    assert set(system.shown_checks().values()) == {"SUCCEEDED"}


def test_a_stored_attachment_that_cannot_be_downloaded_again_stays_stored(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    path = "/published/signed.pdf"
    http_server.publish(path, content_of("signed.pdf", 5_000))
    system.send_event(http_server.url(path))
    system.drive_attachments()
    (key,) = system.instance.get_dynamic_partitions(ATTACHMENTS)
    dead_before = len(system.on_topic(system.settings.topics.downloads_dlq))

    http_server.withdraw(path)  # as a signed address does that has expired
    assert system.materialize_selected(STORED, key).success
    system.drive_attachments()

    record = system.services.attachments.get(key)
    assert record is not None
    assert record.state is AttachmentState.STORED
    assert "the last attempt to download it again failed" in (record.reason or "")
    assert system.stored_bytes("signed.pdf") == content_of("signed.pdf", 5_000)
    assert len(system.on_topic(system.settings.topics.downloads_dlq)) == dead_before
    assert [row["status"] for row in system.results()] == ["success", "failed_transient"]
    shown = system.metadata(STORED, key)
    assert (shown["size_bytes"], "404" in shown["not_downloaded_again"]) == (5_000, True)
    (execution,) = system.instance.event_log_storage.get_asset_check_execution_history(STORED_CHECK, limit=1)
    assert execution.event is not None
    evaluation = execution.event.dagster_event.asset_check_evaluation_data  # type: ignore[union-attr]
    assert (evaluation.passed, evaluation.severity.value) == (False, "WARN")
    assert system.check("attachment_stored", key).passed, "the bytes are there"
    assert system.check("every_event_accounted").passed

    http_server.publish(path, content_of("signed.pdf", 7_000))
    assert system.materialize_selected(STORED, key).success
    assert system.stored_bytes("signed.pdf") == content_of("signed.pdf", 7_000)
    fixed = system.services.attachments.get(key)
    assert fixed is not None
    assert (fixed.state, fixed.reason, fixed.size_bytes) == (AttachmentState.STORED, None, 7_000)


def test_a_stored_attachment_whose_bytes_are_gone_and_cannot_be_had_again_is_dead(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    path = "/published/lost.pdf"
    http_server.publish(path, content_of("lost.pdf", 500))
    system.send_event(http_server.url(path))
    system.drive_attachments()
    (key,) = system.instance.get_dynamic_partitions(ATTACHMENTS)
    http_server.withdraw(path)
    Path(system.attachment("lost.pdf").stored_path or "").unlink()

    assert not system.materialize_selected(STORED, key).success
    record = system.services.attachments.get(key)
    assert record is not None
    assert record.state is AttachmentState.FAILED


def test_replays_become_due_at_the_requested_rate_and_are_limited(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system, queue = attachment_system, attachment_system.services.attachments
    system.send_event(*(http_server.url(f"/published/{number}.pdf") for number in range(3)))
    system.drive_attachments()
    keys = [record.attachment_key for record in queue.failed()]
    assert queue.replay(keys, "a test", 1, 1 / 3_600, datetime.now(UTC)) == tuple(keys)
    system.drive_attachments()
    assert [len(http_server.received(f"/published/{number}.pdf")) for number in range(3)].count(2) == 1

    (again,) = queue.failed()
    assert (again.attachment_key, again.replays) == (keys[0], 1)
    assert queue.replay(keys, "a test", 1, 1.0, datetime.now(UTC)) == ()
    dead = system.on_topic(system.settings.topics.downloads_dlq)
    assert sorted(letter.header("replays") or b"" for letter in dead) == [b"0", b"0", b"0", b"1"]


def test_an_hour_of_results_shows_the_present_rows_and_commits_the_missing_ones(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    system.send_event(http_server.url("/files/a.pdf?size=500"))
    system.drive_attachments()
    (hour,) = {str(record.partition_key) for record in system.instance.fetch_materializations(RESULTS, limit=9).records}
    behind_its_back(system, "UPDATE download_outcomes SET committed_at = NULL")
    assert system.materialize_selected(RESULTS, hour).success
    shown = system.metadata(RESULTS, hour)
    assert (shown["dagster/row_count"], shown["success"], shown["table_version"]) == (1, 1, 1)
