"""Typed cells of workbooks are read as Excel shows them, or the row is refused with its reason."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import xlwt
from openpyxl.utils.datetime import CALENDAR_MAC_1904

from ingest_project.file_ingest.sensor_readings import SensorTypes, ValidationRules, validate
from ingest_project.readers.casting import cast
from ingest_project.readers.cells import DATE, DURATION, INEXACT, cell_of
from ingest_project.readers.formats.excel_sheets import EPOCHS
from ingest_project.readers.profiles import ReaderProfile
from ingest_project_tests.readers.samples import CANONICAL, read
from ingest_project_tests.readers.test_excel import MOMENT, NAMES, replace_part, xlsx

RULES = ValidationRules(SensorTypes.load(), datetime(2026, 6, 1, tzinfo=UTC))
BERLIN = datetime(2024, 1, 15, 9, 30, 45, tzinfo=UTC)
# A value and the number format of its cell, and what is read of it.
NUMBERS = [
    (21.375, "General", 21.375),
    (1.013, "0.000", 1.013),
    (-3.125, "#,##0.00 €", -3.125),
    (7, "0", 7.0),
    (0.45, "0 %", 45.0),
    (0.07, "0.0%", 7.0),
    (1e-7, "0%", 1e-5),
    (12.5, '0.0 "%"', 12.5),
    (1234567.5, "#,##0.0", 1234567.5),
    (0.123456789012345, "0.0", 0.123456789012345),
]


@cache
def german() -> ReaderProfile:
    """Not a constant: to read a profile's formats starts threads, and the processes of tests are forks."""
    return ReaderProfile.model_validate(
        CANONICAL.model_dump()
        | {
            "timestamps": {"formats": ["%d.%m.%Y %H:%M", "iso8601"], "zone": "Europe/Berlin"},
            "numbers": {"decimal": ",", "thousands": "."},
            "nulls": ("", "-9999"),
        }
    )


def xls(folder: Path, rows: Sequence[Sequence[Any]], *, date_1904: bool = False) -> Path:
    """A workbook of old; a cell may be a pair of a value and its number format."""
    workbook = xlwt.Workbook()
    workbook.dates_1904 = date_1904
    sheet = workbook.add_sheet("Readings")
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            value, code = cell if isinstance(cell, tuple) else (cell, None)
            if isinstance(value, datetime):
                code = code or "YYYY-MM-DD HH:MM:SS"
                # xlwt would drop the fraction of a second.
                value = (value - EPOCHS[date_1904]) / timedelta(days=1)
            sheet.write(row, column, value, xlwt.easyxf(num_format_str=code or "General"))
    path = folder / "sample.xls"
    workbook.save(str(path))
    return path


def formatted(folder: Path, rows: Sequence[Sequence[Any]], *, date_1904: bool = False) -> Path:
    """A workbook of today; cells as for `xls`."""
    path = xlsx(folder, [[cell[0] if isinstance(cell, tuple) else cell for cell in cells] for cells in rows])
    workbook = openpyxl.load_workbook(path)
    if date_1904:
        workbook.epoch = CALENDAR_MAC_1904
    for row, cells in enumerate(rows, 1):
        for column, cell in enumerate(cells, 1):
            if isinstance(cell, tuple):
                workbook["Readings"].cell(row, column).number_format = cell[1]
    workbook.save(path)
    return path


# Old workbooks come with numbers, dates and every kind of cell in each run; what is made of a cell is the same code.
AS_CELLS_OF_TODAY = pytest.mark.parametrize("make", [formatted, pytest.param(xls, marks=pytest.mark.long)])


def outcomes(path: Path, profile: ReaderProfile | None = None) -> tuple[list[tuple[Any, ...]], dict[int, list[str]]]:
    """Accepted readings without their line, and the reasons of each refused line."""
    profile = profile or german()
    found = validate(cast(read(path, profile, path.suffix[1:]).rows, profile), RULES)
    return found.accepted.drop("line_number", "rescued_data").rows(), dict(found.rejected.rows())


@pytest.mark.parametrize("make", [formatted, xls])
def test_a_number_cell_is_its_number_whatever_the_marks_of_the_profile(tmp_path: Path, make: Any) -> None:  # noqa: ANN401 - either maker
    rows = [[MOMENT, "d", "level", (value, code), "%"] for value, code, _ in NUMBERS]
    accepted, refused = outcomes(make(tmp_path, [NAMES, *rows]))
    assert refused == {}
    assert [row[3] for row in accepted] == [expected for _, _, expected in NUMBERS]
    assert {row[0] for row in accepted} == {BERLIN}


