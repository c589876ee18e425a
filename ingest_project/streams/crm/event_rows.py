"""CRM messages to rows, a column at a time. The outcome of a message depends on its own bytes alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import attrgetter
from typing import Any

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw

from ingest_project.contracts import trace_id_in
from ingest_project.contracts.crm_event import (
    DECODERS,
    EVENTS,
    META_FIELDS,
    NAMES,
    NUMBERS,
    OPTIONAL_FIELDS,
    CrmEvent,
    CrmKind,
    Meta,
    decode_crm_event,
    decode_known_meta,
    decode_meta,
    has_sound_names,
    needs_change,
    number_of,
    require_names,
    storable,
)
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.decoders import VALUE, Refusal, Structs, given, present, structs_of
from ingest_project.streams.delta.rows import position_columns
from ingest_project.streams.values import converted, instants, raw_texts

# Numbers that are stored in the characters they were sent in.
PLAIN_NUMBER = r"^(0|-?[1-9]\d{0,17})(\.\d{1,18})?$"

_encoder = msgspec.json.Encoder()
_nothing, _null = Meta(""), Raw(b"null")


@dataclass
class CrmRows:
    """Messages as rows.

    Args:
        frames: rows by kind.
        refused: messages that are of neither kind, with the reason.
    """

    frames: dict[CrmKind, pl.DataFrame] = field(default_factory=dict)
    refused: list[tuple[ConsumerRecord, Refusal]] = field(default_factory=list)


def crm_rows(messages: Sequence[ConsumerRecord], topic_id: str, epoch: int) -> CrmRows:
    """Decode messages of one topic.

    Args:
        messages: as they were read.
        topic_id: id of the topic.
        epoch: number of that topic among those of the same name.
    """
    rows = CrmRows()
    kept: list[ConsumerRecord] = []
    events: list[CrmEvent] = []
    unknown: list[bytes | None] = []
    payloads: list[bytes] = []
    values = [message.value or b"" for message in messages]
    payload_of = (lambda one: one.value and storable(one.value)) if any(map(needs_change, values)) else VALUE
    # Try each message first as the kind that it resembles; its fields decide its kind.
    looks = [b'"stage"' in value for value in values]
    for kind, part in (
        (CrmKind.OPPORTUNITY, list(compress(messages, looks))),
        (CrmKind.PROJECT, [one for one, is_opportunity in zip(messages, looks, strict=True) if not is_opportunity]),
    ):
        found = structs_of(part, DECODERS[kind], decode_crm_event, payload_of)
        kept += found.kept
        events += found.structs
        unknown += found.unknown
        payloads += found.payloads
        rows.refused += found.refused
    for kind, event_type in EVENTS.items():
        is_kind = [type(event) is event_type for event in events]
        of_kind = Structs(
            list(compress(kept, is_kind)),
            list(compress(events, is_kind)),
            list(compress(unknown, is_kind)),
            rows.refused,
            list(compress(payloads, is_kind)),
        )
        rows.frames[kind] = _rows_of(kind, of_kind, topic_id).with_columns(kafka_epoch=pl.lit(epoch, pl.Int64))
    return rows


def _rows_of(kind: CrmKind, found: Structs[CrmEvent], topic_id: str) -> pl.DataFrame:
    """Return the rows of messages of one kind; messages with invalid values are added to the refused."""
    problems: dict[int, str] = {}
    messages, events = found.kept, found.structs
    values = {name: list(map(attrgetter(name), events)) for name in EVENTS[kind].__struct_fields__}
    metas = _metas(values["meta_data"], problems)
    for row in problems:
        # Perhaps it is not even UTF-8.
        values["meta_data"][row] = _null
    more = {name: list(map(attrgetter(name), metas)) for name in META_FIELDS}
    names = len(values) - len(OPTIONAL_FIELDS[kind])
    for name, nothing in OPTIONAL_FIELDS[kind].items():
        names += present(values[name], nothing)
        values[name] = given(values[name])
    for row, error in NAMES.problems(found.payloads, names, [values["meta_data"]], found.unknown).items():
        problems.setdefault(row, str(error))
    _check_names(events, problems)
    columns: dict[str, Any] = {**values, "other_fields": pa.array(found.unknown, pa.binary()).cast(pa.string())}
    columns |= {name: _numbers(values[name], name, problems) for name in NUMBERS[kind]}
    columns["meta_data"] = raw_texts(values["meta_data"]).cast(pa.string())
    columns |= {name: given(more[name]) for name in ("source", "notes")}
    columns["tags"] = [None if tags is None else _encoder.encode(tags).decode() for tags in given(more["tags"])]
    columns["last_modified"] = instants(more["last_modified"], "meta_data.last_modified", problems)
    columns["content_sha256"] = [hashlib.sha256(message.value or b"").hexdigest() for message in messages]
    columns["trace_id"] = [trace_id_in(message.headers) if message.headers else None for message in messages]
    positions = position_columns(messages, topic_id)
    del positions["kafka_timestamp"]
    frame = pl.DataFrame({name: _series(name, column) for name, column in (columns | positions).items()})
    if problems:
        frame = frame.filter(pl.Series([row not in problems for row in range(len(messages))]))
    found.refused.extend((messages[row], _refusal(kind, reason)) for row, reason in problems.items())
    return frame


def _metas(raws: Sequence[Raw], problems: dict[int, str]) -> list[Meta]:
    try:
        return list(map(decode_known_meta, raws))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    found: list[Meta] = []
    for row, raw in enumerate(raws):
        try:
            found.append(decode_meta(raw))
        except ValueError as error:
            problems[row] = f"meta_data: {error}"
            found.append(_nothing)
    return found


def _check_names(events: Sequence[CrmEvent], problems: dict[int, str]) -> None:
    """Find invalid ids and names of records."""
    if has_sound_names(events):
        return
    for row, event in enumerate(events):
        try:
            require_names(event)
        except UnreadableMessageError as error:
            problems.setdefault(row, str(error))


def _numbers(raws: Sequence[Raw], name: str, problems: dict[int, str]) -> pa.Array:
    """Return numbers as texts, without exponents."""
    try:
        texts = raw_texts(raws).cast(pa.string())
        if pc.all(pc.match_substring_regex(texts, PLAIN_NUMBER)).as_py() is not False:
            return texts
    except pa.ArrowInvalid:
        pass
    written = [bytes(raw).decode(errors="replace") for raw in raws]
    given = [None if text in {"", "null"} else text for text in written]
    return converted(given, lambda text: format(number_of(text), "f"), name, problems, pa.string())


def _series(name: str, column: Any) -> pl.Series:  # noqa: ANN401 - an Arrow array, or a list of texts or dates
    if isinstance(column, pa.Array):
        return pl.Series(name, pl.from_arrow(column))
    return pl.Series(name, column, pl.Date if name.endswith("_date") else pl.String)


def _refusal(kind: CrmKind, reason: str) -> UnreadableMessageError:
    """Return the reason, a sentence or the end of one."""
    beginning = "" if reason.endswith(".") else f"Not {'an' if kind is CrmKind.OPPORTUNITY else 'a'} {kind}: "
    return UnreadableMessageError(f"{beginning}{reason.rstrip('.')}.")
