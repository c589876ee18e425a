"""Events about many partitions as Dagster would write them, each text cut from one that Dagster did write.

Dagster takes about 0.3 ms to build and serialise one event; what a step tells of one asset differs from partition to
partition in a few values only. So Dagster serialises one event, and the others are its text with their own values.

Written against and tested with dagster 1.13.27. It relies on how `EventLogEntry`, `StepMaterializationData`,
`AssetCheckEvaluation` and the metadata of plain values look as JSON. A test holds every kind of text against what
`serialize_value` writes, letter by letter, so an upgrade of Dagster that changes the form is noticed there. The one
difference is meant: the metadata of a check stays in the order given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, reduce
from operator import getitem
from typing import Any, NamedTuple, Protocol

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.definitions.metadata import normalize_metadata
from dagster._core.events.log import EventLogEntry
from dagster._serdes import pack_value, serialize_value


class EventRow(NamedTuple):
    """A row of Dagster's table `event_logs`, under its column names.

    The timestamp is UTC without saying so. Of an event about a check Dagster leaves asset and partition empty here.
    """

    run_id: str
    event: str
    dagster_event_type: str
    timestamp: datetime
    step_key: str | None
    asset_key: str | None
    partition: str | None


class CheckRow(NamedTuple):
    """The event of a check, and what Dagster's table `asset_check_executions` holds besides."""

    event: EventRow
    asset_key: str
    check_name: str
    partition: str
    passed: bool
    target_storage_id: int | None


class Checked(Protocol):
    """What is told about one partition by one check."""

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        ...

    @property
    def severity(self) -> dg.AssetCheckSeverity:
        """How bad it is where it does not."""
        ...

    @property
    def description(self) -> str | None:
        """In words."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """In numbers."""
        ...


class MaterializationRows:
    """Materialisations of one asset by one step: all of one moment, differing in partition and metadata."""

    def __init__(self, example: EventLogEntry) -> None:
        """Take from the example whatever all have in common, its timestamp included."""
        self._example = _row(example)
        self._pattern = _pattern(
            example,
            {
                "metadata": ("event_specific_data", "materialization", "metadata_entries"),
                "partition": ("event_specific_data", "materialization", "partition"),
            },
        )

    def row(self, partition: str, metadata: Mapping[str, Any]) -> EventRow:
        """The event of one partition.

        Raises:
            DagsterInvalidMetadata: Dagster has no metadata type for one of the values.
        """
        text = self._pattern % {"metadata": _metadata_entries(metadata), "partition": _json(partition)}
        return self._example._replace(event=text, partition=partition)


class CheckRows:
    """Results of one check by one step: all of one moment, differing in partition and in what was found."""

    def __init__(self, example: EventLogEntry, check: dg.AssetCheckKey) -> None:
        """Take from the example whatever all have in common, its timestamp included."""
        self._example = _row(example)
        self._asset_key, self._check_name = check.asset_key.to_string(), check.name
        fields = ("success", "metadata", "target_materialization_data", "severity", "description", "partition")
        self._pattern = _pattern(example, {name: ("event_specific_data", name) for name in fields})

    def row(
        self, partition: str, result: Checked, target: AssetCheckEvaluationTargetMaterializationData | None
    ) -> CheckRow:
        """The event of one partition; the target is the materialisation that was looked at.

        Raises:
            DagsterInvalidMetadata: Dagster has no metadata type for one of the values.
        """
        text = self._pattern % {
            "success": _json(result.passed),
            "metadata": _metadata(result.metadata),
            "target_materialization_data": _target(target) if target else "null",
            "severity": _severity(result.severity),
            "description": _json(result.description),
            "partition": _json(partition),
        }
        event = self._example._replace(event=text)
        target_storage_id = target.storage_id if target else None
        return CheckRow(event, self._asset_key, self._check_name, partition, result.passed, target_storage_id)


# Order of keys, separators, escapes and NaN as Dagster writes them.
_json = json.JSONEncoder(sort_keys=True).encode

# Where the text of a plain value's metadata has the value; by far most metadata is one of these.
_PLAIN_METADATA = {
    bool: '{"__class__": "BoolMetadataEntryData", "value": %s}',
    int: '{"__class__": "IntMetadataEntryData", "value": %s}',
    float: '{"__class__": "FloatMetadataEntryData", "value": %s}',
    str: '{"__class__": "TextMetadataEntryData", "text": %s}',
}


def _row(entry: EventLogEntry) -> EventRow:
    event = entry.get_dagster_event()
    return EventRow(
        run_id=entry.run_id,
        event="",
        dagster_event_type=event.event_type_value,
        timestamp=datetime.fromtimestamp(entry.timestamp, UTC).replace(tzinfo=None),
        step_key=event.step_key,
        asset_key=event.asset_key.to_string() if event.asset_key else None,
        partition=event.partition,
    )


def _pattern(entry: EventLogEntry, places: Mapping[str, tuple[str, ...]]) -> str:
    """The entry's text with `%(name)s` at the place of each named value of its Dagster event."""
    packed: Any = pack_value(entry)
    for name, (*way, last) in places.items():
        reduce(getitem, way, packed["dagster_event"])[last] = _mark(name)
    text = _json(packed).replace("%", "%%")
    for name in places:
        text = text.replace(_json(_mark(name)), f"%({name})s")
    return text


def _mark(name: str) -> str:
    # PostgreSQL takes no NUL, so none is in the names that the rest of the text is made of.
    return f"\0{name}\0"


def _metadata_entries(metadata: Mapping[str, Any]) -> str:
    entries = (
        '{"__class__": "EventMetadataEntry", "description": null, '
        f'"entry_data": {_metadata_value(label, value)}, "label": {_json(label)}}}'
        for label, value in metadata.items()
    )
    return f"[{', '.join(entries)}]"


def _metadata(metadata: Mapping[str, Any]) -> str:
    # Dagster sorts these by label; kept as given, the UI shows first what was put first.
    items = (f"{_json(label)}: {_metadata_value(label, value)}" for label, value in metadata.items())
    return f"{{{', '.join(items)}}}"


def _metadata_value(label: str, value: Any) -> str:  # noqa: ANN401 - whatever Dagster takes as metadata
    if plain := _PLAIN_METADATA.get(type(value)):
        return plain % _json(value)
    packable: Any = normalize_metadata({label: value})[label]
    return serialize_value(packable)


def _target(target: AssetCheckEvaluationTargetMaterializationData) -> str:
    return (
        '{"__class__": "AssetCheckEvaluationTargetMaterializationData", '
        f'"run_id": {_json(target.run_id)}, "storage_id": {target.storage_id}, "timestamp": {target.timestamp!r}}}'
    )


@cache
def _severity(severity: dg.AssetCheckSeverity) -> str:
    return serialize_value(severity)
