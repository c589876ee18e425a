"""The declaration of user activity, and its messages to the rows of its Delta table.

Its own decoder takes a tenth less time than the general one, and gives the reasons of the contract of its messages. It
makes a column at a time: dictionaries of events would cost more than decoding. Each message becomes a row, or is
refused with its reason; which of the two depends on its own bytes alone, never on the messages around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest_project.contracts import MAX_TRACE_LENGTH, trace_id_in
from ingest_project.contracts.columns import StreamColumn
from ingest_project.contracts.enriched_event import (
    NAMES,
    NO_JSON,
    ClientInfo,
    EnrichedEvent,
    ProcessingInfo,
    ServiceInfo,
    check_names,
    decode_enriched_event,
    decode_known_fields,
    have_sound_names,
)
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.settings import Settings
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.declaration import DecodeRows, DeltaTarget, StreamDeclaration
from ingest_project.streams.decoders import Structs, given, present, structs_of
from ingest_project.streams.delta.rows import (
    RefusedMessage,
    StreamRows,
    days_of,
    decode_bisecting,
    hours_in,
    position_columns,
    table_schema,
)
from ingest_project.streams.hours import DAY, FIRST_HOUR
from ingest_project.streams.values import INSTANT, MAX_SHOWN, converted, instants, raw_texts, vanished_numbers

NAME, TABLE = "user_activity", "user_activity_events"
TO_TEXT = partial(pa.array, type=pa.string())
TEXTS = ("event_id", "request_id", "event_type", "user_id", "session_id", "page_url")


def _texts(shape: type[msgspec.Struct]) -> tuple[StreamColumn, ...]:
    return tuple(StreamColumn(name=name, type="text") for name in shape.__struct_fields__)


RESCUED = "_rescued"
COLUMNS = (
    StreamColumn(name="event_id", type="text", required=True),
    StreamColumn(name="request_id", type="text"),
    StreamColumn(name="event_type", type="text", required=True),
    StreamColumn(name="timestamp", type="timestamp", required=True),
    StreamColumn(name="user_id", type="text"),
    StreamColumn(name="session_id", type="text"),
    StreamColumn(name="page_url", type="text"),
    StreamColumn(name="event_data", type="json"),
    StreamColumn(name="client_info", type="struct", fields=_texts(ClientInfo)),
    StreamColumn(name="service_info", type="struct", fields=_texts(ServiceInfo)),
    StreamColumn(
        name="processing_info",
        type="struct",
        fields=(
            StreamColumn(name="received_at", type="timestamp"),
            StreamColumn(name="processed_at", type="timestamp"),
            StreamColumn(name="processing_ms", type="number"),
        ),
    ),
)
SCHEMA = table_schema(COLUMNS, RESCUED)


class UserActivity(StreamDeclaration):
    """Events of users, in a Delta table."""

    is_shipped = True
    rescued = RESCUED
    shown = ("event_type",)

    topic: str

    @property
    def source(self) -> str:
        """The name of the table."""
        return TABLE

    @property
    def id_columns(self) -> tuple[str, ...]:
        """The id of an event; those of users and sessions are no key to one message."""
        return ("event_id",)

    def delta_url(self, settings: Settings) -> str:
        """Return the address that the settings give."""
        return settings.user_activity_url

    def own_decoder(self) -> DecodeRows | None:
        """Return the decoder of EnrichedEvents."""
        return event_rows


def user_activity_stream(settings: Settings) -> UserActivity:
    """Declare user activity from the settings."""
    own = settings.user_activity
    return UserActivity(
        name=NAME,
        description="The Delta table of what users did, by the hour in which they did it.",
        topic=settings.topics.user_activity_events,
        dead_letter_topic=settings.topics.user_activity_events_dlq,
        columns=COLUMNS,
        event_time="timestamp",
        sink=DeltaTarget(commit_messages=own.range_messages, retention_hours=own.retention_hours),
        fresh_within_hours=2,
        warn_after_hours=1,
        batch_messages=own.batch_messages,
        max_parallel_batches=own.max_parallel_batches,
        max_unfinished_seconds=own.max_unfinished_seconds,
        max_implausible_share=own.max_implausible_share,
    )


def event_rows(messages: Sequence[ConsumerRecord], topic_id: str) -> StreamRows:
    """Decode messages. No message makes it fail: one with an unexpected error is found by halving, and refused alone.

    Args:
        messages: as they were read.
        topic_id: id of the topic that they are from.
    """

    def decode(part: Sequence[ConsumerRecord]) -> StreamRows:
        rows = _event_rows(part, topic_id)
        # Storing the rows needs their hours: a row without one must be found here.
        hours_in(rows.table, "timestamp", FIRST_HOUR)
        return rows

    return decode_bisecting(messages, SCHEMA, decode)


def _event_rows(messages: Sequence[ConsumerRecord], topic_id: str) -> StreamRows:
    found = _with_sound_names(structs_of(messages, decode_known_fields, decode_enriched_event))
    kept, events = found.kept, found.structs
    refused: list[RefusedMessage] = found.refused
    unreadable: dict[int, str] = {}
    values = _columns(events, EnrichedEvent)
    columns, names = _event_columns(values, unreadable)
    columns |= position_columns(kept, topic_id)
    columns[RESCUED] = pa.array(found.unknown, pa.binary()).cast(pa.string())
    columns["trace_id"] = _traces(kept, events, columns["request_id"])
    columns[DAY] = days_of(columns["timestamp"], columns["kafka_timestamp"], FIRST_HOUR)
    table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    zeros = np.flatnonzero(pc.equal(columns["processing_info"].field("processing_ms"), 0.0).fill_null(False))
    for row, number in vanished_numbers(found.payloads, zeros.tolist()).items():
        unreadable.setdefault(row, f"{number[:MAX_SHOWN]} is too close to zero")
    wrong = NAMES.problems(found.payloads, names, [values["event_data"]], found.unknown)
    problems = {row: f"{why}." for row, why in unreadable.items()} | {row: str(error) for row, error in wrong.items()}
    if problems:
        for row, why in sorted(problems.items()):
            reason = why if why.startswith("Not ") else f"Not an EnrichedEvent: {why}"
            refused.append((kept[row], UnreadableMessageError(reason)))
        table = table.filter(pa.array([row not in problems for row in range(len(kept))]))
    return StreamRows(table, refused)


def _with_sound_names(found: Structs[EnrichedEvent]) -> Structs[EnrichedEvent]:
    """Refuse events with an invalid type or id."""
    if have_sound_names(found.structs):
        return found
    sound: Structs[EnrichedEvent] = Structs([], [], [], found.refused)
    for message, event, unknown, raw in zip(found.kept, found.structs, found.unknown, found.payloads, strict=True):
        try:
            check_names(event)
        except UnreadableMessageError as error:
            sound.refused.append((message, error))
        else:
            sound.kept.append(message)
            sound.structs.append(event)
            sound.unknown.append(unknown)
            sound.payloads.append(raw)
    return sound


def _traces(messages: Sequence[ConsumerRecord], events: Sequence[EnrichedEvent], requests: pa.Array) -> pa.Array:
    """Return the traces of events; see `_trace_of`."""
    if not any(map(attrgetter("headers"), messages)):
        named = list(map(attrgetter("request_id"), events))
        if all(named) and max(map(len, named), default=0) <= MAX_TRACE_LENGTH and all(map(str.isprintable, named)):
            return requests
    return pa.array(list(map(_trace_of, messages, events)), pa.string())


def _trace_of(message: ConsumerRecord, event: EnrichedEvent) -> str | None:
    """Return the trace that the headers name, or the request that the event was part of."""
    if message.headers and (named := trace_id_in(message.headers)) is not None:
        return named
    request = event.request_id
    return request if request and len(request) <= MAX_TRACE_LENGTH and request.isprintable() else None


def _event_columns(values: dict[str, list[Any]], problems: dict[int, str]) -> tuple[dict[str, pa.Array], Any]:
    """Return the columns of events, and how many of the fields each event has."""
    found: dict[str, tuple[pa.Array, Any]] = {name: _column(values[name], TO_TEXT) for name in TEXTS}
    found |= {
        "timestamp": (instants(values["timestamp"], "timestamp", problems), 1),
        "event_data": (
            _objects(values["event_data"], "event_data", problems),
            1 if all(values["event_data"]) else present(values["event_data"], NO_JSON),
        ),
        "client_info": _struct(values["client_info"], ClientInfo(), SCHEMA.field("client_info").type, problems),
        "service_info": _struct(values["service_info"], ServiceInfo(), SCHEMA.field("service_info").type, problems),
        "processing_info": _struct(
            values["processing_info"], ProcessingInfo(), SCHEMA.field("processing_info").type, problems
        ),
    }
    return {name: column for name, (column, _) in found.items()}, sum(names for _, names in found.values())


def _column(values: list[Any], convert: Callable[[list[Any]], pa.Array]) -> tuple[pa.Array, Any]:
    """Return a column, and 1 for each event that has the field."""
    try:
        return convert(values), 1
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # A value is UNSET. Searching every column for UNSET first would cost as much as the conversion.
        return convert(given(values)), present(values)


def _columns(structs: Sequence[msgspec.Struct], shape: type[msgspec.Struct]) -> dict[str, list[Any]]:
    """Return the values of each field."""
    return {name: list(map(attrgetter(name), structs)) for name in shape.__struct_fields__}


def _struct(
    values: list[Any], nothing: msgspec.Struct, struct: pa.StructType, problems: dict[int, str]
) -> tuple[pa.StructArray, Any]:
    """Return a column of structs, and how many names each event has there; a missing one is no struct of nulls."""
    names: Any = 1
    is_missing = None
    if set(map(type, values)) != {type(nothing)}:
        names = present(values)
        values = given(values)
        is_missing = pa.array([value is None for value in values], pa.bool_())
        values = [nothing if value is None else value for value in values]
    columns = _columns(values, type(nothing))
    fields = []
    for field in struct:
        is_time = field.type == INSTANT
        path = f"processing_info.{field.name}"
        convert = partial(instants, path=path, problems=problems) if is_time else partial(pa.array, type=field.type)
        column, inside = _column(columns[field.name], convert)
        fields.append(column)
        names = names + inside
    return pa.StructArray.from_arrays(fields, fields=list(struct), mask=is_missing), names


def _objects(values: Sequence[msgspec.Raw], path: str, problems: dict[int, str]) -> pa.Array:
    """Return JSON objects as text; null where there is nothing or null."""
    texts = raw_texts(values)
    try:
        if pc.all(pc.starts_with(texts, "{")).as_py() is not False:
            return texts.cast(pa.string())
    except pa.ArrowInvalid:
        pass
    return converted(texts.to_pylist(), _object_text, path, problems, pa.string())


def _object_text(value: bytes) -> str:
    if not value.startswith(b"{"):
        raise ValueError("must be an object")
    return value.decode()
