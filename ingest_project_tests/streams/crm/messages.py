"""CRM messages for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ingest_project.contracts.crm_event import CrmKind
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.crm.sink import identify

# The row that a message becomes, and its kind.
CrmRow = tuple[CrmKind, dict[str, Any]]


def opportunity(
    event_id: str = "opp_1", last_modified: str = "2024-03-24T20:40:35Z", **changes: object
) -> dict[str, Any]:
    """An opportunity as the contract shows it."""
    meta = {"source": "Salesforce", "last_modified": last_modified, "tags": ["enterprise"], "notes": "…"}
    return {
        "event_id": event_id,
        "name": "Enterprise Software License Deal",
        "stage": "Negotiation",
        "amount": 50000,
        "probability": 75,
        "expected_close_date": "2024-06-30",
        "account_id": "acc_987654321",
        "owner_id": "usr_456789123",
        "meta_data": meta,
    } | changes


def project(event_id: str = "proj_1", last_modified: str = "2024-03-24T20:45:00Z", **changes: object) -> dict[str, Any]:
    """A project as the contract shows it."""
    meta = {"source": "HubSpot", "last_modified": last_modified, "tags": ["cloud"], "notes": "…"}
    return {
        "event_id": event_id,
        "name": "Cloud Migration Project",
        "status": "In Progress",
        "start_date": "2024-03-01",
        "end_date": "2024-08-15",
        "budget": 150000,
        "account_id": "acc_987654321",
        "owner_id": "usr_456789123",
        "meta_data": meta,
    } | changes


def encoded(message: dict[str, Any], **numbers: str) -> bytes:
    """The message as JSON, with some of its numbers written in these very characters."""
    marked = json.dumps(message | {name: f"<{name}>" for name in numbers})
    for name, text in numbers.items():
        marked = marked.replace(f'"<{name}>"', text)
    return marked.encode()


def row_of(raw: bytes | None) -> CrmRow | str:
    """Return the row that a message becomes and its kind, or the reason why it becomes none."""
    (found,) = rows_of([raw])
    return found


def rows_of(raws: Sequence[bytes | None]) -> list[CrmRow | str]:
    """Return what each message of one batch becomes, see `row_of`; its offset is its place among them."""
    found = identify(
        [ConsumerRecord("sales_events", 0, place, None, None, raw, ()) for place, raw in enumerate(raws)], "g"
    )
    outcomes: dict[int, CrmRow | str]
    outcomes = {one.position.offset: one.reason for one in found.unidentified}
    outcomes |= {row["kafka_offset"]: (kind, row) for kind in CrmKind for row in found.frame(kind).to_dicts()}
    return [outcomes[place] for place in range(len(raws))]
