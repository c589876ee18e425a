"""Guess what the columns of a table hold: times, alone or together, numbers, or text.

Also guesses how numbers are written, and which texts and numbers mean that there is no value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers import RESCUED, Target
from ingest_project.readers.casting import kept, numbers_of_cells, parse_numbers
from ingest_project.readers.cells import DATE, INEXACT, NUMBER, PERCENT
from ingest_project.readers.guessing.names import VOCABULARY
from ingest_project.readers.guessing.table import Table
from ingest_project.readers.guessing.text import MAX_ROWS, MISSING, Grid, Row
from ingest_project.readers.guessing.times import HINT, TimeGuess, guess_times, is_time_of_day, joined, times_in_parts
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.profile_parts import MAX_NULL_BYTES, NumberLayout
from ingest_project.readers.profiles import DEFAULT_NULLS, ReaderProfile
from ingest_project.readers.reading import read_chunks

NUMERIC_SHARE = 0.6
DIGITS = "[+-]?[0-9]"
SPACES = " \u00a0\u202f\u2009"
# Texts in which a mark can only be the decimal one: its digits are no group of three, or no group can precede it.
DECIMAL = {
    mark: rf"^{DIGITS}*{esc}(?:[0-9]{{1,2}}|[0-9]{{4,}})(?:[eE][+-]?[0-9]+)?$|^{DIGITS}{{4,}}{esc}[0-9]+$"
    rf"|^[+-]?0*{esc}[0-9]+$|[0-9][{other}{SPACES}'\u2019][0-9]{{3}}{esc}[0-9]"
    for mark, esc, other in ((",", ",", "."), (".", r"\.", ","))
}
GROUPS = {
    mark: rf"^[+-]?[1-9][0-9]{{0,2}}(?:[{chars}][0-9]{{3}}){{{least},}}(?:[.,][0-9]*)?$"
    for mark, chars, least in ((",", ",", 2), (".", ".", 2), (" ", SPACES, 1), ("'", "'\u2019", 1))
}
GROUPS[","] += r"|^[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+\.[0-9]+$"
GROUPS["."] += r"|^[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3})+,[0-9]+$"
EITHER = {mark: rf"^[+-]?[1-9][0-9]{{0,2}}{re.escape(mark)}[0-9]{{3}}$" for mark in ",."}
# Numbers that loggers and archives write for "no value"; any other is taken as measured.
SENTINELS: tuple[float, ...] = (-999.0, -9999.0, -99999.0, -999.9, -9999.9, -99.9, -99.0, -200.0, -6999.0, -7999.0)
SENTINELS += (-999.25, -32768.0, 999.0, 7999.0, 9999.0, 99999.0, 999999.0, 999.9, 9999.9)


class NumberGuess(NamedTuple):
    """The notation of all numbers of a file.

    Args:
        layout: decimal and thousands marks.
        why: evidence for it.
        question: for a person to answer, where the file does not decide; empty otherwise.
    """

    layout: NumberLayout
    why: str
    question: str = ""


class NullGuess(NamedTuple):
    """A spelling of "no value".

    Args:
        spelling: as the profile needs it.
        cells: that hold it.
        why: evidence for the guess.
    """

    spelling: str
    cells: int
    why: str


def guess_numbers(texts: pl.Series, delimiter: str | None) -> NumberGuess:
    """Guess the decimal and thousands marks of numbers.

    Args:
        texts: cells of all columns that may be numbers, without missing ones.
        delimiter: of the file: where it is a semicolon, the comma is the likelier decimal mark.
    """
    decimal = {mark: int(texts.str.contains(pattern).sum()) for mark, pattern in DECIMAL.items()}
    groups = {mark: int(texts.str.contains(pattern).sum()) for mark, pattern in GROUPS.items()}
    either = {mark: int(texts.str.contains(pattern).sum()) for mark, pattern in EITHER.items()}
    if not any((*decimal.values(), *groups.values(), *either.values())):
        return NumberGuess(NumberLayout(), "all numbers are whole")
    mark, why, question = _decimal_mark(decimal, groups, either, delimiter)
    thousands = max(groups, key=lambda each: groups[each] if each != mark else 0)
    other = "." if mark == "," else ","
    if not groups[thousands] or thousands == mark:
        thousands = other if either[other] and mark != other else ""
        if thousands and not question and (mark == "," or not decimal[other]):
            question = (
                f"is {other!r} in numbers such as {_example(texts, EITHER[other])!r} a thousands mark, as is assumed, "
                "or a decimal mark?"
            )
    if decimal[other] and decimal[mark]:
        why += f"; {decimal[other]:,} have {other!r}"
        question = f"{decimal[other]:,} numbers have {other!r} as decimal mark and are rejected: is the file damaged?"
    return NumberGuess(NumberLayout(decimal=mark, thousands=thousands or None), why, question)


def _decimal_mark(
    decimal: dict[str, int], groups: dict[str, int], either: dict[str, int], delimiter: str | None
) -> tuple[str, str, str]:
    """Return the decimal mark, what it rests on, and a question where that is not enough."""
    if decimal[","] or decimal["."]:
        mark = "," if decimal[","] > decimal["."] else "."
        return mark, f"{decimal[mark]:,} numbers have {mark!r} where it can only be the decimal mark", ""
    if groups["."] or groups[","]:
        mark = "," if groups["."] else "."
        return mark, f"the other mark divides groups of three digits {max(groups.values()):,} times", ""
    if either[","] and (delimiter == "," or not either["."]):
        mark = "," if delimiter != "," else "."
        question = f"do numbers such as 1,234 mean 1.234 or 1234? Assumed: {'1.234' if mark == ',' else '1234'}"
        return mark, f"{either[',']:,} numbers have a comma and three digits behind it", question
    # Where commas divide the cells, they are rarely decimal marks.
    asked = "does 1.234 mean 1.234 or 1234? Assumed: 1.234" if either["."] and delimiter not in {None, ","} else ""
    return ".", f"{either['.']:,} numbers have a point and three digits behind it, none any other mark", asked


def _example(texts: pl.Series, pattern: str) -> str:
    return str(texts.filter(texts.str.contains(pattern)).first())


def is_numeric(texts: pl.Series) -> bool:
    """Return True if most texts are numbers in some notation."""
    present = texts.filter(~texts.str.to_lowercase().is_in(list(MISSING)))
    shaped = present.str.contains(
        rf"^[+-]?(?:[0-9]+(?:[.,'\u2019{SPACES}][0-9]+)*[.,]?|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?$"
    )
    return bool(len(present)) and shaped.sum() >= NUMERIC_SHARE * len(present)


def guess_nulls(columns: Sequence[pl.Series], layout: NumberLayout) -> list[NullGuess]:
    """Find the texts and numbers in columns of numbers that mean "no value" and are no default of profiles."""
    found: dict[str, int] = {}
    for texts in columns:
        odd = texts.filter(texts.str.to_lowercase().is_in(list(MISSING)))
        for text, count in odd.value_counts().iter_rows():
            found[text] = found.get(text, 0) + count
    words = [
        NullGuess(text, count, "it stands among numbers")
        for text, count in found.items()
        if text not in DEFAULT_NULLS and len(text.encode()) <= MAX_NULL_BYTES
    ]
    return words + _sentinels([parse_numbers(texts, layout) for texts in columns])


def _sentinels(columns: Iterable[pl.Series]) -> list[NullGuess]:
    """Find well-known numbers that are further from all others of some column than these are from each other."""
    counts: dict[float, int] = {}
    apart: dict[float, str] = {}
    for numbers in (column.drop_nulls().drop_nans() for column in columns):
        others = numbers.filter(~numbers.is_in(SENTINELS))
        for marker in SENTINELS:
            count = int((numbers == marker).sum())
            counts[marker] = counts.get(marker, 0) + count
            if count and not len(others) and marker < 0:
                apart[marker] = "a column has no other number"
            elif count and len(others):
                low, high = others.sort()[0], others.sort()[-1]
                if min(abs(marker - low), abs(marker - high)) > max(high - low, 1.0) and not low <= marker <= high:
                    apart[marker] = f"all other numbers of a column are {low:g} to {high:g}"
    return [NullGuess(f"{marker:g}", counts[marker], why) for marker, why in apart.items()]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        index: from 0.
        selector: how a profile names it.
        meaning: the name that says what it holds: that in the header, or in a line of comment above.
        texts: cells of all records; null where missing.
        kinds: kinds of its cells in a workbook.
        unit_row: its cell in the row of units.
    """

    index: int
    selector: str
    meaning: str
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
        return self.meaning or f"column {self.index + 1}, without a name"


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

    def read(self, column: Column) -> pl.Series:
        """Return the finite numbers in the cells of a column that are not missing, null for other texts."""
        kinds = column.kinds.filter(column.texts.is_not_null()) if column.kinds is not None else None
        numbers = numbers_of_cells(column.present, kinds, self.numbers.layout)
        return kept(numbers, numbers.is_finite())

    def unread(self, column: Column) -> list[tuple[str, int]]:
        """Return the commonest texts of a column that are neither numbers nor missing, with their counts."""
        left = column.present.filter(self.read(column).is_null() & ~column.present.is_in(list(self.spellings)))
        return [(str(text), int(count)) for text, count in left.value_counts(sort=True).head(3).iter_rows()]

    def missing(self, column: Column) -> int:
        """Count the cells of a column that are empty or a spelling of "no value"."""
        numbers = self.read(column)
        spelled = column.present.is_in(list(self.spellings)) | numbers.is_in(self._markers).fill_null(value=False)
        return len(column.texts) - len(column.present) + int(spelled.sum())

    @property
    def _markers(self) -> list[float]:
        return pl.Series([null.spelling for null in self.nulls]).cast(pl.Float64, strict=False).drop_nulls().to_list()

    def values_of(self, column: Column) -> pl.Series:
        """Return the numbers of a column, without those that mean "no value"."""
        found = self.read(column).drop_nulls()
        return found.filter(~found.is_in(self._markers))


