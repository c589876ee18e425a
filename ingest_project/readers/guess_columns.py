"""Guess the kind of each column of a table, and which columns say when, where, what and how much."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import polars as pl

from ingest_project.readers.casting import parse_numbers
from ingest_project.readers.excel_cells import DATE, NUMBER, PERCENT
from ingest_project.readers.guess_names import NameGuess, read_name, role_of, why_ignored
from ingest_project.readers.guess_numbers import NullGuess, NumberGuess, guess_nulls, guess_numbers, is_numeric
from ingest_project.readers.guess_table import Table
from ingest_project.readers.guess_text import MISSING
from ingest_project.readers.guess_times import HINT, TimeGuess, guess_times, is_time_of_day, joined
from ingest_project.readers.profiles import DEFAULT_NULLS

MAX_TYPES = 60
MAX_DEVICES_SHARE = 0.5
IN_RANGE_SHARE = 0.9
PARTS = ("year", "month", "day", "hour", "minute", "second")
PART_NAMES = {
    part: rf"(?i)(?:{part}s?|{short})"
    for part, short in zip(PARTS, ("yr|yyyy|yy", "mon|mo|mm", "dd?", "hr|hh?", "min", "sec"), strict=True)
}


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


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        index: from 0.
        name: in the header, or its number.
        texts: of all its records; null where missing.
        kinds: of its cells in a workbook.
        unit_row: its cell in the row of units.
    """

    index: int
    name: str
    texts: pl.Series
    kinds: pl.Series | None = None
    unit_row: str = ""

    @property
    def present(self) -> pl.Series:
        """The texts that are not missing."""
        return self.texts.drop_nulls()

    @property
    def words(self) -> pl.Series:
        """The texts that are written by hand: in a workbook, those of cells of text."""
        return self.texts.filter(self.kinds == "s").drop_nulls() if self.kinds is not None else self.present

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.name or f"column {self.index + 1}, without a name"


