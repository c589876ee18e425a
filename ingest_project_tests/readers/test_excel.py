"""Workbooks: ordinary ones are read cell by cell; hostile ones end one child process and have a clear reason."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import xlwt
from openpyxl.styles import Font

from ingest_project.core.errors import FileRejectedError, LimitExceededError
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.profiles import ReaderProfile
from ingest_project_tests.readers.samples import CANONICAL, casted, read

NAMES = ["timestamp", "device_id", "sensor_type", "value", "unit"]
MOMENT = datetime(2024, 1, 15, 10, 30, 45)  # noqa: DTZ001 - cells of a workbook have no zone


def xlsx(folder: Path, rows: Sequence[Sequence[Any]], title: str = "Readings") -> Path:
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    assert sheet is not None
    sheet.title = title
    for row in rows:
        sheet.append(list(row))
    path = folder / "sample.xlsx"
    workbook.save(path)
    return path


def refused(
    path: Path, file_type: str = "xlsx", limits: ReadLimits | None = None, profile: ReaderProfile = CANONICAL
) -> FileRejectedError:
    with pytest.raises(FileRejectedError) as error:
        read(path, profile, file_type, limits)
    assert error.value.detail
    assert "\n" not in error.value.detail
    return error.value


def test_cells_become_text_with_dates_as_iso_8601_and_numbers_whole(tmp_path: Path) -> None:
    midnight = datetime(2024, 1, 16)  # noqa: DTZ001
    rows: list[list[Any]] = [
        NAMES,
        [MOMENT, 1001, "temperature", 0.123456789012345, "C"],
        [midnight, "007", "t", True, None],
    ]
    outcome = read(xlsx(tmp_path, rows), CANONICAL, "xlsx")
    assert outcome.rows.select("line_number", *NAMES).rows() == [
        (2, "2024-01-15T10:30:45", "1001", "temperature", "0.123456789012345", "C"),
        (3, "2024-01-16T00:00:00", "007", "t", "true", None),
    ]
    assert outcome.rows["value_kind"].to_list() == ["n", "b"]
    assert casted(outcome)["timestamp"].to_list() == [MOMENT.replace(tzinfo=UTC), midnight.replace(tzinfo=UTC)]


def test_line_numbers_are_the_sheets_rows_and_raw_text_its_cells(tmp_path: Path) -> None:
    rows: list[list[Any]] = [NAMES, [MOMENT, "a", "t", 1], [], [MOMENT, 'two\nlines "so"', "t", 2]]
    outcome = read(xlsx(tmp_path, rows), CANONICAL, "xlsx")
    assert outcome.rows["line_number"].to_list() == [2, 4]
    assert outcome.rows["device_id"].to_list() == ["a", 'two\nlines "so"']
    assert outcome.chunks[0].raw_text([4]) == [
        '{"timestamp":"2024-01-15T10:30:45","device_id":"two\\nlines \\"so\\"","sensor_type":"t","value":"2"}'
    ]


def test_formulas_are_not_evaluated_and_text_that_looks_like_one_is_text(tmp_path: Path) -> None:
    rows: list[list[Any]] = [NAMES, [MOMENT, "=1+1", "t", "=2+2"]]
    workbook = openpyxl.load_workbook(xlsx(tmp_path, rows))
    sheet = workbook["Readings"]
    sheet["B2"].data_type = "s"
    workbook.save(tmp_path / "sample.xlsx")
    outcome = read(tmp_path / "sample.xlsx", CANONICAL, "xlsx")
    assert outcome.rows.select("device_id", "value", "value_kind").rows() == [("=1+1", "=2+2", "f")]
    assert casted(outcome)["value"].to_list() == [None]


def test_an_old_workbook_is_read_too(tmp_path: Path) -> None:
    workbook = xlwt.Workbook()
    sheet = workbook.add_sheet("Readings")
    style = xlwt.easyxf(num_format_str="YYYY-MM-DD HH:MM:SS")
    for column, name in enumerate(NAMES):
        sheet.write(0, column, name)
    for column, cell in enumerate([MOMENT, 1001, "temperature", 21.5, "C"]):
        sheet.write(1, column, cell, style if column == 0 else xlwt.easyxf())
    workbook.save(str(tmp_path / "sample.xls"))
    outcome = read(tmp_path / "sample.xls", CANONICAL, "xls")
    rows = outcome.rows.select("line_number", *NAMES).rows()
    assert rows == [(2, "2024-01-15T10:30:45", "1001", "temperature", "21.5", "C")]


def test_the_profile_names_the_sheet_and_the_rows_above_the_header(tmp_path: Path) -> None:
    path = xlsx(tmp_path, [["Report"], [], NAMES, [MOMENT, "a", "t", 1, "C"]])
    named = CANONICAL.model_copy(update={"sheet": "Readings", "skip_lines": 2})
    assert read(path, named, "xlsx").rows["line_number"].to_list() == [4]
    missing = refused(path, profile=named.model_copy(update={"sheet": "Elsewhere"}))
    assert missing.rule == "missing_sheet"
    assert "'Readings'" in missing.detail


def in_sheets(folder: Path, file_type: str, hidden: int) -> Path:
    """Write a workbook with one reading in each of three sheets; the sheets at the beginning are hidden, or very."""
    path = folder / f"sheets.{file_type}"
    book: Any = openpyxl.Workbook() if file_type == "xlsx" else xlwt.Workbook()
    for number in range(3):
        if file_type == "xlsx":
            sheet = book.create_sheet(f"S{number}", number)
            sheet.sheet_state = ("hidden", "veryHidden")[number] if number < hidden else "visible"
        else:
            sheet = book.add_sheet(f"S{number}")
            sheet.visibility = number + 1 if number < hidden else 0
        reading = ["2024-01-15T10:30:45", f"d{number}", "t", "1", "C"]
        for row, cells in enumerate([NAMES, reading]):
            for column, text in enumerate(cells):
                if file_type == "xlsx":
                    sheet.cell(row + 1, column + 1, text)
                else:
                    sheet.write(row, column, text)
    book.save(str(path))
    return path


@pytest.mark.parametrize("file_type", ["xlsx", "xls"])
def test_a_hidden_sheet_is_read_only_by_its_name(tmp_path: Path, file_type: str) -> None:
    path = in_sheets(tmp_path, file_type, hidden=2)
    chosen: list[tuple[int | str, list[str]]] = [(0, ["d2"]), ("S[02]", ["d2"]), ("S1", ["d1"])]
    for sheet, devices in chosen:
        profile = CANONICAL.model_copy(update={"sheet": sheet})
        assert read(path, profile, file_type).rows["device_id"].to_list() == devices
    missing = refused(path, file_type, profile=CANONICAL.model_copy(update={"sheet": 3}))
    assert "it has 'S0' (hidden), 'S1' (hidden), 'S2'" in missing.detail


def test_a_chart_sheet_has_no_rows(tmp_path: Path) -> None:
    path = xlsx(tmp_path, [NAMES, [MOMENT, "a", "t", 1, "C"]])
    workbook = openpyxl.load_workbook(path)
    workbook.create_chartsheet("Chart", 0)
    workbook.save(path)
    assert read(path, CANONICAL, "xlsx").rows["line_number"].to_list() == [2]


def test_an_empty_first_row_is_no_header(tmp_path: Path) -> None:
    path = xlsx(tmp_path, [[], NAMES, [MOMENT, "a", "t", 1, "C"]])
    assert "The first row with text is 2" in refused(path).detail


def test_a_sheet_without_cells_is_refused(tmp_path: Path) -> None:
    assert refused(xlsx(tmp_path, [])).rule == "empty_file"
    assert refused(xlsx(tmp_path, [NAMES])).rule == "no_rows"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("~$book.xlsx", b"\x05owner" + b" " * 165, "lock file"),
        ("book.xlsx", b"\xd0\xcf\x11\xe0" + b"\0" * 600, "protected by a password"),
        ("book.xlsx", b"timestamp,device_id\n", "not an xlsx workbook, but text, such as csv"),
        ("book.xlsx", b"\n<html><table>", "not an xlsx workbook, but an HTML or XML document"),
        ("book.xls", b"\xef\xbb\xbf<!DOCTYPE html>", "not an xls workbook, but an HTML or XML document"),
        ("book.xls", b"%PDF-1.7", "not an xls workbook, but a PDF document"),
        ("book.xlsx", b"PK\x03\x04 and then nothing", "its end is missing"),
        ("book.xls", b"PK\x03\x04 and then nothing", "called xls"),
        ("book.xls", b"\xd0\xcf\x11\xe0" + b"\0" * 600, "damaged"),
        ("book.xls", b"<html><table></table></html>", "not an xls workbook, but an HTML"),
    ],
)
def test_a_file_that_is_not_a_workbook_is_refused_with_a_sentence(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refusal = refused(path, name.rpartition(".")[2])
    assert refusal.rule == "unreadable_container"
    assert said in refusal.detail


def test_a_damaged_workbook_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    path = xlsx(tmp_path, [NAMES, [MOMENT, "a", "t", 1, "C"]])
    with zipfile.ZipFile(path) as archive:
        sheet = archive.read("xl/worksheets/sheet1.xml").replace(b't="n"><v>1</v>', b't="b"><v>9</v>')
    assert (
        "damaged (CalamineError: Unrecognized boolean"
        in refused(replace_part(path, "xl/worksheets/sheet1.xml", sheet)).detail
    )


@pytest.mark.parametrize("part", ["mimetype", "xl/workbook.bin"])
def test_a_workbook_of_another_format_is_named(tmp_path: Path, part: str) -> None:
    with zipfile.ZipFile(path := tmp_path / "book.xlsx", "w") as archive:
        archive.writestr(part, b"x")
    assert "an ods or xlsb workbook called xlsx" in refused(path).detail


def replace_part(path: Path, part: str, content: bytes) -> Path:
    """The workbook with one of its parts replaced."""
    altered = path.with_name("altered.xlsx")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(altered, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, content if entry.filename == part else old.read(entry))
    return altered


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = xlsx(tmp_path, [NAMES])
    bomb = replace_part(path, "xl/worksheets/sheet1.xml", b" " * 20 * 1024**2)
    started = time.monotonic()
    refusal = refused(bomb)
    assert isinstance(refusal, LimitExceededError)
    assert "times its size" in refusal.detail
    assert time.monotonic() - started < 60


def test_an_xml_bomb_is_refused(tmp_path: Path) -> None:
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    content = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "ha">{laughs}]><sst><si><t>&l9;</t></si></sst>'
    for encoding in ("utf-8", "utf-16"):
        path = xlsx(tmp_path, [NAMES])
        refusal = refused(replace_part(path, "xl/workbook.xml", content.encode(encoding)))
        assert "XML entities" in refusal.detail


def test_more_cells_memory_time_or_bytes_than_allowed_name_the_limit(tmp_path: Path) -> None:
    path = xlsx(tmp_path, [NAMES, *([MOMENT, f"device {i}", "t", i, "C"] for i in range(5_000))])
    for limits, name in [
        (ReadLimits(max_excel_cells=1_000), "INGEST_MAX_EXCEL_CELLS"),
        (ReadLimits(max_excel_bytes=1_000), "INGEST_MAX_EXCEL_BYTES"),
        (ReadLimits(max_excel_memory_bytes=200_000), "INGEST_MAX_EXCEL_MEMORY_BYTES"),
    ]:
        refusal = refused(path, limits=limits)
        assert isinstance(refusal, LimitExceededError)
        assert refusal.limit == name


def test_a_cell_at_the_far_corner_is_refused_with_the_limit_unless_it_has_only_a_format(tmp_path: Path) -> None:
    path = xlsx(tmp_path, [NAMES, [MOMENT, "a", "t", 1, "C"]])
    workbook = openpyxl.load_workbook(path)
    far = workbook.worksheets[0]["XFD1048576"]
    far.font = Font(bold=True)
    workbook.save(path)
    assert read(path, CANONICAL, "xlsx").rows["line_number"].to_list() == [2]
    far.value = "far"
    workbook.save(path)
    edited = tmp_path / "edited.xlsx"
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(edited, "w", zipfile.ZIP_DEFLATED) as made:
        for part in given.infolist():
            # Not every program says in a sheet which cell is the last one.
            made.writestr(part.filename, given.read(part).replace(b"<dimension ", b"<ignored "))
    for book in (path, edited):
        assert refused(book).detail == "The sheet has 17179869184 cells, over 20000000 (limit: INGEST_MAX_EXCEL_CELLS)"


def test_a_worker_killed_in_the_middle_is_a_refused_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = xlsx(tmp_path, [NAMES, [MOMENT, "a", "t", 1, "C"]])
    with pytest.raises(LimitExceededError) as refusal:
        # A limit of no CPU time: the kernel ends the process as soon as it has begun.
        read(path, CANONICAL, "xlsx", ReadLimits(max_excel_seconds=0.0))
    assert refusal.value.limit == "INGEST_MAX_EXCEL_SECONDS"
    children = Path("/proc/self/task").glob("*/children")
    running = [Path("/proc", pid, "cmdline").read_text() for path in children for pid in path.read_text().split()]
    assert not [command for command in running if "excel_worker" in command]
