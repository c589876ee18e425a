"""One bad event or task among ninety-nine good ones fails alone in the ticks that consume them."""

from __future__ import annotations

import json

from ingest_project_tests.attachments.system import EVENTS, PENDING, AttachmentSystem
from ingest_project_tests.journeys.test_poison import DEEP, GOOD, among, change_table, poisoned, reasons


def test_ninety_nine_events_are_stored_at_their_first_attempt_next_to_every_kind_of_poison(
    attachment_system: AttachmentSystem,
) -> None:
    system = attachment_system
    change_table(system, "ALTER TABLE attachment_events ADD CHECK (trace_id <> 'refused-by-the-database')")
    event: dict[str, object] = {"trace_id": "t", "domain": "claims", "attachments": [], "payload": {}}
    good = [json.dumps(event | {"trace_id": f"good-{n}"}).encode() for n in range(GOOD)]
    bad = [
        b"\xff\xfe",
        poisoned(event, "trace_id", '"\\ud800"'),
        poisoned(event, "payload", "9" * 5_000),
        poisoned(event, "payload", DEEP * 4),
        json.dumps(event | {"trace_id": "refused-by-the-database"}).encode(),
    ]
    system.send(system.settings.topics.events_raw, *among(good, bad))
    (request,) = system.requests(EVENTS)
    assert request.tags["ingest/batch_size"] == str(GOOD)
    found = reasons(system, system.settings.topics.events_raw_dlq)
    assert sorted(found) == sorted(bad)
    assert "check constraint" in found[bad[-1]]


def test_ninety_nine_tasks_are_stored_at_their_first_attempt_next_to_every_kind_of_poison(
    attachment_system: AttachmentSystem,
) -> None:
    system = attachment_system
    change_table(system, "ALTER TABLE attachments ADD CHECK (trace_id <> 'refused-by-the-database')")
    task: dict[str, object] = {"trace_id": "t", "domain": "claims", "attachment_url": "https://h/a.pdf"}
    good = [json.dumps(task | {"trace_id": f"good-{n}"}).encode() for n in range(GOOD)]
    bad = [
        poisoned(task, "occurred_at", '"0001-01-01T00:00:00+14:00"'),
        poisoned(task, "occurred_at", '"9999-12-31T23:59:59-14:00"'),
        poisoned(task, "expected_size", "9" * 5_000),
        json.dumps(task | {"trace_id": "refused-by-the-database"}).encode(),
    ]
    system.send(system.settings.topics.downloads_pending, *among(good, bad))
    (request,) = system.requests(PENDING)
    assert request.tags["ingest/batch_size"] == str(GOOD)
    found = reasons(system, system.settings.topics.downloads_dlq)
    assert sorted(found) == sorted(bad)
    assert "check constraint" in found[bad[-1]]
    assert {record.trace_id for record in system.services.attachments.list(limit=1_000)} == {
        f"good-{n}" for n in range(GOOD)
    }
    assert len(system.instance.get_dynamic_partitions("attachments")) == GOOD
