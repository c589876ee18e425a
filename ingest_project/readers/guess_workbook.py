"""Choose the sheet of a workbook that holds a table, and read its rows."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.excel_reader import sheet_cells
from ingest_project.readers.guess_text import MAX_ROWS, Grid, Row, is_missing, is_typed
from ingest_project.readers.layout import ReadLimits

MAX_SHEETS = 8


def read_sheets(path: Path, file_type: str, limits: ReadLimits) -> tuple[int, Grid]:
    """Return the number of the sheet with the most numbers and times, and its rows.

    Raises:
        FileRejectedError: the workbook cannot be read, or no sheet has a cell with text.
    """
    sheets: list[list[Row]] = []
    for number in range(MAX_SHEETS):
        try:
            rows = islice(sheet_cells(path, file_type, number, limits), MAX_ROWS)
            sheets.append([Row(line, [cell.strip() for cell in cells], kinds) for line, kinds, cells in rows])
        except FileRejectedError as error:
            if error.rule != "missing_sheet" or not sheets:
                raise
            break
    best = max(range(len(sheets)), key=lambda number: _values(sheets[number]))
    if not sheets[best]:
        raise FileRejectedError("empty_file", "No sheet has a cell with a value.")
    why = f"of {len(sheets)} sheets, the one with the most numbers and times" if len(sheets) > 1 else ""
    return best, Grid(sheets[best], [], None, why)


def _values(rows: list[Row]) -> tuple[int, int]:
    typed = sum(is_typed(cell) and not is_missing(cell) for row in rows for cell in row.cells)
    return typed, len(rows)
