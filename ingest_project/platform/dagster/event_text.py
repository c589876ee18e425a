"""Serialise many events of one run to the text of Dagster's own `serialize_value`, in a fraction of its time.

Dagster walks through every object of every event in Python, which takes as long as reading and checking a small file.
Here Dagster serialises the common part of the events once, with a placeholder for each part that differs: partition,
description, metadata, and the materialization that a check refers to. Metadata of the common kinds is inserted into
the template of its kind; Dagster serialises any other kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple
from uuid import uuid4

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.events import StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._serdes import pack_value, serialize_value
from dagster_shared.record import replace

_MARK = uuid4().hex
_NO_ENTRIES, _NO_METADATA, _NO_STORAGE_ID = '"metadata_entries": []', '"metadata": {}', '"storage_id": -1'
# No string in an event can match these: inside a string, JSON escapes quotes.
_PLACES = re.compile(f'("{_MARK} [a-z]+"|{"|".join(map(re.escape, (_NO_ENTRIES, _NO_METADATA, _NO_STORAGE_ID)))})')


class _Parts(NamedTuple):
    """An event in parts.

    Args:
        shared: the common part; events with an equal one share a template.
        marked: builds the event's data with placeholders.
        own: the parts that differ, by placeholder: a value, or a member with its name.
    """

    shared: tuple[Any, ...]
    marked: Callable[[], StepMaterializationData | AssetCheckEvaluation]
    own: Mapping[str, Any]


def event_texts(events: Sequence[EventLogEntry], *, sort_keys: bool = True) -> Iterator[str]:
    """Yield the text of each event: a materialization or the result of a check.

    Args:
        events: the events; consecutive ones with the same common part are serialised fast.
        sort_keys: sort the names in each JSON object; False keeps the order of Dagster's classes.
    """
    shared: tuple[Any, ...] = ()
    texts: list[str] = []
    encoder = json.JSONEncoder(sort_keys=sort_keys)
    for entry in events:
        data: Any = entry.get_dagster_event().event_specific_data
        # The common part of an event, and the parts that differ, which placeholders replace.
        parts = (
            _separated_materialization(data) if isinstance(data, StepMaterializationData) else _separated_check(data)
        )
        frame = (with_data(entry, None), *parts.shared)
        if frame != shared:
            marked = with_data(entry, parts.marked())
            shared, texts = frame, _PLACES.split(serialize_value(marked, sort_keys=sort_keys))
        own = {mark: _own_text(mark, part, encoder) for mark, part in parts.own.items()}
        yield "".join(_NAMES.get(text, "") + own[text] if number % 2 else text for number, text in enumerate(texts))


def with_data(entry: EventLogEntry, data: StepMaterializationData | AssetCheckEvaluation | None) -> EventLogEntry:
    """Return the event with this data instead of its own, without validating it again."""
    return entry._replace(dagster_event=entry.get_dagster_event()._replace(event_specific_data=data))


def _separated_materialization(data: StepMaterializationData) -> _Parts:
    made = data.materialization
    own, marks = _with_marks(partition=made.partition)
    own[_NO_ENTRIES] = made.metadata
    bare = data._replace(materialization=made._replace(metadata={}, partition=marks["partition"]))
    return _Parts((bare,), lambda: bare, own)


def _separated_check(found: AssetCheckEvaluation) -> _Parts:
    own, marks = _with_marks(partition=found.partition, description=found.description)
    own[_NO_METADATA] = found.metadata
    target = found.target_materialization_data
    if target is not None:
        own[_NO_STORAGE_ID] = target.storage_id
        target = AssetCheckEvaluationTargetMaterializationData(
            storage_id=-1, run_id=target.run_id, timestamp=target.timestamp
        )
    shared = (found.asset_key, found.check_name, found.passed, target, found.severity, found.blocking)
    marked = partial(replace, found, metadata={}, target_materialization_data=target, **marks)
    return _Parts((*shared, *marks.values()), marked, own)


def _with_marks(**texts: str | None) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Return the texts by placeholder, and the placeholders by name (None for a missing text)."""
    marks = {name: None if text is None else f"{_MARK} {name}" for name, text in texts.items()}
    return {f'"{mark}"': texts[name] for name, mark in marks.items() if mark}, marks


def _own_text(mark: str, part: Any, encoder: json.JSONEncoder) -> str:  # noqa: ANN401 - metadata, or JSON
    """Serialise metadata, or another part that differs; names are sorted if the encoder sorts them."""
    if mark == _NO_ENTRIES:
        entry = _SORTED_ENTRY if encoder.sort_keys else _ENTRY
        texts = (entry % {"label": encoder.encode(label), "data": _text(part[label], encoder)} for label in part)
        return f"[{', '.join(texts)}]"
    if mark == _NO_METADATA:
        labels = sorted(part) if encoder.sort_keys else part
        members = (f"{encoder.encode(label)}: {_text(part[label], encoder)}" for label in labels)
        return f"{{{', '.join(members)}}}"
    return encoder.encode(part)


def _text(value: Any, encoder: json.JSONEncoder) -> str:  # noqa: ANN401 - metadata of any kind
    if kind := _PLAIN.get(type(value)):
        # The encoder takes as long for a number as for a whole object.
        return kind % (str(value.value) if type(value.value) is int else encoder.encode(value.value))
    text = _table_text(value, encoder) if type(value) is dg.TableMetadataValue else ""
    return text or encoder.encode(pack_value(value))


def _table_text(table: dg.TableMetadataValue, encoder: json.JSONEncoder) -> str:
    """Serialise a table; return an empty text if Dagster has to do it, because its columns have descriptions."""
    if table.schema.constraints != _NO_CONSTRAINTS or any(
        column.constraints != _ANY_VALUE or column.description or column.tags for column in table.schema.columns
    ):
        return ""
    records = ", ".join([_RECORD % encoder.encode(dict(record.data)) for record in table.records])
    schema = _schema_text(tuple((column.name, column.type) for column in table.schema.columns), encoder.sort_keys)
    return f'{{"__class__": "TableMetadataEntryData", "records": [{records}], "schema": {schema}}}'


@lru_cache(maxsize=256)
def _schema_text(columns: tuple[tuple[str, str], ...], sort_keys: bool) -> str:  # noqa: FBT001 - a part of the key
    return serialize_value(dg.TableSchema([dg.TableColumn(*column) for column in columns]), sort_keys=sort_keys)


_NAMES = {_NO_ENTRIES: '"metadata_entries": ', _NO_METADATA: '"metadata": ', _NO_STORAGE_ID: '"storage_id": '}
_NO_CONSTRAINTS = dg.TableSchema([]).constraints
_ANY_VALUE = dg.TableColumn("any").constraints
_ENTRY = '{"__class__": "EventMetadataEntry", "label": %(label)s, "entry_data": %(data)s, "description": null}'
_SORTED_ENTRY = '{"__class__": "EventMetadataEntry", "description": null, "entry_data": %(data)s, "label": %(label)s}'
_RECORD = '{"__class__": "TableRecord", "data": %s}'
_PLAIN: dict[type, str] = {
    dg.BoolMetadataValue: '{"__class__": "BoolMetadataEntryData", "value": %s}',
    dg.FloatMetadataValue: '{"__class__": "FloatMetadataEntryData", "value": %s}',
    dg.IntMetadataValue: '{"__class__": "IntMetadataEntryData", "value": %s}',
    dg.JsonMetadataValue: '{"__class__": "JsonMetadataEntryData", "data": %s}',
    dg.TextMetadataValue: '{"__class__": "TextMetadataEntryData", "text": %s}',
}
