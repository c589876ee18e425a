"""Files from the world: every sensor file read as a plain program reads it, every nasty one as its manifest says."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.profiles import ReaderProfile, load_profiles
from ingest_project_tests.readers.real_files import DATA, nasty_files, plain_reading, profile_name_of, sensor_files
from ingest_project_tests.readers.samples import CANONICAL, casted, columns_profile, read

PROFILES = load_profiles()


def test_the_real_data_is_there() -> None:
    if not DATA.exists():
        pytest.skip(f"The collected real files are not at {DATA}.")
    assert sensor_files()
    assert nasty_files()


def profile_of(path: Path) -> ReaderProfile:
    return PROFILES[profile_name_of(path)]


@pytest.mark.parametrize("path", sensor_files(), ids=lambda path: "/".join(path.parts[-3:]))
def test_a_sensor_file_is_read_as_a_plain_program_reads_it(path: Path) -> None:
    outcome = read(path, profile_of(path))
    rows = casted(outcome, profile_of(path)).select("timestamp", "device_id", "sensor_type", "value").rows()
    assert outcome.malformed == []
    assert Counter(rows) == plain_reading(path)


# What a profile for each file would add to its columns.
NO_HEADER: dict[str, Any] = {"header": False}
FITTING: dict[str, dict[str, Any]] = {
    "xlsx_odd/has_x000D_.xlsx": NO_HEADER,
    "xlsx_odd/merged-cells.xlsx": NO_HEADER,
    "xls_odd/biff5_write.xls": NO_HEADER,
    "xls_bad/OOM_alloc.xls": NO_HEADER,
    "formula_injection/csv-payload.txt": NO_HEADER | {"delimiter": ","},
}
PRODUCTS = ("DATE", "TIME", "Qty", "PRODUCTID", "URL")
NAMES: dict[str, tuple[str, ...]] = {
    "encoding/Таблица.csv": ("id", "name"),
    "encoding/dd__latin1.csv": ("name", "age"),
    "encoding/utf16.csv": ("name", "age"),
    "nul_bytes/mid_null.csv": ("a", "b", "c"),
    "header/numeric-labels.csv": ("id", "100022"),
    "header/matrix-with-comment.csv": ("f1", "f2", "f3", "f4"),
    "header/header_normalize.csv": ("b la", "3b"),
    "header/file_preamble.csv": PRODUCTS,
    "header/file_one_data_row.csv": PRODUCTS,
    "structure/file_double_trailing_newline.csv": PRODUCTS,
    "structure/defective-rows.csv": ("id", "name", "age"),
    "structure/cast_and_less_col.csv": ("name", "age", "current_day", "barks"),
    "structure/few_columns.csv": ("a", "b", "c", "d"),
    "structure/row_extra_quote1_col0.csv": PRODUCTS,
    "quoting/quotes_and_newlines.csv": ("a", "b"),
    "quoting/escaping.csv": ("id", "test"),
    "line_endings/cr-line-endings.csv": ("foo", "bar", "baz"),
    "delimiter_locale/mixed_format_fail.csv": ("foo",),
    "timestamps/bad_date_timestamp_mix.csv": ("date", "eventID", "subplotID", "ts", "t2_2"),
    "numbers/leading-zeros.csv": ("value",),
    "huge_fields/issue-1066-largecellsize.csv": ("description", "status"),
    "formula_injection/csv-payload.txt": ("1",),
    "xlsx_ok/temperature.xlsx": ("label", "value"),
    "xlsx_odd/no-header.xlsx": ("id", "name"),
    "xlsx_odd/has_x000D_.xlsx": ("1",),
    "xlsx_odd/merged-cells.xlsx": ("1",),
    "xlsx_odd/temperature-in-middle.xlsx": ("label", "value"),
    "xls_ok/table-with-booleans.xls": ("id",),
    "xls_odd/biff5_write.xls": ("1", "2"),
    "xls_bad/OOM_alloc.xls": ("1", "2"),
}
# Rows that are refused for what is in their cells rather than for their shape.
BAD_CELLS = {"timestamps/bad_date_timestamp_mix.csv", "formula_injection/csv-payload.txt"}


# Of those that may be read or refused, the ones that are refused, and by which rule.
REFUSED_ON_PURPOSE = {"container/table.csv.zip": "unreadable_container"}


def kind_of(name: str) -> str:
    ending = name.rpartition(".")[2]
    return ending if ending in {"xlsx", "xls"} else "csv"


def fitting_profile(name: str) -> ReaderProfile:
    required = NAMES.get(name, ("id",))
    settings: dict[str, Any] = {
        "optional": [],
        "constants": dict.fromkeys(("timestamp", "device_id", "sensor_type", "value", "unit")[len(required) :], "x"),
    }
    return columns_profile(*required, **settings, **FITTING.get(name, {}))


@pytest.mark.parametrize("entry", nasty_files(), ids=lambda entry: entry["file"])
def test_a_nasty_file_gets_what_its_manifest_says(entry: dict[str, Any]) -> None:
    path = DATA / "nasty" / entry["file"]
    started = time.process_time()
    if entry["expect"] == "reject_file":
        with pytest.raises(FileRejectedError) as refused:
            read(path, fitting_profile(entry["file"]), kind_of(entry["file"]))
        assert_is_a_reason(refused.value)
    elif entry["file"] in REFUSED_ON_PURPOSE:
        with pytest.raises(FileRejectedError, match=REFUSED_ON_PURPOSE[entry["file"]]) as refused:
            read(path, fitting_profile(entry["file"]), kind_of(entry["file"]))
        assert_is_a_reason(refused.value)
    else:
        outcome = read(path, fitting_profile(entry["file"]), kind_of(entry["file"]))
        assert outcome.rows.height or outcome.malformed
        if entry["expect"] == "accept":
            assert outcome.malformed == []
        if entry["expect"] == "reject_rows" and entry["file"] not in BAD_CELLS:
            assert outcome.malformed
    assert time.process_time() - started < 10


@pytest.mark.parametrize("entry", nasty_files(), ids=lambda entry: entry["file"])
def test_a_nasty_file_is_refused_whole_under_the_strict_contract(entry: dict[str, Any]) -> None:
    with pytest.raises(FileRejectedError) as refused:
        read(DATA / "nasty" / entry["file"], CANONICAL, kind_of(entry["file"]))
    assert_is_a_reason(refused.value)


def assert_is_a_reason(refused: FileRejectedError) -> None:
    assert refused.rule.isidentifier()
    assert refused.detail
    assert "\n" not in refused.detail
    assert "Traceback" not in refused.detail


def test_one_polluted_row_spoils_one_row() -> None:
    path = DATA / "nasty" / "structure" / "row_extra_quote1_col0.csv"
    if not path.exists():
        pytest.skip(f"The collected nasty files are not at {DATA}.")
    outcome = read(path, columns_profile("DATE", "TIME"))
    assert [(line, reason) for line, _, reason in outcome.malformed] == [(2, "unbalanced_quote")]
    assert outcome.rows.height == 82


def test_a_table_in_the_middle_of_a_sheet_is_read_when_the_profile_says_where() -> None:
    path = DATA / "nasty" / "xlsx_odd" / "temperature-in-middle.xlsx"
    if not path.exists():
        pytest.skip(f"The collected nasty files are not at {DATA}.")
    outcome = read(path, columns_profile("label", "value", skip_lines=3), "xlsx")
    assert outcome.rows.select("line_number", "timestamp", "device_id").rows() == [
        (5, "celsius", "22.2222"),
        (6, "fahrenheit", "72"),
    ]


def test_formulas_in_the_wild_stay_text() -> None:
    path = DATA / "nasty" / "formula_injection" / "csv-payload.txt"
    if not path.exists():
        pytest.skip(f"The collected nasty files are not at {DATA}.")
    outcome = read(path, columns_profile("1", header=False, delimiter="\t", constants={"value": "=1+1"}))
    assert outcome.rows["timestamp"].to_list() == path.read_text().splitlines()
    assert casted(outcome)["value"].null_count() == outcome.rows.height
