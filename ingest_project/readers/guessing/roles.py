"""Guess which columns of a table say when, where, what and how much: one reading a row, or one quantity a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import polars as pl

from ingest_project.readers.guessing.columns import Column, Columns
from ingest_project.readers.guessing.names import NameGuess, read_name, role_of, slug, unit_of, why_ignored
from ingest_project.readers.units import conversion

MAX_TYPES = 60
MAX_DEVICES_SHARE = 0.5
FEW_ROWS = 10
FEW_STEPS = 2
IN_RANGE_SHARE = 0.9


class KnownType(Protocol):
    """Units and limits of a known sensor type."""

    @property
    def units(self) -> tuple[str, ...]:
        """Spellings of its unit."""

    @property
    def min(self) -> float | None:
        """The least possible reading."""

    @property
    def max(self) -> float | None:
        """The greatest possible reading."""


@dataclass
class Roles:
    """What each column of a table is for, apart from times.

    Args:
        columns: index to the column of a reading.
        quantities: index of a wide file's column to what its name says.
        ignored: index of a column that is left out, to the reason.
        doubtful_device: True if no name says that the device's column is one.
    """

    columns: dict[int, str] = field(default_factory=dict)
    quantities: dict[int, NameGuess] = field(default_factory=dict)
    ignored: dict[int, str] = field(default_factory=dict)
    doubtful_device: bool = False

    def index_of(self, role: str) -> int | None:
        """Return which column of the file is this column of a reading; None for none."""
        return next((index for index, column in self.columns.items() if column == role), None)


def find_roles(columns: Columns) -> Roles:
    """Assign the columns of a table."""
    roles = Roles(ignored=dict.fromkeys(columns.other_times, "another time"))
    used = set(columns.times[0]) if columns.times else set()
    left = [column for column in columns.all if column.index not in used | columns.other_times]
    roles.ignored |= {column.index: "empty in all records read" for column in left if not len(column.present)}
    left = [column for column in left if len(column.present)]
    _assign_long(columns, left, roles)
    _assign_device(columns, left, roles)
    for column in left:
        if column.index in roles.columns:
            continue
        why = why_ignored(column.meaning) or _why_no_quantity(columns, column)
        if why or roles.index_of("value") is not None:
            roles.ignored[column.index] = why or "no column of a reading"
        else:
            roles.quantities[column.index] = _quantity(column)
    return roles


def _quantity(column: Column) -> NameGuess:
    named = read_name(column.meaning)
    if column.meaning.isdecimal():
        named = named._replace(base=f"quantity {column.index + 1}")
    return named._replace(unit=unit_of(column.unit_row) or named.unit)


def _assign_long(columns: Columns, left: Sequence[Column], roles: Roles) -> None:
    """Assign value, sensor type and unit where each row is one reading."""
    by_role = {role: [c for c in left if role_of(c.meaning) == role] for role in ("value", "sensor_type", "unit")}
    values = [column for column in by_role["value"] if column.index in columns.numeric]
    values = values or [c for c in by_role["value"] if columns.read(c).count()]
    measured = [c for c in left if c.index in columns.numeric and c not in values and not why_ignored(c.meaning)]
    measured = [column for column in measured if role_of(column.meaning) != "device_id"]
    kinds = [c for c in by_role["sensor_type"] if c.index not in columns.numeric and c.present.n_unique() <= MAX_TYPES]
    if len(values) != 1 or (measured and not kinds):
        return
    roles.columns[values[0].index] = "value"
    for role, found in (("sensor_type", kinds), ("unit", by_role["unit"])):
        if found:
            roles.columns[found[0].index] = role


def _assign_device(columns: Columns, left: Sequence[Column], roles: Roles) -> None:
    """Assign the column that names the device: by its name, or doubtfully the only one of repeated text."""
    free = [column for column in left if column.index not in roles.columns and not _differs_by_row(column)]
    named = [
        column for column in free if role_of(column.meaning) == "device_id" or column.meaning.casefold() == "sensor"
    ]
    named.sort(key=lambda column: ("id" not in column.meaning.casefold(), column.index))
    if not named:
        texts = [c for c in free if c.index not in columns.numeric and not why_ignored(c.meaning)]
        named = [
            column for column in texts if column.present.n_unique() > 1 and len(column.present) == len(column.texts)
        ]
        roles.doubtful_device = len(named) == 1
        named = named if roles.doubtful_device else []
    if named:
        roles.columns[named[0].index] = "device_id"


def _differs_by_row(column: Column) -> bool:
    """Return True for a column with another text in most rows, which names rows and no devices."""
    present = column.present
    return len(present) >= FEW_ROWS and present.n_unique() > MAX_DEVICES_SHARE * len(present)


def _why_no_quantity(columns: Columns, column: Column) -> str | None:
    """Return why a column holds no measurements, if it does not."""
    if column.index not in columns.numeric:
        return "text"
    named, values = read_name(column.meaning), columns.values_of(column)
    counts = len(values) > FEW_STEPS and bool((values.diff().drop_nulls() == 1).all() and (values % 1 == 0).all())
    return "counts rows" if counts and not (named.unit or named.known_type) else None


def quantities(columns: Columns, roles: Roles, types: Mapping[str, KnownType]) -> dict[int, dict[str, str]]:
    """Describe each quantity: of a known type where name, unit and values fit it, else named after its column.

    Returns:
        by the index of its column, `sensor_type`, and `unit` and `to` where they are known.
    """
    found: dict[int, dict[str, str]] = {}
    for index, named in roles.quantities.items():
        own = slug(named.base) or f"quantity_{index + 1}"
        name = named.known_type or own
        units = {"unit": named.unit} if named.unit else {}
        if name in types:
            values = columns.values_of(columns.all[index])
            fitting = _units_of_known(values, named.unit, types[name])
            if fitting is None:
                name = f"{name}_{slug(named.unit) or 'other'}" if named.unit else f"{name}_unit_unknown"
            units = fitting or units
        taken = {each["sensor_type"] for each in found.values()}
        if name in taken:
            name = own if own not in {*taken, *types} else f"{own}_{index + 1}"
        found[index] = {"sensor_type": name, **units}
    return found


def _units_of_known(values: pl.Series, unit: str | None, known: KnownType) -> dict[str, str] | None:
    """Return `unit`, and `to` where it is to be converted, of a quantity of a known type; None for another type."""
    units = {"unit": unit} if unit else {}
    if unit and known.units and unit not in known.units:
        try:
            values = conversion(unit, known.units[0]).apply(values)
        except ValueError:
            return None
        units["to"] = known.units[0]
    low = known.min if known.min is not None else float("-inf")
    high = known.max if known.max is not None else float("inf")
    return units if int(values.is_between(low, high).sum()) >= IN_RANGE_SHARE * len(values) else None
