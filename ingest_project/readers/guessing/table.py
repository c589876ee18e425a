"""Guess which rows of a grid are its header, which are above it, and which are records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ingest_project.core.errors import FileRejectedError
from ingest_project.core.items import grouped
from ingest_project.readers.casting import clean_name, matched_name
from ingest_project.readers.formats.excel_reader import SheetRow, rows_of_all_sheets
from ingest_project.readers.guessing.names import unit_of, without_serial
from ingest_project.readers.guessing.text import MAX_ABOVE, MAX_ROWS, Grid, Row, is_missing, is_typed
from ingest_project.readers.layout import ReadLimits

TYPED_SHARE = 0.8
MAX_HEADER_ROWS = 6
MAX_BELOW_NUMBERS = 2
MIN_GROUPS = 2
MIN_NAMES = 3
# A year or a date, which may be the name of a column.
DATED = re.compile(r"(?:19|20)[0-9]{2}(?:[-/.][0-9]{1,2}.*)?|[0-9]{1,2}[-/.][0-9]{1,2}[-/.](?:19|20)[0-9]{2}.*")
# A longer text is not a name, and YAML accepts keys of up to 1,024 characters only.
MAX_NAME = 200
# Texts that data loggers write below their header besides units: time stamp, record number, aggregation.
PROCESSING = frozenset({"ts", "rn", "avg", "smp", "min", "max", "tot", "std", "sample", "wvc", "unitless", "none"})


@dataclass(frozen=True)
class Table:
    """A grid whose header has been found.

    Args:
        names: of its columns; their numbers where the file has no header.
        labels: the same, or what a line of comment above the first record calls them.
        header: True if the file has one.
        group_names: of the row above the header, where both together name a column.
        units: cells of the row of units below the header, by column; empty without such a row.
        skip_lines: physical lines above the header, or above the first record.
        skip_below: rows between the header and the first record.
        records: rows with the width of the table.
        footer: rows at the end of the file that are no records.
        above: the lines above the header, as they are written.
        notes: sentence with the evidence for each guess, by guess.
        question: about the header, where the file does not decide which row it is.
        trailing_delimiter: True if records end in a delimiter, and the header does not.
    """

    names: list[str]
    labels: list[str]
    header: bool
    group_names: list[str]
    units: list[str]
    skip_lines: int
    skip_below: int
    records: list[Row]
    footer: list[Row]
    above: tuple[str, ...]
    notes: dict[str, str]
    question: str = ""
    trailing_delimiter: bool = False

    @property
    def selectors(self) -> list[str]:
        """How a profile names each column: by its name, or by its number where that is empty, long or of two."""
        matched = [matched_name(name) for name in self.names]
        plain = not self.group_names
        return [
            _selector(name)
            if plain and 0 < len(name) <= MAX_NAME and matched.count(matched_name(name)) == 1
            else f"#{number}"
            for number, name in enumerate(self.names, 1)
        ]

    @property
    def comment(self) -> str | None:
        """The mark that begins every line above the first record, in a file without a header."""
        lines = [line.lstrip() for line in self.above if line.strip()]
        marks = {line[0] for line in lines}
        return marks.pop() if not self.header and len(marks) == 1 and marks <= set("#;%!") else None


def _selector(name: str) -> str:
    """Return a name as a profile writes it; without the serial numbers that make it another one in each file."""
    plain = without_serial(name)
    if plain == name:
        return name
    literal = re.sub(r"([^\w ,°%])", r"[\1]", plain)
    return f"/^{literal} ?[(]/"


def find_table(grid: Grid) -> Table:
    """Find the header and the records of a grid.

    Raises:
        FileRejectedError: `no_rows` for a grid without any record.
    """
    if not grid.rows:
        raise FileRejectedError("no_rows", "The file has only comments: there is nothing to guess.")
    width = _width(grid.rows)
    if trailing := _have_trailing_delimiter(grid, width):
        width -= 1
        cut, last = ([row._replace(cells=row.cells[:width]) for row in part] for part in (grid.rows, grid.last_rows))
        grid = grid._replace(rows=cut, last_rows=last)
    rows = grid.rows
    typed = _typed_columns([row for row in rows[len(rows) // 2 :] if len(row.cells) == width], width)
    first, header_rows = _beginning(rows, width, typed)
    header, groups, below = _parts_of_header(header_rows)
    # A profile names the columns of fixed width itself.
    groups = None if grid.widths else groups
    body = [*rows[first:], *grid.last_rows]
    fitting = [row for row in body if _fits(row, width)]
    if not fitting:
        raise FileRejectedError(
            "no_rows", "No row below the header has its number of cells: there is nothing to guess."
        )
    footer = _footer(body, width, typed)
    top = (groups or header or rows[first]).line
    names, above = _names(header, width), grid.above[: max(top - 1, 0)]
    if header and grid.delimiter:
        # Readers leave out the columns behind the last name.
        names = names[: max((number for number, name in enumerate(names, 1) if name), default=width)]
    labels = _labels(names, groups) if header else _labels_above(grid, top, width, fitting)
    return Table(
        names=names,
        labels=[*grid.labels] or labels or names,
        header=header is not None,
        group_names=groups.cells if groups else [],
        units=below[0].cells if below else [],
        # Readers find the header of a text below blank lines themselves.
        skip_lines=max(top - 1, 0) if grid.delimiter is None or any(map(str.strip, above)) else 0,
        skip_below=len(below),
        # Readers reject a repeated header.
        records=[row for row in fitting if row not in footer and not (header and row.cells == header.cells)],
        footer=footer,
        above=above,
        notes=_notes(header, header_rows, typed, width),
        question="" if groups or grid.widths else _question(rows, first, header_rows, header, typed),
        trailing_delimiter=trailing,
    )


def _have_trailing_delimiter(grid: Grid, width: int) -> bool:
    """Return True if the last cell of all records is empty, and the header lacks it."""
    before = next((row for row in grid.rows if len(row.cells) >= width - 1), grid.rows[0])
    records = [row for row in (*grid.rows, *grid.last_rows) if len(row.cells) >= width]
    return grid.delimiter is not None and len(before.cells) == width - 1 and not any(row.cells[-1] for row in records)


def _beginning(rows: Sequence[Row], width: int, typed: Sequence[int]) -> tuple[int, list[Row]]:
    """Return the index of the first record, and the rows that may be its header."""
    if not typed:
        # All cells are text: only its position tells the header from a record.
        first = next(at for at, row in enumerate(rows) if len(row.cells) == width) + 1
        return first, [rows[first - 1]]
    records = (at for at, row in enumerate(rows) if _is_record(row, width, typed))
    first = next((at for at in records if not _precedes_names(rows, at, width, typed)), len(rows))
    return first, _rows_above(rows, first, width) or _names_above(rows[:first], width, typed)


def _precedes_names(rows: Sequence[Row], at: int, width: int, typed: Sequence[int]) -> bool:
    """Return True for a row with a word, such as numbers of channels, if names are just below it, and not above."""
    if all(is_typed(rows[at].cells[column]) for column in typed):
        return False
    names = _names_above(rows[at + 1 : at + 1 + MAX_BELOW_NUMBERS], width, typed)
    return bool(names) and all(row.cells != names[0].cells for row in rows[:at])


def _width(rows: Sequence[Row]) -> int:
    """Return the commonest number of cells, the greater of two that are as common."""
    widths = Counter(len(row.cells) for row in rows)
    return max(widths, key=lambda each: (widths[each], each))


def _typed_columns(rows: Sequence[Row], width: int) -> list[int]:
    """Return the columns most of whose cells are a number or a time."""
    found = []
    for column in range(width):
        cells = [row.cells[column] for row in rows if not is_missing(row.cells[column])]
        if cells and sum(map(is_typed, cells)) >= TYPED_SHARE * len(cells):
            found.append(column)
    return found


def _is_record(row: Row, width: int, typed: Sequence[int]) -> bool:
    """Return True for a row at least half of whose cells in typed columns are a number or a time."""
    if len(row.cells) != width:
        return False
    cells = [row.cells[column] for column in typed]
    values = [cell for cell in cells if not is_missing(cell)]
    return bool(values) and sum(map(is_typed, values)) >= len(values) / 2


def _fits(row: Row, width: int) -> bool:
    return len(row.cells) == width or (len(row.cells) > width and not any(row.cells[width:]))


def _rows_above(rows: Sequence[Row], first: int, width: int) -> list[Row]:
    """Return the rows directly above the first record that have its width, in order."""
    found: list[Row] = []
    for row in reversed(rows[max(0, first - MAX_HEADER_ROWS) : first]):
        spare = len(row.cells) - width
        if spare and not (spare > 0 and not any(row.cells[width:])):
            break
        found.insert(0, row)
    return found


def _names_above(rows: Sequence[Row], width: int, typed: Sequence[int]) -> list[Row]:
    """Return the last of these rows that can be the header: all its cells have text, none is a number or a time."""
    fitting = [row for row in rows if len(row.cells) == width and all(row.cells)]
    return [row for row in fitting if not any(is_typed(row.cells[column]) for column in typed)][-1:]


def _question(
    rows: Sequence[Row], first: int, header_rows: Sequence[Row], header: Row | None, typed: Sequence[int]
) -> str:
    """Return a question about the header where the file does not decide which row it is; empty otherwise."""
    if header is not None and header_rows[0] is not header:
        return "does the row above belong to the names? Then header_rows: 2 replaces one of these lines"
    if header is not None and header.line and not typed:
        return f"does line {header.line} name the columns? All cells are text, so nothing tells it from a record"
    if header is None and first and len(rows[first - 1].cells) > 1:
        above = rows[first - 1]
        compared = f"It has {len(above.cells):,} cells, the records have {len(rows[first].cells):,}"
        return f"does line {above.line} name the columns? {compared}"
    cells = [rows[first].cells[column] for column in typed] if header is None else []
    if len(set(cells)) == len(cells) >= MIN_NAMES and all(map(DATED.fullmatch, cells)):
        return "years and dates all along the first row may be names of columns: are they? Then remove this line"
    return ""


def _parts_of_header(rows: Sequence[Row]) -> tuple[Row | None, Row | None, list[Row]]:
    """Return the header, the row above that belongs to it, and the rows between it and the records."""
    if not rows:
        return None, None, []
    at = len(rows) - 1
    while at > 0 and _is_units(rows[at]):
        at -= 1
    header, below = rows[at], list(rows[at + 1 :])
    groups = rows[at - 1] if at > 0 and not below and _is_group_row(rows[at - 1], header) else None
    return header, groups, below


def _is_units(row: Row) -> bool:
    cells = [cell for cell in row.cells if cell]
    return not cells or sum(map(_is_unit, cells)) > len(cells) / 2


def _is_unit(cell: str) -> bool:
    bracketed = cell[0] + cell[-1] in {"[]", "()"}
    return bracketed or unit_of(cell) is not None or cell.casefold() in PROCESSING


def _is_group_row(above: Row, header: Row) -> bool:
    """Return True if names repeat or are empty in the header, and the row above tells them apart."""
    named = [matched_name(cell) for cell in header.cells]
    return sum(bool(cell) for cell in above.cells) >= MIN_GROUPS and (len(set(named)) < len(named) or "" in named)


def _names(header: Row | None, width: int) -> list[str]:
    if header is None:
        return [str(number) for number in range(1, width + 1)]
    return [clean_name(cell) for cell in (*header.cells, *[""] * width)][:width]


def _labels(names: Sequence[str], groups: Row | None) -> list[str]:
    """Put the name of its group before each column's own: one to the left only where columns are called alike."""
    found, group = [], ""
    for index, name in enumerate(names):
        own = groups.cells[index] if groups and index < len(groups.cells) else ""
        group = own or group
        found.append(f"{group if names.count(name) > 1 else own} {name}".strip())
    return found


