"""Contents that other readers change silently are read exactly or refused with a reason."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pytest
from pyarrow import parquet

from ingest_project.core.settings import Settings
from ingest_project.file_ingest.commands.trial import Trial, try_file
from ingest_project.file_ingest.declared import DeclaredContract
from ingest_project.readers.cells import duration_text
from ingest_project.readers.declaration import DatasetDeclaration

ROWS = b"a,b\nx,1\ny,2\n"
SKIPPED_FRAME = struct.pack("<II", 0x184D2A50, 4) + b"meta"


def zipped(*members: tuple[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return target.getvalue()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


def xlsx(*rows: Sequence[Any]) -> bytes:
    workbook, target = openpyxl.Workbook(), io.BytesIO()
    sheet = workbook.active
    assert sheet is not None
    for row in rows:
        sheet.append(list(row))
    workbook.save(target)
    return target.getvalue()


def columnar(kind: pa.DataType, values: Sequence[Any], stored_as: pa.DataType | None = None) -> bytes:
    target = io.BytesIO()
    column = pa.array(values, stored_as or kind).cast(kind)
    parquet.write_table(pa.table({"a": ["x"] * len(values), "b": column}), target)
    return target.getvalue()


def tried(folder: Path, name: str, content: bytes, kind: str) -> Trial:
    (folder / name).write_bytes(content)
    types = ["csv", "json", "jsonl", "xlsx", "parquet", "zip"]
    columns = [{"name": "a", "type": "text"}, {"name": "b", "type": kind}]
    declared = {"name": "d", "columns": columns, "file_types": types, "max_rejected_share": 1}
    contract = DeclaredContract.of(DatasetDeclaration.model_validate(declared), Settings(state_dir=folder))
    return try_file(folder / name, contract.profiles["d"], contract, rows=10)


BIG = 12345678901234567890
CASES: list[tuple[str, str, bytes, str, list[Any], object]] = [
    ("header repeated among texts", "f.csv", b"a,b\nx,1\na,b\ny,2\n", "text", ["1", "2"], {"repeated_header": 1}),
    ("header repeated, quoted", "f.csv", b'a,b\nx,1\n"a","b"\n', "text", ["1"], {"repeated_header": 1}),
    ("half a header", "f.csv", b"a,b\na,1\n", "text", ["1"], {}),
    (
        "sheet with its header twice",
        "f.xlsx",
        xlsx(["a", "b"], ["x", "y"], ["a", "b"]),
        "text",
        ["y"],
        {"repeated_header": 1},
    ),
    ("digits beyond a workbook", "f.xlsx", xlsx(["a", "b"], ("x", BIG)), "decimal(30,2)", [], {"b_not_a_decimal": 1}),
    ("the same as a text", "f.xlsx", xlsx(["a", "b"], ("x", BIG)), "text", [], {"b_not_text": 1}),
    ("the same as a number", "f.xlsx", xlsx(["a", "b"], ("x", BIG)), "number", [1.234567890123457e19], {}),
    ("over a day", "f.xlsx", xlsx(["a", "b"], ("x", timedelta(hours=36))), "text", ["36:00:00"], {}),
    ("a name twice in a cell", "f.csv", b'a,b\nx,"{""k"":1,""k"":2}"\n', "json", [], {"b_not_json": 1}),
    (
        "texts of JSON in a column of JSON",
        "f.json",
        b"".join(
            b'{"a":"x","b":%b}' % value for value in (b'"true"', b'" 1"', b'""', b'{"c":"d"}', b'"\\u00e4\\u0001"')
        ),
        "json",
        ['"true"', '" 1"', None, '{"c":"d"}', '"\u00e4\\u0001"'],
        {},
    ),
    (
        "JSON in a cell of a column of JSON",
        "f.csv",
        b'a,b\nx,true\nx,"""1"""\nx,no\n',
        "json",
        ["true", '"1"'],
        {"b_not_json": 1},
    ),
    (
        "numbers that JSON does not have",
        "f.parquet",
        columnar(pa.list_(pa.float64()), [[float("nan"), float("inf")], [-float("inf"), 1.5]]),
        "json",
        ['["NaN","Infinity"]', '["-Infinity",1.5]'],
        {},
    ),
    ("objects on one line", "f.json", b'{"a":"x","b":1}{"a":"y","b":2}', "integer", [1, 2], {}),
    ("JSON in UTF-16 without mark", "f.json", '[{"a":1}]'.encode("utf-16-le"), "integer", [], "encoding: The file has"),
    ("no field", "f.json", b"{}", "integer", [], "It has none."),
    ("two archives", "f.zip", zipped(("1.csv", ROWS)) + zipped(("2.csv", ROWS)), "integer", [], "begins with bytes"),
    ("backslashes", "f.zip", zipped((".\\in\\", b""), (".\\in\\1.csv", ROWS)), "integer", [1, 2], {}),
    ("frame to skip", "f.csv.zst", SKIPPED_FRAME + zstd(ROWS) + zstd(b"z,3\n"), "integer", [1, 2, 3], {}),
    (
        "nested time out of range",
        "f.parquet",
        columnar(pa.list_(pa.timestamp("us")), [[0], [2**62]], pa.list_(pa.int64())),
        "json",
        ['["1970-01-01T00:00:00.000000"]'],
        {"b_not_json": 1},
    ),
    (
        "time out of range as text",
        "f.parquet",
        columnar(pa.timestamp("us"), [0, 2**62], pa.int64()),
        "text",
        ["1970-01-01T00:00:00.000000"],
        {"b_not_text": 1},
    ),
    ("texts in bytes", "f.parquet", columnar(pa.list_(pa.binary()), [[b"x", b"\xff"]]), "json", [r'["x","\\xff"]'], {}),
    ("duration", "f.parquet", columnar(pa.duration("ns"), [129_600 * 10**9 + 1]), "text", ["36:00:00.000000001"], {}),
]


@pytest.mark.parametrize(
    ("name", "content", "kind", "values", "wrong"), [case[1:] for case in CASES], ids=next(zip(*CASES, strict=True))
)
def test_a_value_arrives_exactly_or_is_refused(  # noqa: PLR0913, PLR0917 - a case
    tmp_path: Path, name: str, content: bytes, kind: str, values: list[Any], wrong: object
) -> None:
    trial = tried(tmp_path, name, content, kind)
    assert [row["b"] for row in trial.accepted] == values, trial
    if isinstance(wrong, str):
        assert wrong in (trial.refusal or "")
    else:
        assert (trial.refusal, trial.rules) == (None, wrong)


NUMBERS = {
    "1_000": None,
    "0x1F": None,
    "１２": None,  # noqa: RUF001 - full-width digits are meant
    "١٢": None,
    "1\u00a0000": None,
    "1e400": None,
    "NaN": None,
    "-Infinity": None,
    "1.234,5": None,
    "(5)": None,
    "−5": None,  # noqa: RUF001 - a minus sign is meant
    "1e-400": None,
    "9007199254740993": Decimal(9007199254740993),
    "1E+3": Decimal(1000),
    "-0": Decimal(0),
    ".5": Decimal("0.5"),
}


def test_a_decimal_has_the_digits_that_were_written_or_is_refused(tmp_path: Path) -> None:
    content = "a,b\n" + "".join(f'{row},"{text}"\n' for row, text in enumerate(NUMBERS))
    trial = tried(tmp_path, "f.csv", content.encode(), "decimal(30,10)")
    found = {list(NUMBERS)[int(row["a"])]: row["b"] for row in trial.accepted}
    # What means "missing" is null.
    assert found == {text: value for text, value in NUMBERS.items() if value is not None or text in found}
    assert {text for text, value in found.items() if value is None} <= {"NaN"}


def test_durations_are_written_as_spreadsheets_show_them() -> None:
    assert [duration_text(ticks, 1_000) for ticks in (0, 1, 59_999, -3_600_000, 360_000_500)] == [
        "00:00:00",
        "00:00:00.001",
        "00:00:59.999",
        "-01:00:00",
        "100:00:00.5",
    ]
