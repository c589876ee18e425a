"""A row of a domain's table as an AttachmentEvent, the JSON that `events.raw` carries."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from ingest_project.attachments.eventhouse.queries import INGESTED_AT, KEY, DomainQuery

# What a broker with default limits takes, with room for headers.
MAX_EVENT_BYTES = 1_000_000
LONGEST_REASON = 500
OMITTED = "payload_omitted"

_logger = logging.getLogger(__name__)
_PARSED_FROM_TEXT = ("[", "{")


@dataclass(frozen=True)
class PolledEvent:
    """One event.

    Args:
        event_id: the same for every row with the same key, for ever: publish each id once.
        trace_id: of the event.
        value: the AttachmentEvent, JSON in UTF-8.
    """

    event_id: str
    trace_id: str
    value: bytes


@dataclass(frozen=True)
class RefusedRow:
    """A row that cannot become an event.

    Args:
        event_id: what its event's id would have been.
        reason: why, naming the limit.
        error_class: what it is counted under.
        value: the row, as a JSON object.
    """

    event_id: str
    reason: str
    error_class: str
    value: bytes


def event_of(query: DomainQuery, row: dict[str, Any]) -> PolledEvent | RefusedRow:
    """The event that a row is, or why it is none: whatever one row causes must not stop the rows around it."""
    try:
        return _event_of(query, row)
    except Exception as error:
        _logger.exception("A row of %s cannot become an event.", query.source)
        text = " ".join(str(error).split())[:LONGEST_REASON]
        return refused_row(query, row, f"It cannot become an event: {type(error).__name__}: {text}", error)


def refused_row(query: DomainQuery, row: dict[str, Any], reason: str, error: Exception | None = None) -> RefusedRow:
    """A row with the reason why it is no event; known by its key, or by its content where it has none."""
    # Not msgspec: Kusto's answer may hold lone surrogates and NaN, and a dead letter tells what was there.
    value = json.dumps(row, default=str).encode()
    key = row.get(KEY) or hashlib.sha256(value).hexdigest()
    error_class = type(error).__name__ if error else "EventTooLarge"
    return RefusedRow(f"eventhouse:{query.domain}:{key}", reason, error_class, value)


def _event_of(query: DomainQuery, row: dict[str, Any]) -> PolledEvent | RefusedRow:
    """The event that a row is.

    A payload that makes the event too large for a message is left out, and the event says so: the attachments are
    what matters.

    Args:
        query: which the row came from.
        row: values by column, as JSON has them.
    """
    event_id = f"eventhouse:{query.domain}:{row[KEY]}"
    event = _event(query, row)
    value = msgspec.json.encode(event)
    if len(value) > MAX_EVENT_BYTES:
        omitted = f"{len(value)} bytes are more than the {MAX_EVENT_BYTES} of a message"
        value = msgspec.json.encode(event | {"payload": {OMITTED: omitted}})
    if len(value) > MAX_EVENT_BYTES:
        reason = f"Without its payload the event has {len(value)} bytes; a message has at most {MAX_EVENT_BYTES}."
        return refused_row(query, row, reason)
    return PolledEvent(event_id, event["trace_id"], value)


def _event(query: DomainQuery, row: dict[str, Any]) -> dict[str, Any]:
    columns = query.columns
    named = {columns.trace_id, columns.event_type, columns.occurred_at, columns.attachments, columns.payload}
    others = {name: value for name, value in row.items() if name not in named and not name.startswith("_ingest_")}
    return {
        "trace_id": _text(row.get(columns.trace_id)) or row[KEY],
        "event_type": _text(row.get(columns.event_type)) or f"{query.domain}.event",
        "domain": query.domain,
        "occurred_at": _time(row.get(columns.occurred_at)) or _time(row[INGESTED_AT]),
        "attachments": _attachments(row.get(columns.attachments)),
        "payload": others | _payload(row.get(columns.payload)),
    }


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _time(value: object) -> str:
    """ISO 8601 in UTC, at most six digits of a second; text that is no time stays as it is, for readers to refuse."""
    text = _text(value)
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return text
    return moment.isoformat().replace("+00:00", "Z")


def _attachments(value: object) -> list[Any]:
    value = _parsed(value)
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def _payload(value: object) -> dict[str, Any]:
    value = _parsed(value)
    if value is None or value == "":
        return {}
    return value if isinstance(value, dict) else {"payload": value}


def _parsed(value: object) -> Any:  # noqa: ANN401 - JSON
    """What a dynamic column holds: Kusto sends it as JSON or, depending on how it was made, as text of JSON."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith(_PARSED_FROM_TEXT):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text
