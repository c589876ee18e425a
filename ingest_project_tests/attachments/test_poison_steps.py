"""For each step of an attachment, one poison item among good ones: the good ones are stored at their first attempt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from ingest_project.attachments.assets import _record
from ingest_project.attachments.attempts import AttemptResult, attempts_at
from ingest_project.attachments.queue import AttachmentRecord
from ingest_project.attachments.results import commit_results
from ingest_project.attachments.tables import AttachmentState, attachment_events, download_outcomes
from ingest_project.contracts.attachments import DownloadStatus
from ingest_project.core.errors import StoreUnavailableError
from ingest_project.operations import SystemResources
from ingest_project.platform.database import writing
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.work_queue.queue import JobState
from ingest_project_tests.attachments.samples import NOW, arrival, stored
from ingest_project_tests.attachments.system import EVENTS, JOBS, AttachmentSystem
from ingest_project_tests.attachments.test_committing import environ, services
from ingest_project_tests.platform.delta.delta_log_reader import rows_of
from ingest_project_tests.services.http_server import HttpServer
from ingest_project_tests.services.kafka import KafkaServer, Server

GOOD = 99
__all__ = ["environ", "services"]  # fixtures


def good_urls(http_server: HttpServer, count: int = GOOD) -> list[str]:
    return [http_server.url(f"/files/{number}.pdf?size=100") for number in range(count)]


def records_by_state(system: AttachmentSystem) -> dict[AttachmentState, list[AttachmentRecord]]:
    found: dict[AttachmentState, list[AttachmentRecord]] = {}
    for record in system.services.attachments.list(limit=10_000):
        found.setdefault(record.state, []).append(record)
    return found


def assert_good_ones_are_stored_at_their_first_attempt(system: AttachmentSystem, count: int = GOOD) -> None:
    stored_ones = records_by_state(system)[AttachmentState.STORED]
    assert len(stored_ones) == count
    assert {(record.attempt, record.replays) for record in stored_ones} == {(1, 0)}
    assert sum(row["status"] == "success" for row in system.results()) == count


BAD_ENTRIES: list[Any] = [
    None, 42, "", " ", [], {}, {"url": None}, {"url": 5}, {"file_name": "a.pdf"}, "x" * 9_000,
    {"url": "http://h/a", "size_bytes": -1}, {"url": "http://h/b", "size_bytes": 10**30},
    {"url": "http://h/c", "checksum": 5}, {"url": "http://h/d", "file_name": "n" * 2_000},
    "http://[", "http://h:99999/a", "not an address", "\x00", "http://h/a\nb",
]  # fmt: skip


def test_bad_entries_among_99_good_addresses_of_one_event_are_failed_attachments_with_their_reasons(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    urls: list[Any] = good_urls(http_server)
    for index, entry in enumerate(BAD_ENTRIES):
        urls.insert(index * 4, entry)
    system.send_event(*urls)
    system.drive_events_once()

    assert_good_ones_are_stored_at_their_first_attempt(system)
    failed = records_by_state(system)[AttachmentState.FAILED]
    assert len(failed) == len(BAD_ENTRIES)
    assert all(record.reason for record in failed)
    assert {record.error_class for record in failed} == {"AttachmentRefusedError", "AddressRejectedError"}
    assert any("attachments[0] cannot be an attachment" in (record.reason or "") for record in failed)
    assert system.services.attachment_events.counts_by_state()[JobState.DONE] == 1
    published = system.on_topic(system.settings.topics.downloads_results)
    assert len(published) == GOOD + len(BAD_ENTRIES)
    assert sum(row["status"] == "failed_permanent" for row in system.results()) == len(BAD_ENTRIES)
    assert len(system.on_topic(system.settings.topics.downloads_dlq)) == len(BAD_ENTRIES)
    system.drive_attachments()
    assert len(records_by_state(system)[AttachmentState.FAILED]) == len(BAD_ENTRIES)


def test_null_means_the_same_as_an_absent_field(attachment_system: AttachmentSystem, http_server: HttpServer) -> None:
    system = attachment_system
    nothing = {"event_type": None, "occurred_at": None, "payload": None}
    entry = {"url": http_server.url("/files/a.pdf?size=9"), "file_name": None, "size_bytes": None, "checksum": None}
    events: list[dict[str, Any]] = [
        {"trace_id": "t-1", "domain": "claims", "attachments": None, **nothing},
        {"trace_id": "t-2", "domain": "claims", "attachments": [entry | {"content_type": None}], **nothing},
    ]
    system.send(system.settings.topics.events_raw, *events)
    optional = ("destination_path", "attempt", "expected_size", "checksum", "file_name", "content_type")
    task = {"trace_id": "t-3", "domain": "claims", "attachment_url": http_server.url("/files/b.pdf?size=9")}
    nulls = dict.fromkeys((*optional, "event_type", "occurred_at"))
    system.send(system.settings.topics.downloads_pending, {**task, **nulls})
    system.drive_attachments()

    assert {record.trace_id for record in records_by_state(system)[AttachmentState.STORED]} == {"t-2", "t-3"}
    assert system.on_topic(system.settings.topics.events_raw_dlq) == []
    assert system.on_topic(system.settings.topics.downloads_dlq) == []


@pytest.mark.parametrize(
    "poison",
    [
        {"occurred_at": "0001-01-01T00:00:00+14:00"},
        {"occurred_at": "9999-12-31T23:59:59-14:00"},
        {"domain": "é" * 60},
        {"attachments": {"url": "http://h/a"}},
    ],
    ids=["before the calendar", "after the calendar", "a domain no folder is named after", "no list"],
)
def test_an_unreadable_event_is_a_dead_letter_and_its_neighbours_are_stored(
    attachment_system: AttachmentSystem, http_server: HttpServer, poison: dict[str, Any]
) -> None:
    system = attachment_system
    for number, url in enumerate(good_urls(http_server, 9)):
        if number == 4:
            task = {"trace_id": "p", "domain": "claims", "attachment_url": url}
            system.send_event("http://h/poison.pdf", trace_id="p")  # a good event, of a bad address
            system.send(system.settings.topics.events_raw, {"trace_id": "p", "domain": "claims", **poison})
            if "attachments" not in poison:
                system.send(system.settings.topics.downloads_pending, task | poison)
        system.send_event(url)
    system.drive_attachments()

    assert_good_ones_are_stored_at_their_first_attempt(system, 9)
    (letter,) = system.on_topic(system.settings.topics.events_raw_dlq)
    assert next(iter(poison)).encode() in (letter.header("dlq.reason") or b"")


def test_an_event_with_a_failing_extraction_fails_alone(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    for url in good_urls(http_server):
        system.send_event(url)
    system.send_event("http://h/poison.pdf", trace_id="poison")
    (request,) = system.requests(EVENTS)
    change = sa.update(attachment_events).where(attachment_events.c.trace_id == "poison").values(body='{"trace_id"')
    with writing(system.services.engine) as connection:
        connection.execute(change)
    system.execute(JOBS[EVENTS], request)

    assert_good_ones_are_stored_at_their_first_attempt(system)
    states = system.services.attachment_events.counts_by_state()
    assert (states[JobState.DONE], states[JobState.FAILED]) == (GOOD, 1)
    with system.services.engine.connect() as connection:
        failed = sa.select(attachment_events.c.reason).where(attachment_events.c.state == JobState.FAILED)
        assert "Not JSON" in connection.execute(failed).scalar_one()


def test_a_message_that_the_broker_does_not_take_costs_the_others_nothing(
    attachment_system: AttachmentSystem, http_server: HttpServer, kafka_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(kafka_server, KafkaServer):
        pytest.skip("the embedded broker takes messages of any size")
    # No other publisher is alive.
    monkeypatch.setattr("ingest_project.platform.kafka.publisher.YOUNG_SECONDS", 0.0)
    system = attachment_system
    topics = system.settings.topics
    kafka_server.create_topic(topics.downloads_dlq, 1, {"max.message.bytes": "100000"})
    missing = http_server.url("/status/404")
    tasks = [{"trace_id": f"t-{n}", "domain": "claims", "attachment_url": missing} for n in range(20)]
    tasks[7] |= {"note": os.urandom(150_000).hex()}
    system.services.writer.send_all(
        topics.downloads_pending, [ProducerRecord(msgspec.json.encode(task)) for task in tasks]
    )
    for url in good_urls(http_server, 20):
        system.send_event(url)
    system.drive_attachments()

    assert_good_ones_are_stored_at_their_first_attempt(system, 20)
    assert len(system.on_topic(topics.downloads_dlq)) == 19
    assert len(system.on_topic(topics.downloads_results)) == 40
    failed = records_by_state(system)[AttachmentState.FAILED]
    attempts = attempts_at(system.services.engine, [record.attachment_key for record in failed])
    unpublished = {key for key, ended in attempts.items() if ended[-1].publish_error}
    assert unpublished == {record.attachment_key for record in failed if record.trace_id == "t-7"}
    assert system.services.outcomes.unpublished() == 0


def ended(services: SystemResources, outcomes: Sequence[AttemptResult]) -> None:
    """These attempts have ended, and their results are published but not committed."""
    keys = [outcome.attachment_key for outcome in outcomes]
    services.attachments.record([arrival(key, offset) for offset, key in enumerate(keys)], NOW)
    services.attachments.begin(keys, "run", NOW)
    services.attachments.finish_attempts(outcomes, "run", NOW)
    services.outcomes.mark_published(outcomes, NOW)


def test_a_row_that_the_delta_table_refuses_is_marked_and_all_others_are_committed_at_once(
    services: SystemResources,
) -> None:
    outcomes = [stored(f"k-{number:02}") for number in range(GOOD + 1)]
    outcomes[41] = msgspec.structs.replace(outcomes[41], domain="é" * 60)
    ended(services, outcomes)

    commit_results(services)

    rows = rows_of(Path(services.attachment_results.url))["attachment_key"].to_pylist()
    assert sorted(rows) == sorted(outcome.attachment_key for outcome in outcomes if outcome is not outcomes[41])
    (attempt,) = attempts_at(services.engine, ["k-41"])["k-41"]
    assert "too long" in (attempt.commit_error or "")
    assert services.outcomes.committed() == GOOD
    assert (services.outcomes.uncommitted(), services.outcomes.open_commits()) == (0, ())
    # What comes next is committed as ever.
    ended(services, [stored("later")])
    assert commit_results(services)
    assert len(rows_of(Path(services.attachment_results.url))) == GOOD + 1


def test_rows_of_two_open_commits_are_all_committed_where_the_first_has_a_bad_one(services: SystemResources) -> None:
    first = [stored(f"a-{number}") for number in range(5)]
    first[2] = msgspec.structs.replace(first[2], domain="é" * 60)
    ended(services, first)
    services.outcomes.number_next_commit()
    ended(services, [stored(f"b-{number}") for number in range(5)])
    services.outcomes.number_next_commit()
    assert services.outcomes.open_commits() == (1, 2)

    commit_results(services)

    rows = rows_of(Path(services.attachment_results.url))["attachment_key"].to_pylist()
    assert sorted(rows) == sorted([f"a-{n}" for n in (0, 1, 3, 4)] + [f"b-{n}" for n in range(5)])


def test_a_table_that_cannot_be_written_loses_no_row(services: SystemResources) -> None:
    ended(services, [stored(f"k-{number}") for number in range(10)])
    folder = Path(services.attachment_results.url)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file where the table should be")

    with pytest.raises(StoreUnavailableError):
        commit_results(services)

    assert services.outcomes.uncommitted() == 10
    folder.unlink()
    commit_results(services)
    assert len(rows_of(folder)) == 10


def test_a_work_queue_that_is_older_than_the_table_loses_no_row(services: SystemResources) -> None:
    for number in range(3):
        ended(services, [stored(f"before-{number}")])
        commit_results(services)
    with services.engine.begin() as connection:
        # As a new database, or one that was restored from a backup of the first commit.
        connection.execute(sa.delete(download_outcomes).where(download_outcomes.c.commit_number > 1))
    ended(services, [stored("after")])

    assert commit_results(services)

    assert "after" in rows_of(Path(services.attachment_results.url))["attachment_key"].to_pylist()
    assert services.outcomes.open_commits() == ()


def test_a_result_that_the_work_queue_refuses_is_recorded_as_a_failure(services: SystemResources) -> None:
    outcomes = [stored(f"k-{number:02}") for number in range(GOOD + 1)]
    result = msgspec.structs.replace(outcomes[7].result, http_status=10**12)
    outcomes[7] = msgspec.structs.replace(outcomes[7], result=result)
    keys = [outcome.attachment_key for outcome in outcomes]
    services.attachments.record([arrival(key, offset) for offset, key in enumerate(keys)], NOW)
    services.attachments.begin(keys, "run", NOW)

    holding = _record(services, outcomes, "run")

    assert sorted(outcome.attachment_key for outcome in holding) == sorted(keys)
    states = services.attachments.counts_by_state()
    assert (states[AttachmentState.STORED], states[AttachmentState.FAILED]) == (GOOD, 1)
    record = services.attachments.get("k-07")
    assert record is not None
    assert "out of range" in (record.reason or "")
    assert next(o for o in holding if o.attachment_key == "k-07").result.status is DownloadStatus.FAILED_PERMANENT
