"""Parquet: exact texts of typed columns, nested values as JSON, and a reason for every damaged file."""

from __future__ import annotations

import json
import random
import uuid
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet

from ingest_project.contracts.columns import TEXT_OF, Column
from ingest_project.core.errors import FileRejectedError, LimitExceededError
from ingest_project.readers import Target
from ingest_project.readers.casting import cast
from ingest_project.readers.formats import parquet_worker
from ingest_project.readers.layout import ReadLimits, RowsChunk
from ingest_project.readers.profiles import ReaderProfile, load_profiles
from ingest_project.readers.reading import read_chunks
from ingest_project.readers.typed_columns import cast_columns


def profile(**settings: object) -> ReaderProfile:
    return ReaderProfile.model_validate({"name": "own", "dataset": "own", "nulls": ["NA"], **settings})


def target(*columns: str, keep_unknown: bool = False) -> Target:
    return Target(columns, frozenset(), keep_unknown)


def read(
    folder: Path,
    columns: dict[str, Any],
    wanted: Target | None = None,
    used: ReaderProfile | None = None,
    limits: ReadLimits | None = None,
    **options: Any,  # noqa: ANN401 - as the writer takes them
) -> list[RowsChunk]:
    parquet.write_table(pa.table(columns), folder / "sample.parquet", **options)
    chosen = wanted or target(*columns)
    return list(
        read_chunks(folder / "sample.parquet", "parquet", used or profile(), limits or ReadLimits(), None, chosen)
    )