def find_columns(table: Table, delimiter: str | None) -> Columns:
    """Classify the columns of a table."""
    columns = [_column(table, index, name) for index, name in enumerate(table.selectors)]
    stamps = {column.index: guess for column in columns if (guess := _times_of(column)) is not None}
    times, used = _chosen_times(columns, stamps)
    left = [column for column in columns if column.index not in {*stamps, *used}]
    numeric = [column for column in left if _is_numeric(column)]
    words = [column.words.filter(~column.words.str.to_lowercase().is_in(list(MISSING))) for column in numeric]
    numbers = guess_numbers(pl.concat(words) if words else pl.Series(dtype=pl.String), delimiter)
    nulls = guess_nulls([column.present for column in numeric], numbers.layout)
    indexes = frozenset(column.index for column in numeric)
    return Columns(columns, numbers, nulls, indexes, times, frozenset(stamps) - frozenset(used))


def _column(table: Table, index: int, selector: str) -> Column:
    cells = [row.cells[index] for row in table.records]
    texts = pl.Series([None if cell in DEFAULT_NULLS else cell for cell in cells], dtype=pl.String)
    kinds = None
    if table.records and table.records[0].kinds:
        kinds = pl.Series([row.kinds[index] for row in table.records], dtype=pl.String)
    unit_row = table.units[index] if index < len(table.units) else ""
    return Column(index, selector, table.labels[index], texts, kinds, unit_row)


