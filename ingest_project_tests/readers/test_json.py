"""JSON lines, arrays and objects: every value is read as written, or refused with a reason."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.core.errors import FileRejectedError, LimitExceededError
from ingest_project.readers import Target
from ingest_project.readers.casting import cast
from ingest_project.readers.cells import JsonParser, depth_of, json_of
from ingest_project.readers.layout import ReadLimits, RowsChunk
from ingest_project.readers.profiles import ReaderProfile, load_profiles
from ingest_project.readers.reading import read_chunks
from ingest_project_tests.readers.samples import Outcome

TARGET = Target(("device", "temp", "note"), frozenset({"device"}), keep_unknown=True, numbers=frozenset({"temp"}))


def profile(**settings: object) -> ReaderProfile:
    return ReaderProfile.model_validate({"name": "own", "dataset": "own", **settings})


def read(
    folder: Path,
    content: str | bytes,
    used: ReaderProfile | None = None,
    target: Target = TARGET,
    limits: ReadLimits | None = None,
) -> Outcome:
    path = folder / "sample.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    chunks = list(read_chunks(path, "json", used or profile(), limits or ReadLimits(), None, target))
    malformed = [record for chunk in chunks for record in chunk.malformed.rows()]
    return Outcome(pl.concat([chunk.rows for chunk in chunks], how="diagonal"), malformed, chunks)


def reasons(outcome: Outcome) -> dict[int, str]:
    return {number: reason for number, _, reason in outcome.malformed}


def unknown(chunks: Sequence[RowsChunk]) -> tuple[str, ...]:
    return chunks[-1].unknown_columns


def test_values_arrive_as_they_are_written(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        '{"device": " a ", "temp": 12345678901234567890.10, "note": [1.50, {"x": null}]}\n'
        '{"device": "", "temp": -0.0E+5, "note": "N/A"}\n'
        '{"device": "b\\u00fc\\n", "temp": null, "note": true}\n',
    ).rows
    assert rows["line_number"].to_list() == [1, 2, 3]
    assert rows["device"].to_list() == ["a", None, "bü\n"]
    assert rows["temp"].to_list() == ["12345678901234567890.10", "-0.0E+5", None]
    assert rows["note"].to_list() == ['[1.50,{"x":null}]', None, "true"]
    assert rows["temp_kind"].to_list() == ["n", "n", "s"]
    assert rows["note_kind"].to_list() == ["j", "s", "b"]


def test_a_line_that_is_no_row_costs_its_line_only(tmp_path: Path) -> None:
    lines = [
        '{"device": "first"}',
        "not json",
        '{"device": "a", "device": "b"}',
        '{"x": {"a": 1, "a": 1}}',
        '["device"]',
        '{"device": NaN}',
        '{"device": -Infinity}',
        '{"device": "a",}',
        '{"device": "a"} {"device": "b"}',
        "\ufeff" + '{"device": "a"}',
        '{"device": "\\u0000"}',
        '{"device": "\\ud83d"}',
        '{"device": "a\tb"}',
        "{'device': 1}",
        '{"device": 01}',
        "[" * 100_000,
        '{"x": ' + "[" * 40 + "]" * 40 + "}",
        "",
        '{"device": "\\\\u0000 \\ud83d\\ude00"}',
    ]
    outcome = read(tmp_path, "\r\n".join(lines))
    assert outcome.rows["device"].to_list() == ["first", "\\u0000 😀"]
    assert outcome.rows["line_number"].to_list() == [1, 19]
    assert reasons(outcome) == {
        2: "not_json",
        3: "duplicate_key",
        4: "duplicate_key",
        5: "not_an_object",
        6: "not_json",
        7: "not_json",
        8: "not_json",
        9: "not_json",
        10: "not_json",
        11: "nul_byte",
        12: "invalid_unicode",
        13: "not_json",
        14: "not_json",
        15: "not_json",
        16: "nested_too_deep",
        17: "nested_too_deep",
    }
    assert outcome.malformed[1][1] == lines[2]


def test_an_invalid_byte_and_a_long_line_cost_their_line_only(tmp_path: Path) -> None:
    content = (
        b'{"device": "a"}\n{"device": "\xff"}\n{"device": "\0"}\n{"device": "' + b"x" * 5_000 + b'"}\n{"device": "b"}'
    )
    for chunk_bytes in (64, 4_096, 1024**2):
        outcome = read(tmp_path, content, limits=ReadLimits(max_row_bytes=2_000, chunk_bytes=chunk_bytes))
        assert outcome.rows.select("line_number", "device").rows() == [(1, "a"), (5, "b")]
        assert reasons(outcome) == {2: "invalid_bytes", 3: "nul_byte", 4: "row_too_long"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_at_the_beginning_names_the_encoding(tmp_path: Path, encoding: str) -> None:
    for text in ('{"device": "ü"}\n', '[{"device": "ü"}]'):
        assert read(tmp_path, text.encode(encoding)).rows["device"].to_list() == ["ü"]


def test_an_array_has_a_row_for_each_object_by_its_number(tmp_path: Path) -> None:
    outcome = read(
        tmp_path, '\n [{"device": "a"},\n 5, {"device": NaN}, {"device": "b", "device": "c"},{"device":"d"}] \n'
    )
    assert outcome.rows.select("line_number", "device").rows() == [(1, "a"), (5, "d")]
    assert reasons(outcome) == {2: "not_an_object", 3: "not_json", 4: "duplicate_key"}
    assert outcome.chunks[0].raw_text([5, 1]) == ['{"device":"d"}', '{"device": "a"}']


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ('[{"device": "a"},]', "Line 1: a value is missing"),
        ('[{"device": "a"}\n{"device": "b"}]', "Line 2: a comma is missing"),
        ('[{"device": "a"}', "the array has no end"),
        ('[{"device": "a"},', "the array has no end"),
        ("[", "the array has no end"),
        ('[{"device": "a"}, {"dev', "Line 1: Unterminated string"),
        ('[{"device": "a"}]\n\n[', "Line 3: something follows the document"),
        ('[{"device": "a",\n}]', "Line 2: Expecting property name"),
        ("[,]", "a value is missing"),
        ('{\n"device": "a"\n', "Line 3: Expecting"),
    ],
)
def test_broken_syntax_of_an_array_rejects_the_file_with_the_line(tmp_path: Path, content: str, detail: str) -> None:
    for chunk_bytes in (3, 1024**2):
        with pytest.raises(FileRejectedError, match="unreadable_json") as caught:
            read(tmp_path, content, limits=ReadLimits(chunk_bytes=chunk_bytes))
        assert detail in caught.value.detail


@pytest.mark.parametrize("chunk_bytes", [3, 1024**2])
def test_the_rows_of_a_document_are_in_the_list_that_the_profile_names(tmp_path: Path, chunk_bytes: int) -> None:
    rows = '[{"device": "a"}, 5, {"device": "b"}]'
    content = f'{{"n": 2, "data": {{"items": {rows}, "of": "x"}}, "items": [{{"device": "c"}}]}}\n'
    limits = ReadLimits(chunk_bytes=chunk_bytes)
    outcome = read(tmp_path, content, profile(rows="data.items"), limits=limits)
    assert outcome.rows.select("line_number", "device").rows() == [(1, "a"), (3, "b")]
    assert reasons(outcome) == {2: "not_an_object"}


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ('{"items": [{"device": "a"}]}', "no lists are called 'data'"),
        ('{"data": 5}', "no lists are called 'data'"),
        ('{"data": [{"device": "a"}], "data": []}', "2 lists are called 'data'"),
        ('{"data": [{"device": "a"}]', "the object has no end"),
        ('{"data": [{"device": "a"}],}', "a value is missing"),
        ('{"data": [{"device": "a"}], 5}', "a name is missing"),
        ('{"data": [{"device": "a"}', "the array has no end"),
        ('{"data": [{"device": "a"}]} {}', "something follows the document"),
        ('{"data" [{"device": "a"}]}', "a colon is missing"),
        ('[{"device": "a"}]', "an object is missing"),
    ],
)
def test_a_document_without_the_list_of_its_rows_is_rejected(tmp_path: Path, content: str, detail: str) -> None:
    with pytest.raises(FileRejectedError, match="unreadable_json") as caught:
        read(tmp_path, content, profile(rows="data"))
    assert detail in caught.value.detail


def test_objects_over_several_lines_follow_each_other(tmp_path: Path) -> None:
    documents = [{"device": "a", "temp": 1}, {"device": "b", "temp": 2}]
    content = "\n".join(json.dumps(document, indent=2) for document in documents)
    assert read(tmp_path, content).rows.select("line_number", "device", "temp").rows() == [(1, "a", "1"), (2, "b", "2")]


@pytest.mark.parametrize(("content", "rule"), [("", "empty_file"), (" \n\n", "empty_file"), ("[]", "no_rows")])
def test_a_file_without_rows_says_so(tmp_path: Path, content: str, rule: str) -> None:
    with pytest.raises(FileRejectedError) as caught:
        read(tmp_path, content)
    assert caught.value.rule == rule


def test_nested_values_are_reached_by_path_and_what_is_left_is_kept(tmp_path: Path) -> None:
    used = profile(columns={"payload.temperature": "temp", "$.meta['the note'][-1]": "note"})
    outcome = read(
        tmp_path,
        '{"device": "a", "payload": {"temperature": 1.0, "battery": 3.30}, "meta": {"the note": ["x", "y"]}}\n'
        '{"device": "b", "payload": {"temperature": null}}\n'
        '{"device": "c", "payload": "none", "more": 1}\n'
        '{"device": "d", "payload.temperature": 4}\n',
        used,
    )
    assert outcome.rows["temp"].to_list() == ["1.0", None, None, "4"]
    assert outcome.rows["note"].to_list() == ["y", None, None, None]
    assert outcome.rows["rescued_data"].to_list() == [
        '{"payload":{"battery":3.30},"meta":{"the note":["x","y"]}}',
        None,
        '{"payload":"none","more":1}',
        None,
    ]
    assert set(unknown(outcome.chunks)) == {"payload", "meta", "more"}


def test_fields_without_a_column_are_reported_or_left_out_on_purpose(tmp_path: Path) -> None:
    outcome = read(tmp_path, '{"device": "a", "Temp": 1, "x": 2, "y": 3}\n', profile(ignored=["y"]))
    assert outcome.rows.select("temp", "rescued_data").rows() == [("1", '{"x":2}')]
    assert unknown(outcome.chunks) == ("x",)
    assert outcome.chunks[0].missing_columns == ("note",)


@pytest.mark.parametrize(
    ("path", "match"), [("$.a[", "is no JSONPath"), ("$..a", "several values"), ("$.a[*]", "several values")]
)
def test_a_path_that_cannot_name_one_value_is_refused(tmp_path: Path, path: str, match: str) -> None:
    with pytest.raises(FileRejectedError, match=match):
        read(tmp_path, '{"device": "a"}', profile(columns={path: "temp"}))


def test_a_missing_column_and_one_of_two_spellings_reject_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileRejectedError, match="missing_column"):
        read(tmp_path, '{"temp": 1}\n')
    with pytest.raises(FileRejectedError, match="duplicate_column"):
        read(tmp_path, '{"device": "a"}\n{"Device": "b"}\n')
    fields = ",".join(f'"f{number}": 1' for number in range(3_000))
    with pytest.raises(LimitExceededError, match="INGEST_MAX_COLUMNS"):
        read(tmp_path, f'{{"device": "a", {fields}}}\n')


def test_an_endless_value_is_refused_at_the_row_limit(tmp_path: Path) -> None:
    limits = ReadLimits(max_row_bytes=10_000, chunk_bytes=1_000)
    with pytest.raises(LimitExceededError, match="INGEST_MAX_ROW_BYTES"):
        read(tmp_path, '[{"device": "' + "x" * 100_000, limits=limits)
    with pytest.raises(LimitExceededError, match="INGEST_MAX_JSON_DEPTH"):
        read(tmp_path, "[" * 100_000)


def test_sensor_readings_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"timestamp": "2024-01-01T00:00:00Z", "device_id": "d", "sensor_type": "t", "value": 0.10, "unit": "C"}\n'
        '{"timestamp": 5, "device_id": "d", "sensor_type": "t", "value": "0.1"}\n'
        '{"timestamp": 5, "device_id": "d", "sensor_type": "t", "value": 1e-400}\n'
    )
    used = load_profiles()["canonical"]
    rows = cast(pl.concat(chunk.rows for chunk in read_chunks(path, "jsonl", used, ReadLimits())), used)
    assert rows["value"].to_list() == [0.1, 0.1, None]
    assert rows["value_text"].to_list() == ["0.10", "0.1", "1e-400"]
    assert rows["timestamp"].null_count() == 2


def test_a_large_array_is_read_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "sample.json").open("w") as file:
        file.write("[")
        for number in range(6_200):
            file.write(f'{{"device": "d{number}", "temp": {number}.50, "more": "{"x" * 60}"}},')
        file.write('{"device": "last"}]')
    # Tracing makes it slow: a small file of many smaller chunks, which is larger than what is allowed.
    limits = ReadLimits(chunk_bytes=16 * 1024)
    assert (tmp_path / "sample.json").stat().st_size > 39 * limits.chunk_bytes
    count = 0
    tracemalloc.start()
    for chunk in read_chunks(tmp_path / "sample.json", "json", profile(), limits, None, TARGET):
        count += chunk.rows.height
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6_201
    assert peak < 30 * limits.chunk_bytes


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(value=VALUES, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_json_written_by_python_is_read_back_unchanged(value: object, indent: int | None, *, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    parsed, end, reason = JsonParser(100).value_at(text)
    if reason:
        assert (reason, "\\u0000" in text) == ("nul_byte", True)
        return
    assert end == len(text)
    assert json.loads(json_of(parsed)) == value
    assert depth_of(text) == _depth(value)


def _depth(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0)


@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["device", "temp", "x", "y"]), SCALARS), min_size=1, max_size=8),
    style=st.sampled_from(["lines", "array", "indented"]),
    chunk_bytes=st.sampled_from([1, 7, 64, 1024**2]),
)
def test_rows_are_the_objects_of_the_json_module_in_any_block_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], style: str, chunk_bytes: int
) -> None:
    first = {"device": "first", "temp": 1}
    every = [first, *rows]
    match style:
        case "lines":
            content = "\n".join(map(json.dumps, every))
        case "array":
            content = json.dumps(every)
        case _:
            content = json.dumps(every, indent=1)
    used = profile(nulls=[])
    outcome = read(tmp_path_factory.mktemp("json"), content, used, limits=ReadLimits(chunk_bytes=chunk_bytes))
    bad = reasons(outcome)
    assert set(bad.values()) <= {"nul_byte"}
    good = [row for number, row in enumerate(every, 1) if number not in bad]
    found = outcome.rows.select("device", "temp", "rescued_data").rows()
    for row, (device, temp, rescued) in zip(good, found, strict=True):
        for value, text in ((row.get("device"), device), (row.get("temp"), temp)):
            if isinstance(value, str):
                assert (text or "") in value
            else:
                assert json.loads(text if text is not None else "null") == value
        kept = {name: row[name] for name in ("x", "y") if row.get(name) is not None}
        assert json.loads(rescued or "{}") == kept