def _labels_above(grid: Grid, line: int, width: int, records: Sequence[Row]) -> list[str]:
    """Return the names in the line above the first record, if it has one for each column but an empty last one."""
    above = grid.above[: line - 1]
    text = above[-1].lstrip("#;%/ \t") if above else ""
    names = text.split(grid.delimiter) if grid.delimiter and len(grid.delimiter) == 1 else text.split()
    if len(names) == width - 1 and not any(row.cells[-1] for row in records):
        names.append("")
    return [clean_name(name) for name in names] if len(names) == width else []


def _footer(body: Sequence[Row], width: int, typed: Sequence[int]) -> list[Row]:
    """Return the rows at the end of the file that look like no record."""
    found: list[Row] = []
    for row in reversed(body[-MAX_HEADER_ROWS:]):
        if _is_record(row, width, typed) or not typed:
            break
        found.insert(0, row)
    return found if len(found) < min(len(body), MAX_HEADER_ROWS) else []


def _notes(header: Row | None, above: Sequence[Row], typed: Sequence[int], width: int) -> dict[str, str]:
    if header is None:
        return {"header": f"the first record already has a number or a time in its {len(typed)} such columns"}
    if not typed:
        return {"header": "a guess: all columns are text, so nothing tells the header from a record"}
    why = f"{len(typed)} of {width} columns hold numbers or times from the next row on"
    return {"header": why + (f"; {len(above)} rows have this width" if len(above) > 1 else "")}


