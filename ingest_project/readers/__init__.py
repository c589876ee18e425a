"""Bytes to rows, in the layout that a reader profile describes. Here: the columns that readers look for."""

from __future__ import annotations

from dataclasses import dataclass

RESCUED = "rescued_data"


@dataclass(frozen=True)
class Target:
    """Columns wanted of a file.

    Args:
        columns: their names, in the order in which rows have them.
        required: those that a file must have; any other may be absent, and is then null.
        keep_unknown: True keeps the file's other columns, as a JSON object in `rescued_data`.
        numbers: columns of numbers, in which a spelling of "missing" means its number, however it is written.
        documents: columns of JSON, in which a text of a JSON file is a text, and not JSON that is written in it.
        by_name: True finds a column that the profile does not name under its own name.
    """

    columns: tuple[str, ...]
    required: frozenset[str]
    keep_unknown: bool = False
    numbers: frozenset[str] = frozenset()
    documents: frozenset[str] = frozenset()
    by_name: bool = True


# Every profile names the columns of a reading: a file's own `unit` may be the unit of anything.
READINGS = Target(
    columns=("timestamp", "device_id", "sensor_type", "value", "unit"),
    required=frozenset({"timestamp", "device_id", "sensor_type", "value"}),
    keep_unknown=True,
    numbers=frozenset({"value"}),
    by_name=False,
)


def without_empty_rescue(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return rows for people: without `rescued_data` where none of them has any."""
    if any(row.get(RESCUED) for row in rows):
        return rows
    return [{name: value for name, value in row.items() if name != RESCUED} for row in rows]