TYPED: list[tuple[pa.Array, list[str | None], str]] = [
    (pa.array([2**63 + 1, None], pa.uint64()), ["9223372036854775809", None], "n"),
    (pa.array([-(2**63)], pa.int64()), ["-9223372036854775808"], "n"),
    (pa.array([0.1, 5e-324, float("nan")]), ["0.1", "5e-324", "nan"], "n"),
    (pa.array([1e300, 2.0**53]), ["1e+300", "9.007199254740992e+15"], "i"),
    (pa.array([0.1, 123456792.0], pa.float32()), ["0.1", "123456792"], "n"),
    (pa.array([2.0**60], pa.float32()), ["1.152921504606847e+18"], "i"),
    (pa.array([Decimal("12345678901234567890.10")]), ["12345678901234567890.10"], "n"),
    (pa.array([True, False, None]), ["true", "false", None], "b"),
    (pa.array([" x ", "", "NA", "ü"]), ["x", None, None, "ü"], "s"),
    (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"], "s"),
    (pa.array([b"bytes"]), ["bytes"], "s"),
    (pa.array([date(2024, 2, 29)]), ["2024-02-29"], "s"),
    (pa.array([datetime(2024, 1, 1, 12, 0, 0, 120)]), ["2024-01-01T12:00:00.000120"], "d"),  # noqa: DTZ001
    (pa.array([1], pa.timestamp("ns", "Europe/Berlin")), ["1970-01-01T00:00:00.000000001Z"], "s"),
    (pa.array([1], pa.timestamp("s", "+05:30")), ["1970-01-01T00:00:01.000Z"], "s"),
    (pa.array([None], pa.null()), [None], "s"),
    (pa.array([[1, None], None]), ["[1,null]", None], "j"),
    (
        pa.array([{"x": Decimal("1.10"), "at": datetime(2024, 1, 1, tzinfo=UTC), "raw": b"\xff", "f": float("nan")}]),
        ['{"x":1.10,"at":"2024-01-01T00:00:00.000000Z","raw":"\\\\xff","f":"NaN"}'],
        "j",
    ),
    (pa.array([[("k", 1), ("k", None)], None], pa.map_(pa.string(), pa.int32())), ['[["k",1],["k",null]]', None], "j"),
    (pa.array([[0.1, 16777216.0], []], pa.list_(pa.float32())), ["[0.1,16777216]", "[]"], "j"),
    (pa.array([[1], None], pa.list_(pa.time64("ns"))), ['["00:00:00.000000001"]', None], "j"),
    (pa.array([[[2**64 - 1], None]], pa.list_(pa.list_(pa.uint64(), 1))), ["[[18446744073709551615],null]"], "j"),
]


def test_typed_values_arrive_as_exact_text(tmp_path: Path) -> None:
    longest = max(len(values) for values, _, _ in TYPED)
    padded = {f"c{number}": _padded(values, longest) for number, (values, _, _) in enumerate(TYPED)}
    (chunk,) = read(tmp_path, padded)
    for number, (values, expected, kind) in enumerate(TYPED):
        found = chunk.rows[f"c{number}"].to_list()[: len(values)]
        kinds = chunk.rows[f"c{number}_kind"].to_list()[: len(values)]
        assert (found, set(kinds)) == (expected, {kind}), values.type


def _padded(values: pa.Array, length: int) -> pa.Array:
    plain = values.dictionary_decode() if isinstance(values, pa.DictionaryArray) else values
    more = pa.concat_arrays([plain, pa.nulls(length - len(values), plain.type)])
    return more.dictionary_encode() if isinstance(values, pa.DictionaryArray) else more


def test_rows_are_numbered_over_all_row_groups_and_shown_as_json(tmp_path: Path) -> None:
    chunks = read(tmp_path, {"a": range(50_000), "b": ["x"] * 50_000}, row_group_size=7_000)
    numbers = pl.concat(chunk.rows["line_number"] for chunk in chunks)
    assert numbers.to_list() == list(range(1, 50_001))
    assert len(chunks) > 5
    last = chunks[-1].rows["line_number"].to_list()
    assert chunks[-1].raw_text([last[-1], last[0]])[0] == '{"a":"49999","b":"x"}'


def test_fields_of_structs_are_columns_where_the_profile_names_them(tmp_path: Path) -> None:
    columns = {"id": [1, 2], "payload": [{"t": {"value": 1.5}, "note": "x"}, None]}
    used = profile(columns={"payload.t.value": "temp", "payload.none": "nothing"})
    (chunk,) = read(tmp_path, columns, target("id", "temp", "nothing", keep_unknown=True), used)
    assert chunk.rows.select("id", "temp", "nothing").rows() == [("1", "1.5", None), ("2", None, None)]
    assert chunk.rows["rescued_data"][1] is None
    assert '"note' in chunk.rows["rescued_data"][0].replace("\\", "")
    assert chunk.unknown_columns == ("payload",)
    assert chunk.missing_columns == ("nothing",)


def test_times_of_96_bits_reach_beyond_the_nanoseconds_of_64(tmp_path: Path) -> None:
    times = ["0001-01-01T00:00:00.000000", "2026-01-15T10:00:00.123456", "9999-12-31T23:59:59.999999"]
    written = pa.array(map(datetime.fromisoformat, times), pa.timestamp("us"))
    (chunk,) = read(tmp_path, {"at": written}, use_deprecated_int96_timestamps=True)
    assert chunk.rows["at"].to_list() == times


def test_sensor_readings_may_be_parquet(tmp_path: Path) -> None:
    used = load_profiles()["canonical"]
    columns = {
        "timestamp": pa.array([datetime(2024, 1, 1), datetime(2024, 1, 2)]),  # noqa: DTZ001
        "device_id": ["a", "b"],
        "sensor_type": ["t", "t"],
        "value": [0.1, None],
        "unit": ["C", "C"],
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    (chunk,) = read_chunks(tmp_path / "a.parquet", "parquet", used, ReadLimits())
    rows = cast(chunk.rows, used)
    assert rows["timestamp"].to_list() == [datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=UTC)]
    assert rows["value"].to_list() == [0.1, None]


def test_a_row_over_the_limit_costs_its_row_only(tmp_path: Path) -> None:
    (chunk,) = read(tmp_path, {"a": ["x", "y" * 200, "z"]}, limits=ReadLimits(max_row_bytes=100))
    assert chunk.rows.select("line_number", "a").rows() == [(1, "x"), (3, "z")]
    assert [(number, reason) for number, _, reason in chunk.malformed.rows()] == [(2, "row_too_long")]


def test_bytes_that_are_no_text_reject_their_row_where_a_column_is_declared_and_are_kept_where_none_is(
    tmp_path: Path,
) -> None:
    columns = {"a": [b"x", b"\xff\x00", None], "b": pa.array([b"\xfe", b"y", b"z"]), "n": [b"1", b"\xff", b"2"]}
    (chunk,) = read(tmp_path, columns, target("a", "n", keep_unknown=True))
    declared = [Column(name="a", type="text"), Column(name="n", type="integer")]
    rows = cast_columns(chunk.rows, declared, profile())
    assert rows.select("a", "n", TEXT_OF("a"), TEXT_OF("n")).rows() == [
        ("x", 1, None, None),
        (None, None, r"\xff00", r"\xff"),
        (None, 2, None, None),
    ]
    assert json.loads(chunk.rows["rescued_data"][0]) == {"b": r"\xfe"}
    assert json.loads(chunk.raw_text([2])[0]) == {"a": r"\xff00", "b": "y", "n": r"\xff"}


def test_a_time_that_no_day_has_rejects_its_row_also_inside_of_a_list(tmp_path: Path) -> None:
    late = pa.array([86_400_000_000, 1]).view(pa.time64("us"))
    nested = pa.ListArray.from_arrays([0, 1, 2], late)
    (chunk,) = read(tmp_path, {"late": late, "nested": nested})
    declared = [Column(name="late", type="text"), Column(name="nested", type="json")]
    assert cast_columns(chunk.rows, declared, profile()).select("late", "nested").rows() == [
        (None, None),
        ("00:00:00.000001", '["00:00:00.000001"]'),
    ]


def test_a_uuid_is_the_text_of_it(tmp_path: Path) -> None:
    found = uuid.UUID("6f1c2b0e-3d4a-4b5c-8d7e-9f0a1b2c3d4e")
    (chunk,) = read(tmp_path, {"a": pa.array([found.bytes, None], pa.uuid())})
    assert chunk.rows["a"].to_list() == [str(found), None]


def test_a_file_beyond_a_limit_is_refused_with_the_limit(tmp_path: Path) -> None:
    zeros = pa.array([0] * 3_000_000)
    for limits, columns, setting in (
        (ReadLimits(max_columns=1), {"a": [1], "b": [1]}, "INGEST_MAX_COLUMNS"),
        (ReadLimits(max_expanded_bytes=1024**2), {"a": zeros}, "INGEST_MAX_EXPANDED_BYTES"),
        (ReadLimits(max_parquet_memory_bytes=200_000), {"a": [1]}, "INGEST_MAX_PARQUET_MEMORY_BYTES"),
        (ReadLimits(max_parquet_seconds=0.0), {"a": [1]}, "INGEST_MAX_PARQUET_SECONDS"),
    ):
        with pytest.raises(LimitExceededError) as caught:
            read(tmp_path, columns, limits=limits)
        assert caught.value.limit == setting


def test_a_page_that_expands_beyond_the_memory_is_refused(tmp_path: Path) -> None:
    limits = ReadLimits(max_parquet_memory_bytes=300 * 1024**2)
    assert read(tmp_path, {"a": ["x"]}, limits=limits)
    with pytest.raises(LimitExceededError) as caught:
        read(
            tmp_path,
            {"a": ["x" * 150_000_000]},
            limits=limits,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
        )
    assert caught.value.limit == "INGEST_MAX_PARQUET_MEMORY_BYTES"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty_file"),
        (b"PAR1", "damaged"),
        (b"PAR1" + bytes(100) + b"PAR1", "damaged"),
        (b"PARE" + bytes(100) + b"PARE", "encrypted"),
        (b"a,b\n1,2\n", "not a Parquet file"),
    ],
)
def test_a_file_that_is_not_parquet_is_rejected(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(FileRejectedError, match=match):
        list(read_chunks(tmp_path / "a.parquet", "parquet", profile(), ReadLimits(), None, target("a")))


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    with pytest.raises(FileRejectedError, match="no_rows"):
        read(tmp_path, {"a": pa.array([], pa.int64())})


def test_any_damaged_file_is_refused_with_a_reason(tmp_path: Path) -> None:
    read(tmp_path, {"a": list(range(300)), "b": ["text"] * 300}, compression="zstd")
    original = (tmp_path / "sample.parquet").read_bytes()
    chosen = random.Random(1)  # noqa: S311 - the same damage in every run
    for _ in range(8):
        damaged = bytearray(original)
        for _ in range(3):
            damaged[chosen.randrange(4, len(damaged) - 8)] = chosen.randrange(256)
        (tmp_path / "a.parquet").write_bytes(damaged[: chosen.choice([len(damaged), len(damaged) // 2])])
        with suppress(FileRejectedError):
            list(read_chunks(tmp_path / "a.parquet", "parquet", profile(), ReadLimits(), None, target("a", "b")))


def test_the_confined_process_imports_nothing_that_it_does_not_need() -> None:
    assert "polars" not in Path(parquet_worker.__file__).read_text(encoding="utf-8")