@dataclass(frozen=True)
class Columns:
    """The columns of a table by what they are.

    Args:
        all: every column.
        numbers: the notation of numbers.
        nulls: spellings of "no value" beyond the default ones.
        numeric: indexes of columns of numbers.
        times: the time of each record: indexes of its columns, and their formats joined by spaces.
        other_times: indexes of further columns of times.
    """

    all: Sequence[Column]
    numbers: NumberGuess
    nulls: Sequence[NullGuess]
    numeric: frozenset[int]
    times: tuple[tuple[int, ...], TimeGuess] | None
    other_times: frozenset[int] = field(default=frozenset())

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every spelling of "no value"."""
        return (*DEFAULT_NULLS, *(null.spelling for null in self.nulls))

    def values_of(self, column: Column) -> pl.Series:
        """Return the numbers of a column, without those that mean "no value"."""
        markers = pl.Series([null.spelling for null in self.nulls]).cast(pl.Float64, strict=False).drop_nulls()
        found = parse_numbers(column.present, self.numbers.layout).drop_nulls().drop_nans()
        return found.filter(~found.is_in(markers.to_list()))


def find_columns(table: Table, delimiter: str | None) -> Columns:
    """Classify the columns of a table."""
    columns = [_column(table, index, name) for index, name in enumerate(table.names)]
    stamps = {column.index: guess for column in columns if (guess := _times_of(column)) is not None}
    times, used = _chosen_times(columns, stamps)
    left = [column for column in columns if column.index not in {*stamps, *used}]
    numeric = [column for column in left if _is_numeric(column)]
    words = [column.words.filter(~column.words.str.to_lowercase().is_in(list(MISSING))) for column in numeric]
    numbers = guess_numbers(pl.concat(words) if words else pl.Series(dtype=pl.String), delimiter)
    nulls = guess_nulls([column.present for column in numeric], numbers.layout)
    indexes = frozenset(column.index for column in numeric)
    return Columns(columns, numbers, nulls, indexes, times, frozenset(stamps) - frozenset(used))


def _column(table: Table, index: int, name: str) -> Column:
    cells = [row.cells[index] for row in table.records]
    texts = pl.Series(name, [None if cell in DEFAULT_NULLS else cell for cell in cells], dtype=pl.String)
    kinds = None
    if table.records and table.records[0].kinds:
        kinds = pl.Series([row.kinds[index] for row in table.records], dtype=pl.String)
    unit_row = table.units[index] if index < len(table.units) else ""
    return Column(index, name, texts, kinds, unit_row)


def _times_of(column: Column) -> TimeGuess | None:
    present = column.present
    if not len(present):
        return None
    if column.kinds is not None and (column.kinds == DATE).sum() < len(present) and not len(column.words):
        # A number in a cell is a time only as a count since 1970.
        guess = guess_times(present, column.name)
        return guess if guess and guess.formats[0].startswith("unix") else None
    return guess_times(present, column.name)


def _is_numeric(column: Column) -> bool:
    if column.kinds is None:
        return is_numeric(column.present)
    numbers = int(column.kinds.is_in([NUMBER, PERCENT]).sum())
    return numbers >= len(column.present) / 2 if numbers else is_numeric(column.words)


def _chosen_times(
    columns: Sequence[Column], stamps: Mapping[int, TimeGuess]
) -> tuple[tuple[tuple[int, ...], TimeGuess] | None, tuple[int, ...]]:
    """Return the columns of the time of each record with their formats, and the indexes of these columns."""
    clocked = [index for index, guess in stamps.items() if guess.has_clock]
    if clocked:
        best = max(clocked, key=lambda index: (_rank(columns[index].name), stamps[index].fit, -index))
        return ((best,), stamps[best]), (best,)
    for indexes in (*_dates_with_clocks(columns, stamps), *_parts_of_dates(columns)):
        guess = guess_times(joined(columns[index].texts for index in indexes).drop_nulls(), "time")
        if guess is not None:
            return (indexes, guess), indexes
    if stamps:
        best = max(stamps, key=lambda index: (_rank(columns[index].name), -index))
        return ((best,), stamps[best]), (best,)
    return None, ()


def _rank(name: str) -> int:
    """Return how much a name sounds like the time of a measurement."""
    plain = name.casefold()
    if re.search(r"creat|updat|receiv|insert|modif|upload|load", plain):
        return 0
    return 1 + bool(HINT.search(name)) + ("stamp" in plain or "utc" in plain)


def _dates_with_clocks(columns: Sequence[Column], stamps: Mapping[int, TimeGuess]) -> Iterator[tuple[int, ...]]:
    for clock in columns:
        if clock.index not in stamps and is_time_of_day(clock.present, clock.name):
            yield from ((date, clock.index) for date in stamps)


def _parts_of_dates(columns: Sequence[Column]) -> Iterator[tuple[int, ...]]:
    """Yield the columns of year, month, day and so on, if there are such."""
    named = [next((c.index for c in columns if re.fullmatch(PART_NAMES[part], c.name.strip())), None) for part in PARTS]
    known = named[: named.index(None)] if None in named else named
    if len(known) >= len(("year", "month", "day")):
        yield tuple(index for index in known if index is not None)


@dataclass
class Roles:
    """What each column of a table is for.

    Args:
        columns: index to the column of a reading.
        quantities: index of a wide file's column to what its name says.
        ignored: index of a column that is left out, to the reason.
        value_type: meaning of the one column `value` in a file that does not say it otherwise.
    """

    columns: dict[int, str] = field(default_factory=dict)
    quantities: dict[int, NameGuess] = field(default_factory=dict)
    ignored: dict[int, str] = field(default_factory=dict)

    @property
    def is_wide(self) -> bool:
        """True if several columns hold measurements of their own."""
        return bool(self.quantities)

    def has(self, role: str) -> bool:
        """Return True if a column of the file is this column of a reading."""
        return role in self.columns.values()


def find_roles(columns: Columns) -> Roles:
    """Decide between one reading a row and one quantity a column, and assign the columns."""
    roles = Roles()
    used = set(columns.times[0]) if columns.times else set()
    for index in columns.other_times:
        roles.ignored[index] = "another time"
    left = [column for column in columns.all if column.index not in used | columns.other_times]
    for column in left:
        if not len(column.present):
            roles.ignored[column.index] = "empty in all records read"
    left = [column for column in left if column.index not in roles.ignored]
    _assign_long(columns, left, roles)
    _assign_device(columns, left, roles)
    for column in left:
        if column.index in roles.columns:
            continue
        why = why_ignored(column.name) or _why_no_quantity(columns, column)
        if why or roles.has("value"):
            roles.ignored[column.index] = why or "no column of a reading"
        else:
            roles.quantities[column.index] = _quantity(column)
    return roles


def _quantity(column: Column) -> NameGuess:
    from ingest_project.readers.guess_names import unit_of  # noqa: PLC0415

    named = read_name(column.name)
    return named._replace(unit=unit_of(column.unit_row) or named.unit) if column.unit_row else named


def _assign_long(columns: Columns, left: Sequence[Column], roles: Roles) -> None:
    """Assign value, sensor type and unit where each row is one reading."""
    by_role = {role: [c for c in left if role_of(c.name) == role] for role in ("value", "sensor_type", "unit")}
    values = [column for column in by_role["value"] if column.index in columns.numeric]
    values = values or [c for c in by_role["value"] if parse_numbers(c.present, columns.numbers.layout).count()]
    others = [c for c in left if c.index in columns.numeric and c not in values and not why_ignored(c.name)]
    others = [column for column in others if role_of(column.name) != "device_id"]
    if len(values) != 1:
        return
    kinds = [c for c in by_role["sensor_type"] if c.index not in columns.numeric and _distinct(c) <= MAX_TYPES]
    if others and not kinds:
        return
    roles.columns[values[0].index] = "value"
    for role, found in (("sensor_type", kinds), ("unit", by_role["unit"])):
        if found:
            roles.columns[found[0].index] = role


def _assign_device(columns: Columns, left: Sequence[Column], roles: Roles) -> None:
    named = [c for c in left if c.index not in roles.columns and role_of(c.name) in ("device_id", "sensor_type")]
    named = [
        c
        for c in named
        if not (
            c.index in columns.numeric
            and parse_numbers(c.present, columns.numbers.layout).n_unique() > max(1, MAX_DEVICES_SHARE * len(c.present))
        )
    ]
    named.sort(
        key=lambda column: (role_of(column.name) != "device_id", "id" not in column.name.casefold(), column.index)
    )
    if named and (role_of(named[0].name) == "device_id" or "sensor" in named[0].name.casefold()):
        roles.columns[named[0].index] = "device_id"


def _distinct(column: Column) -> int:
    return column.present.n_unique()


def _why_no_quantity(columns: Columns, column: Column) -> str | None:
    """Return why a column holds no measurements, if it does not."""
    if column.index not in columns.numeric:
        return "text"
    values = columns.values_of(column)
    steps = values.diff().drop_nulls()
    if len(steps) > 1 and (steps == 1).all() and not read_name(column.name).unit:
        return "counts rows"
    return None
