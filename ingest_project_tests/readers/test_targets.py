"""Columns of any dataset: found by a profile or by their own names, and nothing else of the file is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ingest_project.core.errors import FileRejectedError, SettingsError
from ingest_project.readers import READINGS, Target
from ingest_project.readers.layout import ReadLimits, RowsChunk
from ingest_project.readers.profiles import ReaderProfile
from ingest_project.readers.reading import read_chunks
from ingest_project_tests.readers.samples import CANONICAL
from ingest_project_tests.readers.test_excel import xlsx

ORDERS = Target(("order_id", "amount", "note"), frozenset({"order_id", "amount"}), keep_unknown=True)


def profile(**settings: object) -> ReaderProfile:
    return ReaderProfile.model_validate({"name": "orders", "dataset": "orders", **settings})


def read_rows(path: Path, target: Target = ORDERS, used: ReaderProfile | None = None) -> tuple[pl.DataFrame, RowsChunk]:
    chunks = list(read_chunks(path, path.suffix[1:], used or profile(), ReadLimits(), None, target))
    return pl.concat([chunk.rows for chunk in chunks]), chunks[0]


def written(folder: Path, text: str) -> Path:
    path = folder / "orders.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_found_under_their_own_names_whatever_case_and_spacing(tmp_path: Path) -> None:
    rows, chunk = read_rows(written(tmp_path, "Order_ID, NOTE ,amount\n7,hello,1.5\n"))
    assert rows.rows() == [(2, "7", "1.5", "hello", None)]
    assert rows.columns == ["line_number", "order_id", "amount", "note", "rescued_data"]
    assert (chunk.unknown_columns, chunk.missing_columns, chunk.reordered) == ((), (), True)


def test_signs_between_the_words_of_a_name_do_not_matter_unless_a_column_has_the_very_name(tmp_path: Path) -> None:
    rows, chunk = read_rows(written(tmp_path, "Order ID,Amount (€),note\n7,1.5,x\n"))
    assert (rows.row(0), chunk.unknown_columns) == ((2, "7", "1.5", "x", None), ())
    rows, chunk = read_rows(written(tmp_path, "Order ID,order_id,amount\n7,8,1.5\n"))
    assert (rows["order_id"].to_list(), chunk.unknown_columns) == (["8"], ("Order ID",))
    with pytest.raises(FileRejectedError, match="More than one column of the file is called 'order_id'"):
        read_rows(written(tmp_path, "Order ID,order-id,amount\n7,8,1.5\n"))


@pytest.mark.parametrize("other", ["Δamount", "amount²", "amount\u0304", "金amount", "amounté", "№ amount"])
def test_a_name_with_other_letters_or_digits_is_another_column(tmp_path: Path, other: str) -> None:
    _, chunk = read_rows(written(tmp_path, f"order_id,{other}\n7,1.5\n"), replace(ORDERS, required=frozenset()))
    assert chunk.unknown_columns == (other,)


def test_a_file_with_none_of_the_columns_is_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(FileRejectedError, match="no column 'order_id', 'amount', 'note'"):
        read_rows(written(tmp_path, "a,b\n1,2\n"), replace(ORDERS, required=frozenset()))


def test_a_column_that_need_not_be_there_is_null_and_named(tmp_path: Path) -> None:
    rows, chunk = read_rows(written(tmp_path, "order_id,amount\n7,1.5\n"))
    assert rows.row(0) == (2, "7", "1.5", None, None)
    assert (chunk.missing_columns, chunk.reordered) == (("note",), False)
    with pytest.raises(FileRejectedError, match="no column 'amount'"):
        read_rows(written(tmp_path, "order_id,note\n7,x\n"))


def test_a_profile_maps_columns_of_any_dataset_and_hides_their_own_names(tmp_path: Path) -> None:
    used = profile(columns={"Betrag": "amount"}, constants={"note": "web"}, ignored=["weight"])
    rows, chunk = read_rows(written(tmp_path, "order_id,Betrag,amount,weight\n7,1.5,9,3\n"), used=used)
    assert rows.row(0) == (2, "7", "1.5", "web", '{"amount":"9"}')
    assert chunk.unknown_columns == ("amount",)


def test_unknown_columns_are_kept_as_json_also_those_of_one_name(tmp_path: Path) -> None:
    text = 'order_id,x,amount,"say ""hi""",x,y\n7,1,1.5,a\tb,"2,5",9\n8,,2,,,\n9,ü,3,,,\n'
    rows, chunk = read_rows(written(tmp_path, text))
    assert chunk.unknown_columns == ("x", 'say "hi"', "x [2]", "y")
    assert [json.loads(text) if text else None for text in rows["rescued_data"]] == [
        {"x": "1", 'say "hi"': "a\tb", "x [2]": "2,5", "y": "9"},
        None,
        {"x": "ü"},
    ]