def _times_of(column: Column) -> TimeGuess | None:
    present = column.present
    if not len(present):
        return None
    if column.kinds is not None and (column.kinds == DATE).sum() < len(present) and not len(column.words):
        # A number in a cell is a time only as a count since 1970.
        guess = guess_times(present, column.meaning)
        return guess if guess and guess.formats[0].startswith("unix") else None
    return guess_times(present, column.meaning)


def _is_numeric(column: Column) -> bool:
    if column.kinds is None:
        return is_numeric(column.present)
    numbers = int(column.kinds.is_in([NUMBER, PERCENT, INEXACT]).sum())
    return numbers >= len(column.present) / 2 if numbers else is_numeric(column.words)


def _chosen_times(
    columns: Sequence[Column], stamps: Mapping[int, TimeGuess]
) -> tuple[tuple[tuple[int, ...], TimeGuess] | None, tuple[int, ...]]:
    """Return the columns of the time of each record with their formats, and the indexes of these columns."""
    clocked = [index for index, guess in stamps.items() if guess.has_clock]
    if clocked:
        best = max(clocked, key=lambda index: (_rank(columns[index].meaning), stamps[index].fit, -index))
        return ((best,), stamps[best]), (best,)
    together = (("", indexes) for indexes in _dates_with_clocks(columns, stamps))
    for format_, indexes in (*together, *_parts_of_dates(columns)):
        texts = joined(columns[index].texts for index in indexes).drop_nulls()
        guess = times_in_parts(texts, format_) if format_ else guess_times(texts, "time")
        if guess is not None:
            return (indexes, guess), indexes
    if stamps:
        best = max(stamps, key=lambda index: (_rank(columns[index].meaning), -index))
        return ((best,), stamps[best]), (best,)
    return None, ()


