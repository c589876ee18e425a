"""The process that opens one workbook: whatever a hostile one does, it does to this process.

Run by excel.py as a script, with nothing of the project imported and no secrets in its environment. Sets its own limits
of memory, CPU time and output, then writes the sheet's rows as tab-separated text, every cell quoted, the row's number
in the sheet first; or one JSON object with `rule` and `detail` that says why not. Formulas are never evaluated: what
Excel stored as their result is text like any other.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import sys
import zipfile
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable

OUTPUT_BYTES = 2 * 1024**3
MAX_PARTS = 10_000
# A sheet of repeated cells deflates to about a fiftieth; deflate itself cannot go beyond a thousandth.
MAX_RATIO = 300
SMALL_PART_BYTES = 4 * 1024**2
PROLOG_BYTES = 64 * 1024
ENGINES: dict[str, Literal["calamine", "xlrd"]] = {"xlsx": "calamine", "xls": "xlrd"}
# Above this a float no longer holds every integer.
EXACT_INTEGERS = 2.0**53


class Refused(Exception):  # noqa: N818 - the domain's word
    """The workbook is not read, and why."""

    def __init__(self, rule: str, detail: str, limit: str | None = None) -> None:
        self.reason = {"rule": rule, "detail": detail, "limit": limit}
        super().__init__(detail)


def main() -> int:
    """Read the workbook named on the command line.

    Returns:
        0 when the rows were written, 3 when the reason was.
    """
    options = _options()
    _limit_resources(options.memory_bytes, options.cpu_seconds)
    try:
        if options.kind == "xlsx":
            check_archive(options.workbook, options.memory_bytes)
        rows = _sheet(options)
        with options.rows.open("w", encoding="utf-8", errors="replace", newline="") as file:
            _write(rows, options.skip_rows, file)
    except Refused as refused:
        reason = refused.reason
    except MemoryError:
        reason = {"rule": "limit_exceeded", "detail": "Opening it needs more memory than allowed", "limit": "memory"}
    except Exception as error:  # noqa: BLE001 - the libraries raise anything at all on crafted files
        kind = type(error).__name__
        reason = {"rule": "unreadable_container", "detail": f"The workbook is damaged ({kind}).", "limit": None}
    else:
        return 0
    options.reason.write_text(json.dumps(reason), encoding="utf-8")
    return 3


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("workbook", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("reason", type=Path)
    parser.add_argument("--kind", choices=tuple(ENGINES), required=True)
    parser.add_argument("--sheet", type=json.loads, required=True)
    parser.add_argument("--skip-rows", type=int, required=True)
    parser.add_argument("--max-cells", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--cpu-seconds", type=int, required=True)
    return parser.parse_args()


def _limit_resources(memory_bytes: int, cpu_seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES, OUTPUT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def check_archive(path: Path, memory_bytes: int) -> None:
    """Refuse archives that would grow out of proportion, and XML that declares entities, before anything is unpacked.

    Raises:
        Refused: says which.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise Refused("unreadable_container", "The file is not a workbook, or its end is missing.") from error
    with archive:
        parts = archive.infolist()
        size = sum(part.file_size for part in parts)
        if len(parts) > MAX_PARTS:
            raise Refused("limit_exceeded", f"The workbook has {len(parts)} parts, over {MAX_PARTS}", "memory")
        if size > memory_bytes:
            raise Refused("limit_exceeded", f"The workbook unpacks to {size} bytes, over {memory_bytes}", "memory")
        for part in parts:
            if part.file_size > SMALL_PART_BYTES and part.file_size > MAX_RATIO * max(part.compress_size, 1):
                detail = (
                    f"A part of the workbook unpacks to {part.file_size // max(part.compress_size, 1)} times its size"
                )
                raise Refused("limit_exceeded", detail, "memory")
            if part.filename.endswith((".xml", ".rels")):
                _check_prolog(archive, part)


def _check_prolog(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    with archive.open(part) as file:
        # Without the NUL bytes, UTF-16 reads like ASCII here.
        prolog = file.read(PROLOG_BYTES).replace(b"\0", b"")
    if b"<!DOCTYPE" in prolog or b"<!ENTITY" in prolog:
        raise Refused("unreadable_container", "The workbook declares XML entities, which no spreadsheet program does.")


def _sheet(options: argparse.Namespace) -> Iterable[tuple[Any, ...]]:
    import pandas as pd  # noqa: PLC0415 - after the limits are in force

    with pd.ExcelFile(options.workbook, engine=ENGINES[options.kind]) as workbook:
        names = workbook.sheet_names
        if not names:
            raise Refused("unreadable_container", "The workbook has no sheet that can be read.")
        known = options.sheet in names if isinstance(options.sheet, str) else 0 <= options.sheet < len(names)
        if not known:
            shown = ", ".join(repr(str(name)[:40]) for name in names[:12])
            raise Refused("missing_sheet", f"The workbook has no sheet {options.sheet!r}; it has {shown}.")
        frame = workbook.parse(options.sheet, header=None, dtype=object, na_filter=False)
    if frame.size > options.max_cells:
        raise Refused("limit_exceeded", f"The sheet has {frame.size} cells, over {options.max_cells}", "cells")
    rows: Iterable[tuple[Any, ...]] = frame.itertuples(index=False, name=None)
    return rows


def _write(rows: Iterable[tuple[Any, ...]], skip_rows: int, file: TextIO) -> None:
    writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
    for number, row in enumerate(rows, start=1):
        if number > skip_rows:
            cells = [cell_text(cell) for cell in row]
            if any(cells):
                writer.writerow([number, *cells])


def cell_text(cell: object) -> str:
    """A cell as text: dates as ISO 8601, numbers with every digit they have, whole numbers without a fraction."""
    if cell is None or cell != cell:  # noqa: PLR0124 - only NaN and NaT are unlike themselves
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < EXACT_INTEGERS else repr(cell)
    if isinstance(cell, datetime | time):
        return cell.isoformat()
    if isinstance(cell, date):
        # A cell that holds midnight comes as a date alone.
        return f"{cell.isoformat()}T00:00:00"
    return str(cell)


if __name__ == "__main__":
    sys.exit(main())
