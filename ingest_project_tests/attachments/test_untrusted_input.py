"""Untrusted input about one attachment costs no other one its file, name or attempt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from ingest_project.attachments.sensors import due_at
from ingest_project.attachments.tables import AttachmentState
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project_tests.attachments.system import AttachmentSystem
from ingest_project_tests.services.http_server import HttpServer, content_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DELAYS = tuple(timedelta(minutes=minutes) for minutes in (5, 10, 20, 40))


def test_two_files_of_one_name_in_one_trace_are_both_kept(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    urls = [http_server.url(f"/files/report.pdf?size={size}") for size in (1_000, 2_000)]
    for url in urls:
        system.send_event(url, trace_id="one-trace")
        system.drive_attachments()

    records = system.services.attachments.list()
    assert {record.state for record in records} == {AttachmentState.STORED}
    store = system.services.attachment_store("claims")
    stored = {record.attachment_url: store.stat(record.destination_path) for record in records}
    assert {url: one and one.size_bytes for url, one in stored.items()} == dict(zip(urls, (1_000, 2_000), strict=True))
    assert {record.destination_path.rpartition("/")[2] for record in records} == {"report.pdf"}


def test_a_task_cannot_store_over_another_attachment_s_file(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    system.send_event(http_server.url("/files/report.pdf?size=3000"))
    own = {"trace_id": "t-1", "domain": "claims", "attachment_url": http_server.url("/files/own.pdf?size=10")}
    system.send(system.settings.topics.downloads_pending, own | {"destination_path": "in/own.pdf"})
    system.drive_attachments()
    victims = {name: system.attachment(name) for name in ("report.pdf", "own.pdf")}
    report, mine = victims["report.pdf"].destination_path, victims["own.pdf"].destination_path
    assert mine == "in/own.pdf"
    day = report.partition("/trace")[0]
    aims = [
        report, report.upper(), f"{report}/x", report.rpartition("/")[0], f"{day}/../{report}", f"./{report}",
        f"{report}.", mine, f"{mine}.", f"in/../{mine}", f"{mine}/x", "in/.own.pdf.json", day, "claims", "claims/2027",
    ]  # fmt: skip
    tasks = [
        own | {"trace_id": f"evil-{n}", "destination_path": aim, "attachment_url": http_server.url(f"/files/e{n}.pdf")}
        for n, aim in enumerate(aims)
    ]
    system.send(system.settings.topics.downloads_pending, *tasks)
    system.drive_attachments()

    assert system.stored_bytes("report.pdf") == content_of("report.pdf", 3_000)
    assert system.stored_bytes("own.pdf") == content_of("own.pdf", 10)
    assert system.attachment("report.pdf").state is AttachmentState.STORED
    failed = [record for record in system.services.attachments.list() if record.trace_id.startswith("evil")]
    assert {record.state for record in failed} == {AttachmentState.FAILED}
    assert all(record.reason for record in failed)
    assert {record.error_class for record in failed} == {"ForbiddenPathError", "PathTakenError"}
    # Nothing that they left is in the way of what comes next.
    system.send_event(http_server.url("/files/next.pdf?size=10"))
    system.drive_attachments()
    assert system.attachment("next.pdf").state is AttachmentState.STORED


@pytest.mark.parametrize(
    "header",
    [b"9999-12-31T23:59:59Z", b"9999-12-31T23:59:59+14:00", b"9999-12-31T23:59:59.999999-14:00", b"2099-01-01"],
)
def test_no_task_is_due_later_than_a_retry_of_ours_may_be(header: bytes) -> None:
    found = due_at(header, DELAYS, NOW)
    assert found is None or NOW < found <= NOW + timedelta(hours=2)


@pytest.mark.parametrize(
    "header", [None, b"", b"soon", b"\xff", b"1" * 5_000, b"0001-01-01T00:00:00+14:00", b"0001-01-01", b"-1", b"1e9"]
)
def test_an_invalid_or_past_due_time_means_now(header: bytes | None) -> None:
    assert due_at(header, DELAYS, NOW) is None


def test_a_due_time_of_ours_is_kept() -> None:
    assert due_at(b"2026-03-01T12:40:00.500+00:00", DELAYS, NOW) == NOW + timedelta(minutes=40, milliseconds=500)


def test_an_event_has_its_attachment_downloaded_now_whatever_a_retry_task_said_of_it(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    url = http_server.url("/files/wanted.pdf?size=10")
    task = {"trace_id": "wanted", "domain": "claims", "attachment_url": url, "attempt": 1_000}
    late = ProducerRecord(msgspec.json.encode(task), headers=(("due-at", b"9999-12-31T23:59:59Z"), ("attempt", b"-1")))
    system.services.writer.send_all(system.settings.topics.downloads_retry_5m, [late])
    system.drive_attachments()
    waiting = system.attachment("wanted.pdf")
    assert waiting.state is AttachmentState.PENDING
    assert waiting.next_attempt_at < datetime.now(UTC) + timedelta(hours=2)

    system.send_event(url, trace_id="wanted")
    system.drive_attachments()
    record = system.attachment("wanted.pdf")
    assert (record.state, record.attempt) == (AttachmentState.STORED, 1)