def _rank(name: str) -> int:
    """Return a score of how likely a name is the time of a measurement."""
    plain = name.casefold()
    if re.search(r"creat|updat|receiv|insert|modif|upload|load", plain):
        return 0
    return 1 + bool(HINT.search(name)) + ("stamp" in plain or "utc" in plain)


def _dates_with_clocks(columns: Sequence[Column], stamps: Mapping[int, TimeGuess]) -> Iterator[tuple[int, ...]]:
    for clock in columns:
        if clock.index not in stamps and is_time_of_day(clock.present, clock.meaning):
            yield from ((date, clock.index) for date in stamps)


def _parts_of_dates(columns: Sequence[Column]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield formats of times in parts with the columns of these parts, where there is one of each."""
    named = {
        part: next((c.index for c in columns if re.fullmatch(name, c.meaning.strip())), None)
        for part, name in VOCABULARY["parts_of_times"].items()
    }
    for parts in map(str.split, VOCABULARY["times_in_parts"]):
        indexes = tuple(index for part in parts if (index := named[part]) is not None)
        if len({*indexes}) == len(parts):
            yield " ".join(parts), indexes


MAX_FIELDS = 500
# A target without columns, so that every field is kept as an unknown one.
EVERYTHING = Target(columns=(), required=frozenset(), keep_unknown=True)


def read_records(path: Path, file_type: str, limits: ReadLimits, rows: str) -> Grid:
    """Return the records of a file, in the list that `rows` names, below a row of the paths of all their fields.

    Raises:
        FileRejectedError: it cannot be read, or has no records.
    """
    profile = ReaderProfile(name="guess", dataset="guess", rows=rows)
    records = list(islice(_records(path, file_type, limits, profile), MAX_ROWS))
    names = list(dict.fromkeys(name for _, fields in records for name in fields))[:MAX_FIELDS]
    if not names:
        raise FileRejectedError("no_rows", "The file has no record with a field.")
    cells = [Row(line, [fields.get(name, "") for name in names]) for line, fields in records]
    return Grid([Row(0, names), *cells], [], None, f"{len(records):,} records", labels=tuple(_labels(names)))


def _labels(names: Sequence[str]) -> Iterator[str]:
    """Yield the last part of each path, or all of it where another path ends alike."""
    last = [name.rpartition(".")[2] for name in names]
    for name, part in zip(names, last, strict=True):
        yield part if last.count(part) == 1 else name


def _records(
    path: Path, file_type: str, limits: ReadLimits, profile: ReaderProfile
) -> Iterator[tuple[int, dict[str, str]]]:
    with closing(read_chunks(path, file_type, profile, limits, path.name, EVERYTHING)) as chunks:  # type: ignore[type-var]
        for chunk in chunks:
            for line, text in chunk.rows.select("line_number", RESCUED).iter_rows():
                yield line, dict(_fields(json.loads(text or "{}")))


def _fields(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each field; a list is one field."""
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _fields(inner, f"{prefix}{name}.")
        elif inner is not None:
            yield prefix + name, inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