def test_each_reading_of_a_wide_row_has_the_unknown_columns_of_the_row(tmp_path: Path) -> None:
    wide = ReaderProfile.model_validate(
        {
            "name": "wide",
            "columns": {"time": "timestamp"},
            "constants": {"device_id": "d"},
            "quantities": {"t": {"sensor_type": "temperature"}, "h": {"sensor_type": "humidity"}},
        }
    )
    text = "time,t,quality,h\n2026-01-15T10:00:00Z,20,good,40\n2026-01-15T11:00:00Z,21,,41\n"
    rows, chunk = read_rows(written(tmp_path, text), READINGS, wide)
    assert chunk.unknown_columns == ("quality",)
    assert rows.select("sensor_type", "value", "rescued_data").rows() == [
        ("temperature", "20", '{"quality":"good"}'),
        ("humidity", "40", '{"quality":"good"}'),
        ("temperature", "21", None),
        ("humidity", "41", None),
    ]


def test_unknown_columns_are_not_kept_where_the_target_does_not_want_them(tmp_path: Path) -> None:
    rows, chunk = read_rows(written(tmp_path, "order_id,amount,x\n7,1.5,1\n"), replace(ORDERS, keep_unknown=False))
    assert rows.columns == ["line_number", "order_id", "amount", "note"]
    assert chunk.unknown_columns == ("x",)


def test_a_name_that_occurs_twice_is_never_chosen_from(tmp_path: Path) -> None:
    with pytest.raises(FileRejectedError, match="More than one column of the file is called 'amount'"):
        read_rows(written(tmp_path, "order_id,amount,Amount\n7,1.5,2\n"))


def test_cells_of_a_workbook_keep_their_kinds_and_unknown_ones_their_text(tmp_path: Path) -> None:
    rows, _ = read_rows(xlsx(tmp_path, [["amount", "x", "order_id"], [1.5, True, "7"]]))
    assert rows.row(0, named=True) == {
        "line_number": 2,
        "order_id": "7",
        "amount": "1.5",
        "note": None,
        "rescued_data": '{"x":"true"}',
        "order_id_kind": "s",
        "amount_kind": "n",
        "note_kind": None,
    }


def test_readings_of_a_wide_file_each_keep_what_else_their_line_has(tmp_path: Path) -> None:
    used = ReaderProfile.model_validate(
        {
            "name": "wide",
            "columns": {"timestamp": "timestamp", "id": "device_id"},
            "quantities": {"t": {"sensor_type": "temperature"}, "h": {"sensor_type": "humidity"}},
        }
    )
    target = Target(CANONICAL_COLUMNS, frozenset({"timestamp"}), keep_unknown=True, by_name=False)
    rows, _ = read_rows(written(tmp_path, "timestamp,id,t,h,lat\n2024-01-15T10:30:45Z,a,1,2,50\n"), target, used)
    assert rows["rescued_data"].to_list() == ['{"lat":"50"}'] * 2


CANONICAL_COLUMNS = tuple(CANONICAL.columns.values())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"columns": {"x": "amuont"}}, "amuont is no column of the dataset, did you mean amount?"),
        ({"quantities": {"x": {"sensor_type": "a"}}}, "sensor_type is no column of the dataset"),
        ({"optional": ["nothing"]}, "nothing is no column of the dataset"),
    ],
)
def test_a_profile_that_cannot_work_for_a_dataset_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match="does not fit the dataset orders") as refused:
        profile(**settings).require_fits(ORDERS)
    assert said in str(refused.value)
