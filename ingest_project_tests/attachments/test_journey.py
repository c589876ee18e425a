"""From an event on Kafka to stored files, results in Delta, and the partitions in the UI."""

from __future__ import annotations

import msgspec

from ingest_project.attachments.catalog import ATTACHMENTS
from ingest_project.attachments.tables import AttachmentState, attachments
from ingest_project.contracts.attachments import DownloadResult, DownloadTask, attachment_hash
from ingest_project.operations.items import describe, find
from ingest_project.platform.items import ItemRef
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project_tests.attachments.system import HOURS, PENDING, RESULTS, STORED, AttachmentSystem
from ingest_project_tests.journeys.system import changed
from ingest_project_tests.services.http_server import HttpServer, content_of


def topic(system: AttachmentSystem, kind: str) -> list[ConsumerRecord]:
    """Everything on one of the topics `downloads.*`."""
    return system.on_topic(getattr(system.settings.topics, f"downloads_{kind}"))


def told_results(system: AttachmentSystem) -> list[DownloadResult]:
    """What was published of ended attempts."""
    return [msgspec.json.decode(message.value or b"", type=DownloadResult) for message in topic(system, "results")]


def test_the_attachments_of_an_event_are_stored_and_published(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    photo = {"url": http_server.url("/files/photo.jpg?size=70000"), "file_name": "our photo.jpg"}
    trace_id = system.send_event(http_server.url("/files/report.pdf?size=3000"), photo)
    system.drive_attachments()

    record = system.attachment("report.pdf")
    assert record.state is AttachmentState.STORED
    assert record.destination_path.startswith("claims/")
    own_part = f"attachment-{attachment_hash(trace_id, record.attachment_url)}"
    assert record.destination_path.endswith(f"/{trace_id}/{own_part}/report.pdf")
    assert system.stored_bytes("report.pdf") == content_of("report.pdf", 3000)
    assert system.attachment("photo.jpg").destination_path.endswith("/our photo.jpg")
    assert [(row["status"], row["domain"], row["attempt"]) for row in system.results()] == [
        ("success", "claims", 1)
    ] * 2
    assert {result.trace_id for result in told_results(system)} == {trace_id}
    assert [len(topic(system, kind)) for kind in ("pending", "cached", "results", "dlq")] == [2, 2, 2, 0]
    assert len(system.instance.get_dynamic_partitions(ATTACHMENTS)) == 2
    assert [system.times_materialized(asset) for asset in (STORED, HOURS, RESULTS)] == [2, 1, 1]
    assert system.metadata(STORED, record.attachment_key)["sha256"] == record.sha256
    assert set(system.shown_checks().values()) == {"SUCCEEDED"}


def test_an_event_and_its_attachments_are_found_by_every_id_and_their_pages_lead_to_each_other(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system, address = attachment_system, http_server.url("/files/late-report.pdf?size=3000")
    trace_id = system.send_event(address, http_server.url("/status/404"))
    system.drive_attachments()
    record = system.attachment("late-report.pdf")
    key = record.attachment_key
    found = (key, key.rpartition("~")[2], "late-rep", address, str(record.sha256), str(record.stored_path))
    view = system.item(*found)
    assert (view.ref, view.state, view.trace_id) == (ItemRef("attachment", key), "stored", trace_id)
    with view.contents["stored"].open() as path:  # type: ignore[union-attr]
        assert path.read_bytes() == content_of("late-report.pdf", 3000)
    (event,) = (hit for hit in find(system.services, trace_id).hits if hit.kind == "event")
    assert view.facts["Event"] == event.ref
    page = describe(system.services, event.ref)
    assert page is not None
    assert page.position is not None
    place = page.position
    assert system.item(event.key).ref == event.ref
    for text in (str(place), f"{place.topic}:{place.partition}:{place.offset}", f"{place.topic}[{place.partition}]@0"):
        assert sorted(hit.kind for hit in find(system.services, text).hits) == ["attachment", "attachment", "event"]
    assert {hit.state for hit in page.related["attachments"].hits} == {"stored", "failed"}
    dead = next(hit for hit in page.related["attachments"].hits if hit.state == "failed")
    assert "404" in (describe(system.services, dead.ref) or page).reason  # type: ignore[operator]


def test_the_same_address_in_the_same_trace_is_one_attachment_and_the_others_are_counted(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system, address = attachment_system, http_server.url("/files/a.pdf")
    trace_id = system.send_event(address, address)
    system.send_event(address, trace_id=trace_id)
    system.send_event(address)
    system.drive_attachments()

    assert system.services.attachments.counts_by_state()[AttachmentState.STORED] == 2
    assert http_server.count("/files/a.pdf") == 2
    (hour,) = system.services.attachment_events.hours([_only_hour(system)])
    assert (hour.events, hour.addresses, hour.tasks, hour.duplicates) == (3, 4, 2, 2)


def test_addresses_in_the_payload_are_found_by_the_domains_paths(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    system.settings = changed(
        system.settings, "attachments", url_paths={"claims": ["$.documents[*].href"], "*": ["$..scan"]}
    )
    system.restart()
    payload = {
        "documents": [{"href": http_server.url("/files/one.pdf")}],
        "x": {"scan": http_server.url("/files/2.png")},
    }
    system.send_event(payload=payload)
    system.send_event(payload=payload, domain="billing")
    system.drive_attachments()

    found = {(row["domain"], row["attachment_key"].partition("~")[0]) for row in system.results()}
    assert found == {("claims", "one.pdf"), ("claims", "2.png"), ("billing", "2.png")}


def test_a_transient_failure_climbs_the_retry_tiers_and_ends_as_a_dead_letter(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    system.send_event(http_server.url("/status/503?x.pdf"))
    system.drive_attachments(until_retries_are_over=True)

    record = system.attachment("503")
    assert (record.state, record.attempt, record.http_status) == (AttachmentState.FAILED, 5, 503)
    statuses = [(row["attempt"], row["status"]) for row in system.results()]
    assert statuses == [(n, "failed_transient") for n in range(1, 5)] + [(5, "failed_permanent")]
    for number, kind in enumerate(("retry_5m", "retry_10m", "retry_20m", "retry_40m"), start=2):
        (waiting,) = topic(system, kind)
        assert msgspec.json.decode(waiting.value or b"", type=DownloadTask).attempt == number
        assert waiting.header("due-at")
    (dead,) = topic(system, "dlq")
    assert dead.value == record.task.encode()
    assert dead.header("dlq.attempt") == b"5"
    assert dead.header("dlq.error-class") == b"DownloadFailedError"
    assert system.shown_checks() == {record.attachment_key: "FAILED"}


def test_a_permanent_failure_is_dead_at_once_and_can_be_replayed(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    trace_id = system.send_event(http_server.url("/published/late.pdf"))
    system.drive_attachments()
    record = system.attachment("late.pdf")
    assert (record.state, record.attempt, record.http_status) == (AttachmentState.FAILED, 1, 404)
    assert len(topic(system, "dlq")) == 1

    http_server.publish("/published/late.pdf", content_of("late.pdf", 5000))
    (found,) = system.services.attachments.failed([attachments.c.trace_id == trace_id])
    system.services.attachments.replay([found.attachment_key], "a test", 5, 100.0, found.updated_at)
    system.drive_attachments()

    assert system.attachment("late.pdf").state is AttachmentState.STORED
    rows = [(row["replays"], row["attempt"], row["status"]) for row in system.results()]
    assert rows == [(0, 1, "failed_permanent"), (1, 1, "success")]
    assert len(topic(system, "dlq")) == 1
    assert set(system.shown_checks().values()) == {"SUCCEEDED"}


def test_a_person_materialises_a_dead_attachment_and_the_books_are_the_same_as_after_a_replay(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    system.send_event(http_server.url("/published/late.pdf"))
    system.drive_attachments()
    http_server.publish("/published/late.pdf", content_of("late.pdf", 5000))
    key = system.attachment("late.pdf").attachment_key
    job = system.definitions.resolve_job_def("downloads_batch")
    assert job.execute_in_process(instance=system.instance, partition_key=key).success

    record = system.attachment("late.pdf")
    assert (record.state, record.replays) == (AttachmentState.STORED, 1)
    assert [row["replays"] for row in system.results()] == [0, 1]


def test_a_task_of_another_producer_is_served_and_a_broken_one_is_dead_lettered(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    task = {"trace_id": "t-9", "domain": "claims", "attachment_url": http_server.url("/files/own.pdf?size=10")}
    pending = system.settings.topics.downloads_pending
    system.services.writer.send_all(pending, [ProducerRecord(msgspec.json.encode(task)), ProducerRecord(b"not a task")])
    system.drive_attachments()

    assert system.attachment("own.pdf").state is AttachmentState.STORED
    assert [(letter.value, letter.header("dlq.error-class")) for letter in topic(system, "dlq")] == [
        (b"not a task", b"UnreadableMessageError")
    ]


def test_many_tasks_of_another_producer_are_one_run_also_after_events_were_reported(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    system.send_event(http_server.url("/files/first.pdf?size=10"))
    system.drive_attachments()
    tasks = [
        {"trace_id": f"t-{n}", "domain": "claims", "attachment_url": http_server.url("/files/own.pdf?size=10")}
        for n in range(5)
    ]
    system.send(system.settings.topics.downloads_pending, *tasks)
    (run,) = system.drive_attachments()

    assert run.success
    assert system.services.attachments.counts_by_state()[AttachmentState.STORED] == 6
    assert system.times_materialized(STORED) == 6


def test_a_dead_task_that_is_sent_again_is_replayed_a_limited_number_of_times(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    task = {"trace_id": "t-9", "domain": "claims", "attachment_url": http_server.url("/status/404")}
    for _ in range(system.settings.attachments.max_replays + 3):
        system.send(system.settings.topics.downloads_pending, task)
        system.drive_attachments()
    assert system.attachment("404").replays == system.settings.attachments.max_replays
    assert len(topic(system, "dlq")) == system.settings.attachments.max_replays + 1


def test_an_attachment_of_a_hostile_server_is_dead_at_once_with_its_reason(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    system.settings = changed(system.settings, "downloads", max_bytes=1_000_000)
    system.restart()
    expected = {
        http_server.url("/error-page/report.pdf"): "FileRejectedError",
        http_server.redirect_to("http://169.254.169.254/latest/meta-data"): "AddressRejectedError",
        http_server.redirect_to("file:///etc/passwd"): "AddressRejectedError",
        http_server.url("/redirect-loop"): "DownloadRejectedError",
        http_server.url("/endless"): "LimitExceededError",
        http_server.url("/status/451"): "DownloadRejectedError",
    }
    system.send_event(*expected)
    system.drive_attachments()

    rows = system.results()
    assert {row["attachment_url"]: row["error_class"] for row in rows} == expected
    assert {row["status"] for row in rows} == {"failed_permanent"}
    assert all(row["error"] for row in rows)
    assert len(topic(system, "dlq")) == len(rows) == len(expected)


def test_thousands_of_waiting_entries_do_not_delay_the_due_ones(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    address = http_server.url("/files/a.pdf?size=10&n=")
    tasks = [
        ProducerRecord(
            msgspec.json.encode({"trace_id": f"t-{n}", "domain": "d", "attachment_url": f"{address}{n}", "attempt": 5}),
            headers=(("due-at", b"2026-01-01T00:00:00Z" if n % 300 == 299 else b"2099-01-01T00:00:00Z"),),
        )
        for n in range(3_000)
    ]
    system.services.writer.send_all(system.settings.topics.downloads_retry_40m, tasks)
    (run,) = system.drive_attachments()

    assert run.success
    states = system.services.attachments.counts_by_state()
    assert (states[AttachmentState.STORED], states[AttachmentState.PENDING]) == (10, 2_990)
    assert {row["trace_id"] for row in system.results()} == {f"t-{n}" for n in range(299, 3_000, 300)}


def test_a_tick_with_an_unsaved_cursor_claims_the_same_again(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    task = {"trace_id": "t-9", "domain": "claims", "attachment_url": http_server.url("/files/own.pdf?size=10")}
    system.send(system.settings.topics.downloads_pending, task)
    assert len(system.requests(PENDING, save=False)) == 1
    system.drive_attachments()
    assert system.attachment("own.pdf").state is AttachmentState.STORED
    assert len(system.results()) == 1


def _only_hour(system: AttachmentSystem) -> str:
    records = system.instance.fetch_materializations(HOURS, limit=10).records
    (hour,) = {str(record.partition_key) for record in records}
    return hour
