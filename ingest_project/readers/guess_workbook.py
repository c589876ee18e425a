"""Choose the sheet of a workbook that holds a table, and read its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.excel_reader import SheetRow, rows_of_all_sheets
from ingest_project.readers.guess_text import MAX_ABOVE, MAX_ROWS, Grid, Row, is_missing, is_typed
from ingest_project.readers.layout import ReadLimits


def read_sheets(path: Path, file_type: str, limits: ReadLimits) -> tuple[int, Grid]:
    """Return the number of the sheet with the most numbers and times, and its rows.

    Raises:
        FileRejectedError: the workbook cannot be read, or no sheet has a cell with text.
    """
    sheets: dict[int, list[SheetRow]] = {}
    for row in rows_of_all_sheets(path, file_type, limits, MAX_ROWS):
        sheets.setdefault(row.sheet, []).append(row)
    if not sheets:
        raise FileRejectedError("empty_file", "No sheet has a cell with a value.")
    best = max(sheets, key=lambda number: _values(sheets[number]))
    rows = [Row(row.number, [cell.strip() for cell in row.cells], row.kinds) for row in sheets[best]]
    texts = {row.line: "\t".join(row.cells) for row in rows[:MAX_ABOVE]}
    above = tuple(texts.get(number, "") for number in range(1, MAX_ABOVE + 1))
    return best, Grid(rows, [], None, f"of {len(sheets)} sheets, the one with the most numbers and times", above=above)


def _values(rows: Sequence[SheetRow]) -> int:
    return sum(is_typed(cell) and not is_missing(cell) for row in rows for cell in row.cells)
