"""Queries, rows and accesses that the tests of Eventhouse share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ingest_project.attachments.eventhouse.client import EventhouseClient
from ingest_project.attachments.eventhouse.polling import Page, QueryCursor, poll, position_from_json
from ingest_project.attachments.eventhouse.queries import DomainQuery
from ingest_project.core.settings import EventhouseSettings
from ingest_project_tests.services.kusto_server import KustoServer

TABLE = "ClaimDocuments"


def access_to(server: KustoServer, **changes: Any) -> EventhouseSettings:  # noqa: ANN401 - fields of different types
    """Access to the tests' own cluster, whose host is trusted by name."""
    access = EventhouseSettings(
        address=server.address, authentication="none", trusted_hosts=["127.0.0.1"], timeout_seconds=2
    )
    return access.model_copy(update=changes)


def claims(**changes: Any) -> DomainQuery:  # noqa: ANN401 - fields of different types
    """The query of a domain."""
    values = {"domain": "claims", "database": "events", "table": TABLE, "key": ["EventId"]}
    return DomainQuery.model_validate(values | changes)


def row(number: int, **changes: object) -> dict[str, Any]:
    """One row; numbers distinguish them."""
    return {
        "EventId": f"event-{number:05}",
        "trace_id": f"trace-{number:05}",
        "event_type": "claim.documents.received",
        "occurred_at": "2026-03-01T10:00:00.1234567Z",
        "attachments": [f"https://files.example.com/{number}.pdf"],
        "payload": {"number": number},
    } | changes


def rows(first: int, last: int) -> list[dict[str, Any]]:
    """Rows from one number to another, both included."""
    return [row(number) for number in range(first, last + 1)]


def traces(pages: Sequence[Page]) -> list[str]:
    """The trace ids of the events of several pages, in order."""
    return [event.trace_id for page in pages for event in page.events]


def expected(first: int, last: int) -> list[str]:
    """The trace ids of `rows(first, last)`."""
    return [f"trace-{number:05}" for number in range(first, last + 1)]


def poll_all(client: EventhouseClient, query: DomainQuery, position: QueryCursor | None = None) -> list[Page]:
    """Every page there is, each from what was saved of the last position, as another process would go on."""
    pages = [poll(client, query, position)]
    while pages[-1].more:
        pages.append(poll(client, query, position_from_json(pages[-1].position.to_json())))
    return pages


def value_of(page: Page, number: int = 0) -> dict[str, Any]:
    """One event's JSON."""
    event: dict[str, Any] = json.loads(page.events[number].value)
    return event