@AS_CELLS_OF_TODAY
def test_a_percent_cell_says_what_is_seen_unless_its_unit_is_another(tmp_path: Path, make: Any) -> None:  # noqa: ANN401
    rows = [[MOMENT, "d", "level", (0.45, "0%"), unit] for unit in ("%RH", "percent", "ratio", None)]
    accepted, refused = outcomes(make(tmp_path, [NAMES, *rows]))
    assert refused == {}
    assert [row[3:] for row in accepted] == [(45.0, "%RH"), (45.0, "percent"), (0.45, "ratio"), (45.0, "%")]


@AS_CELLS_OF_TODAY
def test_marks_and_formats_are_for_text_cells(tmp_path: Path, make: Any) -> None:  # noqa: ANN401
    rows = [["15.01.2024 10:30", "d", "level", "1.234,5", "mm"], ["15.01.2024 10:30", "d", "level", "21.375,", "mm"]]
    accepted, refused = outcomes(make(tmp_path, [NAMES, *rows, ["15.01.2024 10:30", "d", "level", "0.500", "mm"]]))
    assert [row[3] for row in accepted] == [1234.5, 21375.0]
    assert refused == {4: ["value_not_a_number"]}


@AS_CELLS_OF_TODAY
def test_a_number_that_means_missing_is_missing_in_a_number_cell_too(tmp_path: Path, make: Any) -> None:  # noqa: ANN401
    rows = [[MOMENT, "d", "level", value, "mm"] for value in (-9999.0, -9999, "-9.999", -9999.5)]
    accepted, refused = outcomes(make(tmp_path, [NAMES, *rows]))
    assert [row[3] for row in accepted] == [-9999.5]
    assert refused == {line: ["value_missing"] for line in (2, 3, 4)}


@pytest.mark.parametrize("date_1904", [False, True])
@pytest.mark.parametrize("make", [formatted, xls])
def test_dates_are_the_same_in_both_calendars_and_to_the_millisecond(
    tmp_path: Path,
    make: Any,  # noqa: ANN401
    date_1904: bool,  # noqa: FBT001 - drawn
) -> None:
    moments = [datetime(2024, 1, 15, 10, minute, 0, 7_000 * minute) for minute in (1, 7, 59)]  # noqa: DTZ001
    rows = [[(moment, "yyyy-mm-dd hh:mm:ss.000"), "d", "level", 1, "mm"] for moment in moments]
    accepted, refused = outcomes(make(tmp_path, [NAMES, *rows], date_1904=date_1904), CANONICAL)
    assert refused == {}
    assert [row[0] for row in accepted] == [moment.replace(tzinfo=UTC) for moment in moments]


@pytest.mark.parametrize("make", [formatted, xls])
def test_other_kinds_of_cells_are_refused_as_times_values_and_names(tmp_path: Path, make: Any) -> None:  # noqa: ANN401
    rows = [
        [MOMENT, "d", "level", True, "mm"],
        [MOMENT, "d", "level", (1.25, "[h]:mm:ss"), "mm"],
        [MOMENT, "d", "level", (MOMENT, "yyyy-mm-dd"), "mm"],
        [(0.4375, "hh:mm"), "d", "level", 1, "mm"],
        [(1.25, "[h]:mm:ss"), "d", "level", 1, "mm"],
        [(45306.4, "General"), "d", "level", 1, "mm"],
        [MOMENT, (MOMENT, "dd/mm"), "level", 1, "mm"],
        [MOMENT, True, "level", 1, "mm"],
        [MOMENT, (42, "0000"), "level", 1, "mm"],
    ]
    accepted, refused = outcomes(make(tmp_path, [NAMES, *rows]))
    assert [row[1] for row in accepted] == ["0042"]
    value, time, name = ["value_not_a_number"], ["timestamp_unparseable"], ["device_id_invalid"]
    assert refused == {2: value, 3: value, 4: value, 5: time, 6: time, 7: time, 8: name, 9: name}


