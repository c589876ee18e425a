"""Propose a reader profile for a file, as YAML that says of each guess what it rests on.

A guess that the file does not decide is a question in the YAML for a person to answer, never silently a choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.guess_columns import Column, Columns, find_columns
from ingest_project.readers.guess_names import NameGuess, slug
from ingest_project.readers.guess_roles import KnownType, Roles, find_roles, type_names
from ingest_project.readers.guess_table import Table, find_table
from ingest_project.readers.guess_text import Encoding, Grid, guess_encoding, read_grid, take_sample
from ingest_project.readers.guess_times import TimeGuess
from ingest_project.readers.guess_workbook import read_sheets
from ingest_project.readers.guess_yaml import Draft
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.profiles import DEFAULT_NULLS, first_group

DATE_IN_NAME = r"[0-9]{4}[-_.]?[0-9]{2}(?:[-_.]?[0-9]{2})?"
# Regular expressions that find the device in a file's name, the more specific first.
DEVICE_IN_NAME = (rf"^{DATE_IN_NAME}[-_. ]+(.+)\.\w+$", rf"^(.+?)[-_. ]+{DATE_IN_NAME}.*\.\w+$", r"^(.+)\.\w+$")


class Found(NamedTuple):
    """Everything that was guessed of a file."""

    encoding: Encoding | None
    grid: Grid
    table: Table
    columns: Columns
    sheet: int | str = 0


def look_at(path: Path, file_type: str, limits: ReadLimits) -> Found:
    """Find the table in a file and the kinds of its columns.

    Args:
        path: of its bytes.
        file_type: of its reader.
        limits: of workbooks.

    Raises:
        FileRejectedError: it has none; says why.
    """
    if file_type in {"xlsx", "xls"}:
        sheet, grid = read_sheets(path, file_type, limits)
        table = find_table(grid)
        return Found(None, grid, table, find_columns(table, None), sheet)
    sample = take_sample(path)
    encoding = guess_encoding(sample)
    grid = read_grid(sample, encoding)
    table = find_table(grid)
    return Found(encoding, grid, table, find_columns(table, grid.delimiter))


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
    _write_columns(draft, found, roles)
    _write_quantities(draft, columns, roles, types)
    _write_constants(draft, columns, roles, file_name)
    _write_ignored(draft, columns, roles)
    write_notation(draft, columns, [columns.times[1]])
    return draft


def write_text_layout(draft: Draft, found: Found) -> None:
    """Add what splits the file into cells."""
    encoding, grid, table = found.encoding, found.grid, found.table
    if encoding is not None and not encoding.marked:
        question = "" if encoding.sure else "is this the encoding?"
        draft.add("encoding", encoding.name, encoding.why, question=question)
    if found.sheet:
        draft.add("sheet", found.sheet, grid.why)
    if grid.delimiter is not None:
        draft.add("delimiter", grid.delimiter, grid.why)
    if table.skip_lines:
        draft.add("skip_lines", table.skip_lines, f"lines above line {table.skip_lines + 1}; other files may have more")
    if not table.header:
        draft.add("header", value=False, comment=table.notes["header"])


def _write_columns(draft: Draft, found: Found, roles: Roles) -> None:
    columns = found.columns
    indexes, times = columns.times or ((), None)
    draft.add("columns", comment=found.table.notes["header"] if found.table.header else "")
    for index in indexes:
        comment = f"{times.fit:,} of {times.total:,} are times" if times else ""
        draft.add(columns.all[index].name, "timestamp", comment, depth=1)
    for index, role in roles.columns.items():
        column = columns.all[index]
        doubt = "no name says so: is this the device?" if role == "device_id" and roles.doubtful_device else ""
        draft.add(column.name, role, _said_of(column, columns, role), question=doubt, depth=1)


def _said_of(column: Column, columns: Columns, role: str) -> str:
    if role == "value":
        return _said_of_numbers(column, columns)
    distinct = column.present.unique(maintain_order=True)
    shown = ", ".join(distinct.head(3).to_list()) + (", …" if len(distinct) > 3 else "")  # noqa: PLR2004 - as shown
    return f"{len(distinct):,} value{'s' if len(distinct) > 1 else ''}: {shown}"


def _said_of_numbers(column: Column, columns: Columns) -> str:
    values = columns.values_of(column)
    present = len(column.present)
    said = f"{len(values):,} of {present:,} are numbers"
    if len(values):
        ordered = values.sort()
        said += f", {ordered[0]:g} to {ordered[-1]:g}"
    odd = columns.unread(column)
    return said + (f"; not numbers: {', '.join(f'{text!r} ({count:,})' for text, count in odd)}" if odd else "")


def _write_quantities(draft: Draft, columns: Columns, roles: Roles, types: Mapping[str, KnownType]) -> None:
    if not roles.quantities:
        return
    draft.add("quantities", comment="each column of numbers is a quantity; the names of the types are a guess")
    names = type_names(columns, roles, types)
    for index, named in roles.quantities.items():
        column = columns.all[index]
        written: dict[str, str] = {"sensor_type": names[index]}
        if named.unit:
            written["unit"] = named.unit
        question = _doubt(named, names[index], types)
        draft.add(column.name, written, _said_of_numbers(column, columns), question=question, depth=1)


def _doubt(named: NameGuess, type_name: str, types: Mapping[str, KnownType]) -> str:
    if named.unit:
        return ""
    known = types.get(type_name)
    if known and known.units:
        return f"in which unit? Without one, {known.units[0]} is taken"
    return "in which unit?"


def _write_constants(draft: Draft, columns: Columns, roles: Roles, file_name: str) -> None:
    value = roles.index_of("value")
    if value is not None and roles.index_of("sensor_type") is None:
        draft.add("constants")
        named = slug(columns.all[value].meaning) or "value"
        draft.add("sensor_type", named, question="what does it measure, and in which unit?", depth=1)
    if roles.index_of("device_id") is None:
        pattern = next(each for each in DEVICE_IN_NAME if first_group(file_name, each))
        device = first_group(file_name, pattern)
        draft.add("from_file_name")
        draft.add(
            "device_id",
            pattern,
            question=f"no column names the device: is it {device!r}, from the file's name?",
            depth=1,
        )


def _write_ignored(draft: Draft, columns: Columns, roles: Roles) -> None:
    named = {columns.all[index].name: why for index, why in roles.ignored.items() if columns.all[index].name}
    if named:
        draft.add("ignored")
    for name, why in named.items():
        draft.item(name, why, depth=1)


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
        draft.add("nulls", comment="the usual spellings of a missing value, and those found in this file")
        for spelling in DEFAULT_NULLS:
            draft.item(spelling, depth=1)
        for null in columns.nulls:
            draft.item(null.spelling, f"{null.cells:,} times: {null.why}", depth=1)


def _write_times(draft: Draft, columns: Columns, guesses: Sequence[TimeGuess]) -> None:
    draft.add("timestamps")
    formats = list(dict.fromkeys(format_ for guess in guesses for format_ in guess.formats))
    fit, total = sum(guess.fit for guess in guesses), sum(guess.total for guess in guesses)
    why = [guess.why for guess in guesses if guess.why]
    rivals = [f"or is it {' or '.join(guess.alternatives)}?" for guess in guesses if guess.alternatives]
    comment = "; ".join([f"{fit:,} of {total:,} fit", *dict.fromkeys(why)])
    draft.add("formats", formats, comment, question=" ".join(dict.fromkeys(rivals)), depth=1)
    clocked = [guess for guess in guesses if guess.has_clock and not guess.formats[0].startswith("unix")]
    if clocked:
        _write_zone(draft, columns, min(guess.has_offset for guess in clocked))


def _write_zone(draft: Draft, columns: Columns, has_offset: float) -> None:
    names = " ".join(columns.all[index].name for index in (columns.times or ((),))[0])
    if has_offset == 1.0:
        draft.add("zone", "UTC", "every time carries its offset, so this is never used", depth=1)
    elif re.search(r"(?i)\b(?:utc|gmt)\b(?! ?[+-])|_utc|[(]z[)]", names):
        draft.add("zone", "UTC", f"the column is called {names}", depth=1)
    else:
        draft.add("zone", "UTC", question="times carry no offset: in which zone are they? UTC is assumed", depth=1)
