"""Propose a reader profile for a file, as YAML with the evidence for each guess.

Of the columns it guesses which say when, where, what and how much.

A guess that the file does not decide is a question in the YAML for a person to answer, never silently a choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import polars as pl
import yaml

from ingest_project.core.errors import FileRejectedError, LimitExceededError
from ingest_project.core.logging import printable
from ingest_project.readers.formats.containers import Contained, files_inside
from ingest_project.readers.formats.json_reader import lists_of_objects
from ingest_project.readers.guessing.columns import Column, Columns, find_columns, read_records
from ingest_project.readers.guessing.names import (
    NameGuess,
    guess_device,
    read_name,
    role_of,
    slug,
    unit_of,
    why_ignored,
)
from ingest_project.readers.guessing.table import Table, find_table, read_sheets
from ingest_project.readers.guessing.text import Encoding, Grid, guess_encoding, read_grid, take_sample
from ingest_project.readers.guessing.times import TimeGuess
from ingest_project.readers.layout import ReadLimits
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
    """Role of each column of a table, apart from times.

    Args:
        columns: index to the column of a reading.
        quantities: index of a wide file's column to the quantity in its name.
        ignored: index of a column that is left out, to the reason.
        doubtful_device: True if no name says that the device's column is one.
    """

    columns: dict[int, str] = field(default_factory=dict)
    quantities: dict[int, NameGuess] = field(default_factory=dict)
    ignored: dict[int, str] = field(default_factory=dict)
    doubtful_device: bool = False

    def index_of(self, role: str) -> int | None:
        """Return the column of the file that is this column of a reading; None for none."""
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


QUESTION = "QUESTION: "
WIDTH = 1_000_000


@dataclass
class Draft:
    """Lines of YAML.

    Args:
        lines: written so far.
        questions: that a person must answer.
        indent: of further lines, in steps of two blanks.
    """

    lines: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    indent: int = 0

    def add(self, key: str, value: object = None, comment: str = "", *, question: str = "", depth: int = 0) -> None:
        """Add a key with its value; None begins a group of further keys."""
        text = f"{scalar(key)}:" + ("" if value is None else f" {scalar(value)}")
        self._add(text, comment, question, depth)

    def item(self, value: object, comment: str = "", *, question: str = "", depth: int = 0) -> None:
        """Add an item of a list."""
        self._add(f"- {scalar(value)}", comment, question, depth)

    def note(self, comment: str, question: str) -> None:
        """Add a line of comment."""
        self._add("", comment, question, 0)

    def _add(self, text: str, comment: str, question: str, depth: int) -> None:
        if question:
            self.questions.append(question)
        said = "; ".join(part for part in (comment, QUESTION + question if question else "") if part)
        parts = [text, f"# {printable(said)}" if said else ""]
        self.lines.append("  " * (self.indent + depth) + "  ".join(part for part in parts if part))

    def text(self, above: Iterable[str] = ()) -> str:
        """Return the YAML, below these lines of comment."""
        head = [f"# {printable(line)}" for line in above]
        if self.questions:
            number = len(self.questions)
            head.append(f"# {number} question{'s' if number > 1 else ''} for a person: see QUESTION below.")
        return "\n".join([*head, *self.lines, ""])


def scalar(value: object) -> str:
    """Return a value as YAML on one line: a text with line ends, which a file may have in a name, is escaped."""
    text = _dumped(value)
    return _dumped(value, style='"') if "\n" in text else text


def _dumped(value: object, style: str | None = None) -> str:
    text = yaml.safe_dump(
        value, allow_unicode=True, default_flow_style=True, default_style=style, width=WIDTH, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


class Found(NamedTuple):
    """Everything that was guessed of a file; `lists` are the paths of those in a JSON document that may be its rows."""

    encoding: Encoding | None
    grid: Grid
    table: Table
    columns: Columns
    sheet: int | str = 0
    lists: Sequence[str] = ()


def look_at(path: Path, file_type: str, limits: ReadLimits) -> Found:
    """Find the table in a file and the kinds of its columns.

    Args:
        path: of its bytes.
        file_type: of its reader.
        limits: of workbooks.

    Raises:
        FileRejectedError: it has none; says why.
        LimitExceededError: it has too many columns.
    """
    with closing(files_inside(path, file_type, path.name, limits)) as inside:
        return _look_at(next(inside), limits)


def _look_at(file: Contained, limits: ReadLimits) -> Found:
    encoding, sheet, lists = None, 0, list[str]()
    if file.file_type in {"xlsx", "xls"}:
        sheet, grid = read_sheets(file.path, file.file_type, limits)
    elif file.file_type in {"json", "jsonl", "ndjson", "parquet"}:
        lists = [] if file.file_type == "parquet" else lists_of_objects(file.path, limits)
        grid = read_records(file.path, file.file_type, limits, lists[0] if len(lists) == 1 else "")
    else:
        sample = take_sample(file.path)
        encoding = guess_encoding(sample)
        grid = read_grid(sample, encoding)
    table = find_table(grid)
    if (width := len(table.names)) > limits.max_columns:
        raise LimitExceededError("INGEST_MAX_COLUMNS", f"The file has {width} columns, over {limits.max_columns}")
    return Found(encoding, grid, table, find_columns(table, grid.delimiter), sheet, lists)


def guess_profile(found: Found, file_name: str, name: str, types: Mapping[str, KnownType]) -> Draft:
    """Propose a profile that reads a file as sensor readings.

    Args:
        found: the table in the file.
        file_name: of the file.
        name: of the profile.
        types: known sensor types.

    Raises:
        FileRejectedError: `no_times` or `no_values`: it holds no readings.
    """
    columns, roles = found.columns, find_roles(found.columns)
    if columns.times is None:
        raise FileRejectedError(
            "no_times", "No column looks like a time, and a reading needs one. `ingest dataset guess` drafts a dataset."
        )
    if roles.index_of("value") is None and not roles.quantities:
        raise FileRejectedError("no_values", "No column looks like measured numbers. `ingest dataset guess` may help.")
    draft = Draft()
    draft.add("name", name)
    draft.add("description", f"Guessed from {file_name}.")
    write_text_layout(draft, found)
    _write_columns(draft, found, roles, columns.times[1])
    _write_quantities(draft, columns, roles, types)
    _write_constants(draft, found, roles, file_name)
    _write_ignored(draft, columns, roles)
    write_notation(draft, columns, [columns.times[1]])
    return draft


def write_text_layout(draft: Draft, found: Found) -> None:
    """Add what splits the file into cells."""
    encoding, grid, table = found.encoding, found.grid, found.table
    if encoding is not None and not encoding.marked:
        question = "" if encoding.sure else "is this the encoding?"
        draft.add("encoding", encoding.name, encoding.why, question=question)
    if found.sheet or (encoding is None and grid.question):
        draft.add("sheet", found.sheet, grid.why, question=grid.question)
    if len(found.lists) == 1:
        draft.add("rows", found.lists[0], question="is each object of this list a row? What is beside it is left out")
    elif found.lists:
        draft.note("", f"are the objects in {' or '.join(found.lists)} the rows? Then add its name as `rows`")
    if grid.widths:
        _write_widths(draft, grid, table)
    elif grid.delimiter is not None:
        draft.add("delimiter", grid.delimiter, grid.why, question=grid.question)
    _write_header(draft, table)


def _write_header(draft: Draft, table: Table) -> None:
    if table.comment:
        draft.add("comment", table.comment, f"{len(table.above):,} lines above the first record begin with it")
    elif table.skip_lines:
        above = f"lines above line {table.skip_lines + 1}; other files may have more"
        draft.add("skip_lines", table.skip_lines, above, question=table.question if table.header else "")
    if not table.header:
        draft.add("header", value=False, comment=table.notes["header"], question=table.question)
    elif table.question and not table.skip_lines:
        draft.add("header", value=True, question=table.question)
    if table.group_names:
        draft.add("header_rows", 2, "names repeat or are empty in the second row, and the first tells them apart")
    if table.skip_below:
        draft.add("skip_below_header", table.skip_below, "rows of units and the like")
    if table.trailing_delimiter:
        draft.add("trailing_delimiter", value=True, comment="all records end in a delimiter, and the header does not")
    if table.footer:
        draft.add("footer", {"rows": len(table.footer)}, f"the last rows, from line {table.footer[0].line}")


def _write_widths(draft: Draft, grid: Grid, table: Table) -> None:
    draft.add("fixed_width", comment=grid.why)
    last = 0
    for name, width in zip(table.selectors, grid.widths, strict=True):
        draft.add(name, f"{last + 1}-{last + width}", depth=1)
        last += width


def _write_columns(draft: Draft, found: Found, roles: Roles, times: TimeGuess) -> None:
    columns = found.columns
    indexes = columns.times[0] if columns.times else ()
    said = f"{times.fit:,} of {times.total:,} are times"
    if len(indexes) > 1:
        draft.add("joined", comment=said)
        draft.add("timestamp", [columns.all[index].selector for index in indexes], depth=1)
    if len(indexes) == 1 or roles.columns:
        draft.add("columns", comment=found.table.notes["header"] if found.table.header else "")
    if len(indexes) == 1:
        doubt = "" if times.has_clock else "there is no time of day: is each record of the beginning of its day?"
        draft.add(columns.all[indexes[0]].selector, "timestamp", said, question=doubt, depth=1)
    for index, role in roles.columns.items():
        column = columns.all[index]
        doubt = "no name says so: is this the device?" if role == "device_id" and roles.doubtful_device else ""
        doubt = _word_question(column, columns) if role == "value" else doubt
        draft.add(column.selector, role, _evidence_of(column, columns, role), question=doubt, depth=1)


def _evidence_of(column: Column, columns: Columns, role: str) -> str:
    if role == "value":
        return _said_of_numbers(column, columns)
    distinct = column.present.unique(maintain_order=True)
    shown = ", ".join(distinct.head(3).to_list()) + (", …" if len(distinct) > 3 else "")  # noqa: PLR2004 - as shown
    return f"{len(distinct):,} value{'s' if len(distinct) > 1 else ''}: {shown}"


def _said_of_numbers(column: Column, columns: Columns) -> str:
    values, missing = columns.values_of(column), columns.missing(column)
    said = f"{len(values):,} of {len(column.texts) - missing:,} are numbers"
    if len(values):
        ordered = values.sort()
        said += f", {ordered[0]:g} to {ordered[-1]:g}"
    said += f"; {missing:,} missing" if missing else ""
    odd = columns.unread(column)
    return said + (f"; not numbers: {', '.join(f'{text!r} ({count:,})' for text, count in odd)}" if odd else "")


def _write_quantities(draft: Draft, columns: Columns, roles: Roles, types: Mapping[str, KnownType]) -> None:
    if not roles.quantities:
        return
    draft.add("quantities", comment="each column of numbers is a quantity; the names of the types are a guess")
    for index, written in quantities(columns, roles, types).items():
        column = columns.all[index]
        unit = (
            ""
            if "unit" in written
            else _unit_question(types.get(written["sensor_type"]), roles.quantities[index].doubt)
        )
        question = "; ".join(part for part in (unit, _word_question(column, columns)) if part)
        draft.add(column.selector, written, _said_of_numbers(column, columns), question=question, depth=1)


def _word_question(column: Column, columns: Columns) -> str:
    """Ask about words that repeat among numbers: they may mean "no value" in this file."""
    words = [text for text, count in columns.unread(column) if count > 1 and not re.search("[0-9]", text)]
    return f"does {' or '.join(map(repr, words))} mean that there is no value? Then add it to nulls" if words else ""


def _unit_question(known: KnownType | None, doubt: str | None) -> str:
    if doubt:
        return f"is {doubt!r} its unit?"
    taken = f" Without one, {known.units[0]} is taken" if known and known.units else ""
    return f"in which unit?{taken}"


def _write_constants(draft: Draft, found: Found, roles: Roles, file_name: str) -> None:
    columns, value = found.columns, roles.index_of("value")
    if value is not None and roles.index_of("sensor_type") is None:
        draft.add("constants")
        named = slug(columns.all[value].meaning) or "value"
        draft.add("sensor_type", named, question="what does it measure, and in which unit?", depth=1)
    device = guess_device(found.table.above, file_name) if roles.index_of("device_id") is None else None
    if device is not None:
        where = "a line above the header" if device.part == "from_lines_above" else "the file's name"
        question = f"no column names the device: is it {device.device!r}, from {where}?"
        draft.add(device.part)
        draft.add("device_id", device.pattern, question=question, depth=1)


def _write_ignored(draft: Draft, columns: Columns, roles: Roles) -> None:
    if roles.ignored:
        draft.add("ignored")
    for index, why in roles.ignored.items():
        draft.item(columns.all[index].selector, why, depth=1)


def write_notation(draft: Draft, columns: Columns, times: Sequence[TimeGuess]) -> None:
    """Add how times, numbers and missing values are written."""
    if times:
        _write_times(draft, columns, times)
    layout, guess = columns.numbers.layout, columns.numbers
    if layout.decimal != "." or layout.thousands or guess.question:
        draft.add("numbers", comment=guess.why)
        draft.add("decimal", layout.decimal, question=guess.question, depth=1)
        if layout.thousands:
            draft.add("thousands", layout.thousands, depth=1)
    if columns.nulls:
        found = (
            f"{null.spelling} {'once' if null.cells == 1 else f'{null.cells:,} times'}, {null.why}"
            for null in columns.nulls
        )
        measured = [null.spelling for null in columns.nulls if null.spelling[0].isdigit()]
        question = f"does {' or '.join(measured)} mean that there is no value?" if measured else ""
        draft.add("nulls", [*columns.spellings], "; ".join(found), question=question)


def _write_times(draft: Draft, columns: Columns, guesses: Sequence[TimeGuess]) -> None:
    draft.add("timestamps")
    formats = list(dict.fromkeys(format_ for guess in guesses for format_ in guess.formats))
    fit, total = sum(guess.fit for guess in guesses), sum(guess.total for guess in guesses)
    why = [guess.why for guess in guesses if guess.why]
    rivals = [f"or is it {' or '.join(guess.alternatives)}?" for guess in guesses if guess.alternatives]
    comment = "; ".join([f"{fit:,} of {total:,} fit", *dict.fromkeys(why)])
    draft.add("formats", formats, comment, question=" ".join(dict.fromkeys(rivals)), depth=1)
    if at_24 := sum(guess.at_24 for guess in guesses):
        question = "is it the midnight at the end of its day?"
        draft.add("hour_24", "midnight", f"{at_24:,} at 24:00", question=question, depth=1)
    clocked = [guess for guess in guesses if guess.has_clock and not guess.formats[0].startswith("unix")]
    if clocked:
        _write_zone(draft, columns, min(guess.has_offset for guess in clocked))


def _write_zone(draft: Draft, columns: Columns, has_offset: float) -> None:
    names = " ".join(columns.all[index].meaning for index in (columns.times or ((),))[0])
    offset = re.search(r"(?:UTC|GMT) ?([+-][0-9]{1,2}(?::?[0-5][0-9])?)", names)
    if offset:
        draft.add("zone", f"UTC{offset[1]}", f"the column is called {names}", depth=1)
    elif has_offset == 1.0:
        draft.add("zone", "UTC", "every time carries its offset, so this is never used", depth=1)
    elif re.search(r"(?i)\b(?:utc|gmt)\b(?! ?[+-])|_utc|[(]z[)]", names):
        draft.add("zone", "UTC", f"the column is called {names}", depth=1)
    else:
        question = "times carry no offset: in which zone are they? UTC is assumed"
        draft.add("zone", "UTC", question=question, depth=1)
        question = "if its clocks change, is the hour that they pass twice rejected, or is earliest or latest meant?"
        draft.add("ambiguous", "reject", question=question, depth=1)