def test_number_cells_are_unix_times_where_the_profile_says_so(tmp_path: Path) -> None:
    profile = CANONICAL.model_copy(
        update={"timestamps": CANONICAL.timestamps.model_copy(update={"formats": ("iso8601", "unix_seconds")})}
    )
    accepted, _ = outcomes(formatted(tmp_path, [NAMES, [1705314645.25, "d", "level", 1, "mm"]]), profile)
    assert accepted[0][0] == datetime(2024, 1, 15, 10, 30, 45, 250_000, tzinfo=UTC)


def sheet_with(folder: Path, cells: str, *, on_load: str = "") -> Path:
    """A workbook whose value column holds this XML, one line a row from the second on."""
    rows = [line.strip() for line in cells.strip().splitlines()]
    path = xlsx(folder, [NAMES, *([MOMENT, "d", "level", 1, "mm"] for _ in rows)])
    with zipfile.ZipFile(path) as archive:
        sheet = archive.read("xl/worksheets/sheet1.xml").decode()
        workbook = archive.read("xl/workbook.xml").decode().replace('fullCalcOnLoad="1"', on_load)
    for number, cell in enumerate(rows, 2):
        old = f'<c r="D{number}" t="n"><v>1</v></c>'
        assert old in sheet
        sheet = sheet.replace(old, cell.replace("<c", f'<c r="D{number}"', 1))
    path = replace_part(path, "xl/worksheets/sheet1.xml", sheet.encode())
    path.rename(folder / "calc.xlsx")
    return replace_part(folder / "calc.xlsx", "xl/workbook.xml", workbook.encode())


def test_an_error_that_only_some_programs_know_costs_its_row(tmp_path: Path) -> None:
    path = sheet_with(
        tmp_path, '<c t="e"><v>#SPILL!</v></c>\n<c><v>21.5</v></c>\n<c t="e"><f>X()</f><v>#ERROR!</v></c>'
    )
    accepted, refused = outcomes(path)
    assert [row[3] for row in accepted] == [21.5]
    assert sorted(refused) == [2, 4]


FORMULAS = """
<c><f>A1*2</f><v>21.5</v></c>
<c><f>A1*2</f><v>0</v></c>
<c><f>A1*2</f></c>
<c><f t="shared" si="0"/><v></v></c>
<c t="e"><f>1/0</f><v>#DIV/0!</v></c>
<c t="e"><v>#N/A</v></c>
<c t="str"><f>IF(A1="","",A1)</f><v></v></c>
<c t="b"><f>A1=2</f><v>1</v></c>
"""


def test_a_formula_that_was_calculated_is_its_result(tmp_path: Path) -> None:
    accepted, refused = outcomes(sheet_with(tmp_path, FORMULAS))
    assert [row[3] for row in accepted] == [21.5, 0.0]
    not_calculated, no_number = ["value_not_calculated"], ["value_not_a_number"]
    assert refused == {
        4: not_calculated,
        5: not_calculated,
        6: no_number,
        7: no_number,
        8: ["value_missing"],
        9: no_number,
    }


@pytest.mark.parametrize("on_load", ['fullCalcOnLoad="1"', 'fullCalcOnLoad="true"', 'calcCompleted="0"'])
def test_the_zero_of_a_formula_that_is_not_calculated_is_no_value(tmp_path: Path, on_load: str) -> None:
    accepted, refused = outcomes(sheet_with(tmp_path, FORMULAS, on_load=on_load))
    assert [row[3] for row in accepted] == [21.5]
    assert refused[3] == refused[8] == ["value_not_calculated"]


def test_the_cells_that_one_formula_fills_wait_with_it(tmp_path: Path) -> None:
    cells = '<c><f t="array" ref="D2:D3">A1:A2*2</f><v>0</v></c>\n<c><v>0</v></c>\n<c><v>0</v></c>'
    accepted, refused = outcomes(sheet_with(tmp_path, cells, on_load='fullCalcOnLoad="1"'))
    assert [row[3] for row in accepted] == [0.0]
    assert refused == {2: ["value_not_calculated"], 3: ["value_not_calculated"]}


