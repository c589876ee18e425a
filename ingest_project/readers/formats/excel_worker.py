"""Open one workbook in a separate process, so that a hostile workbook affects only this process.

Run by `excel_reader` as a script in a confined process, with little of the project imported, no secrets in its
environment, and limits of memory, CPU time and output in force. Writes each chosen sheet's rows as tab-separated text,
every cell quoted, with the row's number and the kinds of its cells in front, and the names of the sheets with the text
above their headers; or one JSON object with the reason, as `rule` and `detail`. Formulas are never evaluated: the
result that a spreadsheet program stored is used, if it was calculated.
"""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from pathlib import Path

from ingest_project.platform.confined import ContentRejectedError, convert_file
from ingest_project.readers.cells import Sheet

MAX_PARTS = 10_000
# A sheet of repeated cells deflates to about a fiftieth; deflate itself cannot go beyond a thousandth.
MAX_RATIO = 300
SMALL_PART_BYTES = 4 * 1024**2
PROLOG_BYTES = 64 * 1024
MAX_TEXT_ABOVE = 1_000
MAX_SAID = 200
# In front of each row: too long for a spelling of "missing", with the row's number at a fixed position.
ROW_MARK = "row {:>10} cells {}"


def convert(  # noqa: PLR0913 - the options of the command line
    workbook: str, rows: str, *, kind: str, sheet: int | str, skip_rows: int, max_cells: int, memory_bytes: int
) -> None:
    """Write the rows of the chosen sheets.

    Raises:
        ContentRejectedError: the workbook is not acceptable, or has no such sheet.
    """
    if kind == "xlsx":
        check_archive(Path(workbook), memory_bytes)
    # Imported with the limits in force, so that they apply to these libraries as well.
    from ingest_project.readers.formats.excel_sheets import xls_sheets, xlsx_sheets

    sheets = (xlsx_sheets if kind == "xlsx" else xls_sheets)(Path(workbook), sheet, max_cells)
    written = [_write(one, skip_rows, sheet_file(Path(rows), index)) for index, one in enumerate(sheets)]
    sheets_file(Path(rows)).write_text(json.dumps(written), encoding="utf-8")


def _unreadable(detail: str) -> ContentRejectedError:
    return ContentRejectedError("unreadable_container", detail)


def _too_large(detail: str) -> ContentRejectedError:
    return ContentRejectedError("limit_exceeded", f"The workbook {detail}", "memory")


def _damaged(error: Exception) -> ContentRejectedError:
    return _unreadable(f"The workbook is damaged ({type(error).__name__}: {ascii(str(error))[1:-1][:MAX_SAID]}).")


def check_archive(path: Path, memory_bytes: int) -> None:
    """Reject archives that would grow out of proportion, and XML that declares entities, before anything is unpacked.

    Raises:
        ContentRejectedError: the archive or its XML is not acceptable.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _unreadable("The file is not a workbook, or its end is missing.") from error
    with archive:
        parts = archive.infolist()
        if not {"mimetype", "xl/workbook.bin"}.isdisjoint(archive.NameToInfo):
            raise _unreadable("The file is an ods or xlsb workbook called xlsx.")
        size = sum(part.file_size for part in parts)
        if len(parts) > MAX_PARTS:
            raise _too_large(f"has {len(parts)} parts, over {MAX_PARTS}")
        if size > memory_bytes:
            raise _too_large(f"unpacks to {size} bytes, over {memory_bytes}")
        for part in parts:
            if part.file_size > SMALL_PART_BYTES and part.file_size > MAX_RATIO * max(part.compress_size, 1):
                raise _too_large(f"unpacks a part to {part.file_size // max(part.compress_size, 1)} times its size")
            if part.filename.endswith((".xml", ".rels")):
                _check_prolog(archive, part)


def _check_prolog(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    with archive.open(part) as file:
        # Without the NUL bytes, UTF-16 reads like ASCII here.
        prolog = file.read(PROLOG_BYTES).replace(b"\0", b"")
    if b"<!DOCTYPE" in prolog or b"<!ENTITY" in prolog:
        raise _unreadable("The workbook declares XML entities, which no spreadsheet program does.")


def sheet_file(rows: Path, index: int) -> Path:
    """Return the file with the rows of one of the chosen sheets."""
    return rows.with_suffix(f".{index}.tsv")


def sheets_file(rows: Path) -> Path:
    """Return the file with the name of each chosen sheet, the text above its header, and its number of rows."""
    return rows.with_suffix(".json")


def _write(sheet: Sheet, skip_rows: int, path: Path) -> dict[str, object]:
    above: list[str] = []
    first = count = 0
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        for number, row in enumerate(sheet.rows, start=1):
            if number <= skip_rows:
                above.append("\t".join(cell.text for cell in row)[:MAX_TEXT_ABOVE])
            elif any(cell.text for cell in row):
                kinds = "".join(cell.kind for cell in row)
                writer.writerow([ROW_MARK.format(number, kinds), number, *(cell.text for cell in row)])
                first, count = first or number, count + 1
    return {"name": sheet.name, "above": "\n".join(above), "first_row": first, "rows": count}


if __name__ == "__main__":
    sys.exit(convert_file(convert, _damaged))