def read_sheets(path: Path, file_type: str, limits: ReadLimits) -> tuple[int, Grid]:
    """Return the number of the sheet with the most numbers and times, and its rows.

    Raises:
        FileRejectedError: the workbook cannot be read, or no sheet has a cell with text.
    """
    sheets = grouped((row.sheet, row) for row in rows_of_all_sheets(path, file_type, limits, MAX_ROWS))
    if not sheets:
        raise FileRejectedError("empty_file", "No sheet has a cell with a value.")
    values = {number: _values(rows) for number, rows in sheets.items()}
    best = max(values, key=lambda number: values[number])
    rows = [Row(row.number, [cell.strip() for cell in row.cells], row.kinds) for row in sheets[best]]
    texts = {row.line: "\t".join(row.cells) for row in rows[:MAX_ABOVE]}
    above = tuple(texts.get(number, "") for number in range(1, MAX_ABOVE + 1))
    others = sum(values.values()) > values[best]
    question = "others have numbers or times too: are they left out? sheet: '*' reads all" if others else ""
    why = f"of {len(sheets)} sheets, the one with the most numbers and times"
    return best, Grid(rows, [], None, why, above=above, question=question)


def _values(rows: Sequence[SheetRow]) -> int:
    return sum(is_typed(cell) and not is_missing(cell) for row in rows for cell in row.cells)