def test_a_formula_never_calculated_in_an_old_workbook_is_refused(tmp_path: Path) -> None:
    path = xls(tmp_path, [NAMES, *([MOMENT, "d", "level", 0.123456789, "mm"] for _ in range(3))])
    content = bytearray(path.read_bytes())
    for row, flags in ((1, 0x0002), (2, 0x0000)):
        number = struct.pack("<HHHHH", 0x0203, 14, row, 3, 17)
        place = content.find(number[:8])
        assert place > 0
        xf = content[place + 8 : place + 10]
        # A formula record is longer than the number's: it takes the place of this cell and of the unit after it.
        record = (
            struct.pack("<HHHH", 0x0006, 24, row, 3)
            + bytes(xf)
            + bytes(8)
            + struct.pack("<HIH", flags, 0, 2)
            + b"\x1e\x00"
        )
        following = content.find(struct.pack("<HHHH", 0x00FD, 10, row, 4), place)
        assert following == place + 18
        filler = 18 + 14 - len(record)
        assert filler in {0, 4} or filler > 3
        record += struct.pack("<HH", 0x0FFF, filler - 4) + bytes(filler - 4) if filler else b""
        content[place : place + 32] = record
    path.write_bytes(content)
    accepted, refused = outcomes(path)
    assert refused == {2: ["value_not_calculated"]}
    assert [row[3] for row in accepted] == [0.0, 0.123456789]


def test_an_empty_result_in_an_old_workbook_is_missing(tmp_path: Path) -> None:
    path = xls(tmp_path, [NAMES, [MOMENT, "d", "level", xlwt.Formula("1+1"), "mm"], [MOMENT, "d", "level", 1, "mm"]])
    accepted, refused = outcomes(path)
    assert refused == {2: ["value_missing"]}
    assert len(accepted) == 1


def test_a_null_spelling_never_hides_a_row_or_the_kinds_of_its_cells(tmp_path: Path) -> None:
    profile = CANONICAL.model_copy(update={"nulls": ("", "2", "3", "dnsns", "dssns")})
    outcome = read(formatted(tmp_path, [NAMES, *([MOMENT, "d", "level", 5, "mm"] for _ in range(3))]), profile, "xlsx")
    assert outcome.rows["line_number"].to_list() == [2, 3, 4]
    assert outcome.chunks[0].raw_text([3])[0].startswith('{"timestamp":"2024-01-15T10:30:45","device_id":"d"')


def test_workbooks_and_text_are_validated_together(tmp_path: Path) -> None:
    from ingest_project.core.settings import Settings
    from ingest_project.file_ingest.contract import SensorContract
    from ingest_project.file_ingest.validate_files import check_rows
    from ingest_project.readers.layout import ReadLimits
    from ingest_project.readers.profiles import load_profiles

    contract = SensorContract(load_profiles(), SensorTypes.load(), ReadLimits(), Settings().file_ingest)
    text = tmp_path / "a.csv"
    text.write_text(",".join(NAMES) + "\n2024-01-15T10:30:45Z,d,level,1.5,mm\n")
    book = formatted(tmp_path, [NAMES, [MOMENT, "d", "level", 2.5, "mm"], [MOMENT, "d", "level", True, "mm"]])
    chunks = [(path.name, CANONICAL, read(path, CANONICAL, path.suffix[1:]).chunks[0]) for path in (text, book)]
    for order in (chunks, chunks[::-1]):
        checked = check_rows(order, contract)
        assert sorted(checked.accepted["value"]) == [1.5, 2.5]
        assert checked.quarantined["reasons"].to_list() == [["value_not_a_number"]]


def test_days_that_excel_counts_wrong_are_no_dates(tmp_path: Path) -> None:
    rows = [[(day, "yyyy-mm-dd"), "d", "level", 1, "mm"] for day in (1.5, 59, 60)]
    _, refused = outcomes(formatted(tmp_path, [NAMES, *rows, [MOMENT, "d", "level", 1, "mm"]]))
    assert set(refused) == {2, 3, 4}


def test_the_last_day_of_a_workbook_is_a_date_and_a_cell_that_is_not_a_number_is_not_blank() -> None:
    last = datetime(9999, 12, 31)  # noqa: DTZ001
    assert cell_of(last) == (DATE, "9999-12-31T00:00:00")
    assert cell_of(last.replace(hour=23, minute=59, second=59)).kind == DATE
    assert cell_of(last.replace(hour=23, minute=59, second=59, microsecond=999_999)).kind == DURATION
    assert cell_of(float("nan")) == (INEXACT, "nan")
