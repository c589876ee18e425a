"""Outcomes of CSV files: good rows, malformed rows, refused files."""

from __future__ import annotations

import codecs
import time
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.core.errors import FileRejectedError, LimitExceededError, SettingsError
from ingest_project.core.settings import Settings
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.profiles import ReaderProfile, load_profiles
from ingest_project.readers.reading import read_chunks
from ingest_project_tests.readers.samples import CANONICAL, HEADER, Outcome, casted, columns_profile, read, read_text
from ingest_project_tests.services.memory import with_peak_memory

ROW = "2024-01-15T10:30:45Z,pump-1,temperature,21.5,C\n"


def test_a_canonical_file_becomes_readings_with_line_numbers(tmp_path: Path) -> None:
    outcome = read_text(tmp_path, HEADER + ROW + ROW.replace("pump-1", "pump-2"))
    assert outcome.rows.rows() == [
        (2, "2024-01-15T10:30:45Z", "pump-1", "temperature", "21.5", "C", None),
        (3, "2024-01-15T10:30:45Z", "pump-2", "temperature", "21.5", "C", None),
    ]
    assert outcome.malformed == []


def test_columns_are_found_in_any_order_case_and_spacing_and_others_are_kept_aside(tmp_path: Path) -> None:
    outcome = read_text(tmp_path, "note, Value ,TIMESTAMP,Device_ID,sensor_type\nx,1.5,2024-01-15T10:30:45Z,d,t\n")
    assert outcome.rows.rows() == [(2, "2024-01-15T10:30:45Z", "d", "t", "1.5", None, '{"note":"x"}')]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_by_the_header(tmp_path: Path, delimiter: str) -> None:
    outcome = read_text(tmp_path, (HEADER + ROW).replace(",", delimiter))
    assert outcome.rows["value"].to_list() == ["21.5"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_is_a_line_end(tmp_path: Path, line_end: str) -> None:
    outcome = read_text(tmp_path, (HEADER + ROW + "\n" + ROW).replace("\n", line_end))
    assert outcome.rows["line_number"].to_list() == [2, 4]
    assert outcome.rows["unit"].to_list() == ["C", "C"]


def test_mixed_line_ends_in_one_file_are_understood(tmp_path: Path) -> None:
    outcome = read_text(tmp_path, HEADER.strip() + "\r\n" + ROW.strip() + "\r" + ROW.strip() + "\n" + ROW.strip())
    assert outcome.rows["line_number"].to_list() == [2, 3, 4]


def test_blank_lines_are_skipped_and_keep_the_numbering_right(tmp_path: Path) -> None:
    outcome = read_text(tmp_path, "\n  \n" + HEADER + "\n\n" + ROW + " \t\n" + ROW + "\n\n\n")
    assert outcome.rows["line_number"].to_list() == [6, 8]
    assert outcome.malformed == []


def test_a_quoted_line_break_is_part_of_its_cell_and_counts_as_a_line(tmp_path: Path) -> None:
    text = HEADER + '2024-01-15T10:30:45Z,"pump\nnumber\r\none",temperature,"21.5",C\n' + ROW
    outcome = read_text(tmp_path, text)
    assert outcome.rows["device_id"].to_list() == ["pump\nnumber\r\none", "pump-1"]
    assert outcome.rows["line_number"].to_list() == [2, 5]


def test_rows_with_too_few_and_too_many_cells_are_kept_apart_with_their_text(tmp_path: Path) -> None:
    outcome = read_text(tmp_path, HEADER + "a,b\n" + ROW + "1,2,3,4,5,6\r\n")
    assert outcome.rows["line_number"].to_list() == [3]
    assert outcome.malformed == [(2, "a,b", "too_few_cells"), (4, "1,2,3,4,5,6", "too_many_cells")]


def test_an_unclosed_quote_costs_its_own_line_only(tmp_path: Path) -> None:
    spoilt = '2024-01-15T10:30:45Z,"pump-1,temperature,21.5,C'
    outcome = read_text(tmp_path, HEADER + ROW + spoilt + "\n" + ROW * 3)
    assert outcome.malformed == [(3, spoilt, "unbalanced_quote")]
    assert outcome.rows["line_number"].to_list() == [2, 4, 5, 6]


def test_an_unclosed_quote_early_in_a_large_file_costs_its_own_line_only(tmp_path: Path) -> None:
    limits = ReadLimits(max_row_bytes=2_000, chunk_bytes=16_384)
    outcome = read_text(tmp_path, HEADER + '"oops\n' + ROW * 5_000, limits=limits)
    assert outcome.malformed == [(2, '"oops', "unbalanced_quote")]
    assert outcome.rows["line_number"].to_list() == list(range(3, 5_003))


def test_a_quote_inside_an_unquoted_cell_is_a_character(tmp_path: Path) -> None:
    outcome = read_text(tmp_path, HEADER + ROW.replace("pump-1", '5" pump') + ROW)
    assert outcome.rows["device_id"].to_list() == ['5" pump', "pump-1"]


def test_rows_with_nul_bytes_are_kept_apart(tmp_path: Path) -> None:
    outcome = read_text(tmp_path, (HEADER + ROW.replace("pump", "pu\0mp") + ROW).encode())
    assert outcome.malformed == [(2, ROW.replace("pump", "pu\\x00mp").strip(), "nul_byte")]
    assert outcome.rows["line_number"].to_list() == [3]


def test_null_spellings_and_empty_cells_are_missing(tmp_path: Path) -> None:
    outcome = read_text(tmp_path, HEADER + 'NA,"",  ,null,\n')
    assert outcome.rows.row(0)[1:] == (None,) * 6


def test_cells_longer_than_a_view_come_through_whole(tmp_path: Path) -> None:
    device = "größer als zwölf Bytes 😀"
    quoted = 'he said "so" and "so"'
    text = (
        HEADER
        + f"2024-01-15T10:30:45Z,{device},t,1,\n"
        + '2024-01-15T10:30:45Z,"'
        + quoted.replace('"', '""')
        + '",t,1,"""q"""\n'
    )
    outcome = read_text(tmp_path, text)
    assert outcome.rows["device_id"].to_list() == [device, quoted]
    assert outcome.rows["unit"].to_list() == [None, '"q"']


def test_formulas_stay_text_and_are_no_numbers(tmp_path: Path) -> None:
    formulas = ["=1+1", "@SUM(1+9)*cmd|' /C calc'!A0", "=cmd|' /C notepad'!'A1'", "+1+1"]
    outcome = read_text(tmp_path, HEADER + "".join(f"2024-01-15T10:30:45Z,d,t,{text},\n" for text in formulas))
    assert outcome.rows["value"].to_list() == formulas
    assert casted(outcome)["value"].to_list() == [None] * 4


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_a_byte_order_mark_determines_the_encoding(tmp_path: Path, mark: bytes, encoding: str) -> None:
    text = (HEADER + ROW.replace("pump", "Pumpe-Ä-€") * 30).replace("\n", "\r\n")
    outcome = read_text(tmp_path, mark + text.encode(encoding), limits=ReadLimits(chunk_bytes=101))
    assert outcome.rows["device_id"].to_list() == ["Pumpe-Ä-€-1"] * 30
    assert outcome.rows["line_number"].to_list() == list(range(2, 32))


def test_another_encoding_is_read_when_the_profile_names_it(tmp_path: Path) -> None:
    profile = CANONICAL.model_copy(update={"encoding": "latin-1"})
    outcome = read_text(tmp_path, (HEADER + ROW.replace("pump", "Prüfstand")).encode("latin-1"), profile)
    assert outcome.rows["device_id"].to_list() == ["Prüfstand-1"]


@pytest.mark.parametrize("chunk_bytes", [7, 16, 1024**2])
def test_a_byte_that_is_not_utf_8_costs_its_row_alone_and_is_kept_as_it_was(tmp_path: Path, chunk_bytes: int) -> None:
    spoilt = ROW.encode().replace(b"pump", b"P\xfcmpe\xe2\x82 \\x41")
    content = HEADER.encode() + ROW.encode() + spoilt + "2024-01-15T10:30:45Z,Pümpe-€,t,1,\n".encode() + ROW.encode()
    outcome = read_text(tmp_path, content, limits=ReadLimits(chunk_bytes=chunk_bytes))
    kept = r"2024-01-15T10:30:45Z,P\xfcmpe\xe2\x82 \x41-1,temperature,21.5,C"
    assert outcome.malformed == [(3, kept, "invalid_bytes")]
    assert outcome.rows["line_number"].to_list() == [2, 4, 5]
    assert outcome.rows["device_id"].to_list() == ["pump-1", "Pümpe-€", "pump-1"]


def test_a_character_cut_off_at_the_end_costs_the_last_row(tmp_path: Path) -> None:
    outcome = read_text(tmp_path, (HEADER + ROW).encode() + "a,b,c,€".encode()[:-1])
    assert outcome.malformed == [(3, r"a,b,c,\xe2\x82", "invalid_bytes")]


def test_an_invalid_byte_in_the_header_refuses_the_file_and_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(FileRejectedError, match="Line 1, the header") as refused:
        read_text(tmp_path, HEADER.encode().replace(b"unit", b"\xfcnit") + ROW.encode())
    assert refused.value.rule == "encoding"


def test_a_file_of_another_encoding_altogether_is_refused_and_costs_little(tmp_path: Path) -> None:
    started = time.thread_time()
    with pytest.raises(FileRejectedError, match=r"More than 100,000 bytes of the file are not utf-8.*reader profile"):
        read_text(tmp_path, HEADER.encode() + b"\xff\xfe\n" * 200_000)
    assert time.thread_time() - started < 5


@pytest.mark.parametrize("line", [",,,,", " , ,\t,,", ",", ",,,,,,,,"])
def test_rows_of_delimiters_alone_are_blank_lines(tmp_path: Path, line: str) -> None:
    outcome = read_text(tmp_path, HEADER + ROW + (line + "\n") * 3 + ROW)
    assert outcome.rows["line_number"].to_list() == [2, 6]
    assert outcome.malformed == []


@pytest.mark.parametrize("row", [ROW, ROW.replace("\n", ",\n"), ROW.replace("\n", ', ,"" \n')])
def test_delimiters_at_the_end_of_the_header_cost_no_row(tmp_path: Path, row: str) -> None:
    outcome = read_text(tmp_path, HEADER.replace("\n", ",,\n") + row + ROW)
    assert outcome.malformed == []
    assert outcome.rows["unit"].to_list() == ["C", "C"]
    assert outcome.rows["value"].to_list() == ["21.5", "21.5"]


def test_an_unnamed_column_with_values_is_not_ignored(tmp_path: Path) -> None:
    text = HEADER.replace("\n", ",\n") + ROW.replace("\n", ",x\n") + '"a",b,c,1,"C, D",x\n' + ROW
    outcome = read_text(tmp_path, text)
    assert [(line, reason) for line, _, reason in outcome.malformed] == [(2, "too_many_cells"), (3, "too_many_cells")]
    assert outcome.rows["line_number"].to_list() == [4]
    for delimiter in ",\t":
        beyond = read_text(tmp_path, (HEADER + ROW.replace("\n", ",\n") + ROW).replace(",", delimiter))
        assert [reason for _, _, reason in beyond.malformed] == ["trailing_delimiter"]


@pytest.mark.parametrize("last", ["", '"x"\n'])
def test_rows_may_end_in_a_delimiter_where_the_profile_says_so(tmp_path: Path, last: str) -> None:
    ended = CANONICAL.model_copy(update={"trailing_delimiter": True})
    outcome = read_text(tmp_path, HEADER + ROW.replace("\n", ",\n") + ROW.replace("\n", ",x\n") + last, ended)
    assert outcome.rows["value"].to_list() == ["21.5"]
    assert outcome.malformed[0][2] == "too_many_cells"
    assert read_text(tmp_path, HEADER + ROW, ended).malformed == []


@pytest.mark.parametrize("last", ["", '"\n'])
@pytest.mark.parametrize("cell", ['"\ta"', '"a\t"', '"\t a \t"', '"a"'])
def test_tabs_at_the_ends_of_quoted_cells_are_stripped_between_tabs_as_well(
    tmp_path: Path, cell: str, last: str
) -> None:
    header, row = HEADER.replace(",", "\t"), f'2024-01-15T10:30:45Z\t{cell}\t"t"\t1\t""\n'
    assert read_text(tmp_path, header + row + last).rows["device_id"].to_list() == ["a"]


@pytest.mark.parametrize("unseen", ["\ufeff", "\u00a0", "\u200b", "\u2060", "\u202e", "\x0b", "\u3000", "\U000e0020"])
def test_invisible_characters_at_the_ends_of_a_cell_are_stripped(tmp_path: Path, unseen: str) -> None:
    row = f"{unseen}2024-01-15T10:30:45Z,{unseen}pump-1{unseen},temperature{unseen}, {unseen}21.5,{unseen} {unseen}\n"
    for text in (HEADER + ROW + row, HEADER + ROW + row + 'a,"b,c,1,\n'):
        outcome = read_text(tmp_path, text)
        assert outcome.rows.rows()[1] == (3, "2024-01-15T10:30:45Z", "pump-1", "temperature", "21.5", None, None)


def test_column_names_match_whatever_is_unseen_about_them(tmp_path: Path) -> None:
    header = "\ufefftimestamp,\u200bDevice_ID\u00a0,sensor\u200b_type,VALUE\ufeff,unit\n"
    assert read_text(tmp_path, header + ROW).rows["device_id"].to_list() == ["pump-1"]


def test_columns_that_the_profile_does_not_know_are_named(tmp_path: Path) -> None:
    profile = CANONICAL.model_copy(update={"ignored": ("Note",)})
    outcome = read_text(tmp_path, HEADER.replace("\n", ",NOTE,lat,,lon\n") + ROW.replace("\n", ",a,b,c,d\n"), profile)
    assert outcome.chunks[0].unknown_columns == ("lat", "column 8, without a name", "lon")


def test_numbers_that_mean_missing_are_compared_as_numbers(tmp_path: Path) -> None:
    profile = CANONICAL.model_copy(update={"nulls": ("", "-9999", "0", "NaN")})
    values = ["-9999.0", "-9999", "-9.999e3", "0.00", "NaN", "-9999.5", "-99990"]
    outcome = read_text(tmp_path, HEADER + "".join(f"2024-01-15T10:30:45Z,d,t,{value},\n" for value in values), profile)
    assert outcome.rows["value"].to_list() == [None] * 5 + ["-9999.5", "-99990"]


def test_a_number_that_means_missing_is_no_reading_of_a_wide_file(tmp_path: Path) -> None:
    profile = load_profiles()["luftdaten"].model_copy(update={"nulls": ("", "-1")})
    outcome = read_text(tmp_path, "sensor_id;timestamp;P1;P2\n7;2024-01-01T00:00:00;-1.0;2\n", profile)
    assert outcome.rows["value"].to_list() == ["2"]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "empty_file"),
        (b"\n\n  \n", "empty_file"),
        (codecs.BOM_UTF8, "empty_file"),
        (HEADER.encode(), "no_rows"),
        (b"timestamp,device_id,value\n1,2,3\n", "missing_column"),
        (b"timestamp,device_id,sensor_type,value,Value\n1,2,3,4,5\n", "duplicate_column"),
        (b'timestamp,"device_id\n', "unreadable_header"),
        (HEADER.encode("utf-16-le"), "encoding"),
        (b"PK\x03\x04rest of an archive", "unreadable_container"),
        (b"\xd0\xcf\x11\xe0rest of a workbook", "unreadable_container"),
    ],
)
def test_a_file_that_breaks_the_contract_is_refused_with_its_rule(tmp_path: Path, content: bytes, rule: str) -> None:
    with pytest.raises(FileRejectedError) as refused:
        read_text(tmp_path, content)
    assert refused.value.rule == rule
    assert refused.value.detail


def test_too_many_columns_name_the_limit(tmp_path: Path) -> None:
    with pytest.raises(LimitExceededError, match="INGEST_MAX_COLUMNS"):
        read_text(tmp_path, ",".join(f"c{i}" for i in range(2_001)) + "\n1\n")


def test_a_header_without_end_names_the_limit(tmp_path: Path) -> None:
    with pytest.raises(LimitExceededError, match="INGEST_MAX_ROW_BYTES"):
        read_text(tmp_path, "x" * 5_000, limits=ReadLimits(max_row_bytes=1_000, chunk_bytes=2_000))


def test_a_row_over_the_limit_is_malformed_and_the_others_are_kept(tmp_path: Path) -> None:
    long = "x" * 200_000
    limits = ReadLimits(max_row_bytes=100_000, chunk_bytes=50_000)
    outcome = read_text(tmp_path, HEADER + ROW + long + "\r\n" + ROW, limits=limits)
    assert [(line, reason) for line, _, reason in outcome.malformed] == [(3, "row_too_long")]
    assert len(outcome.malformed[0][1]) < 70_000
    assert outcome.rows["line_number"].to_list() == [2, 4]


def test_a_line_of_100_mb_is_read_past_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    with path.open("wb") as file:
        file.write((HEADER + ROW).encode())
        for _ in range(100):
            file.write(b"x" * 1024**2)
        file.write(("\n" + ROW).encode())
    outcome, grown_bytes = with_peak_memory(lambda: read(path))
    assert outcome.rows["line_number"].to_list() == [2, 4]
    assert [(number, reason) for number, _, reason in outcome.malformed] == [(3, "row_too_long")]
    assert grown_bytes < 200 * 1024**2


def test_a_profile_without_header_names_columns_by_number(tmp_path: Path) -> None:
    profile = ReaderProfile.model_validate(
        {
            "name": "plain",
            "header": False,
            "columns": {"1": "timestamp", "3": "value"},
            "constants": {"sensor_type": "level", "unit": "m"},
            "from_file_name": {"device_id": r"^(\w+)\.csv$"},
        }
    )
    outcome = read_text(tmp_path, "\n2024-01-15T10:30:45Z,x,1\n2024-01-15T10:30:46Z,x,2\n", profile)
    assert outcome.rows.rows() == [
        (2, "2024-01-15T10:30:45Z", "sample", "level", "1", "m", '{"2":"x"}'),
        (3, "2024-01-15T10:30:46Z", "sample", "level", "2", "m", '{"2":"x"}'),
    ]


def test_lines_above_the_header_are_skipped_when_the_profile_says_so(tmp_path: Path) -> None:
    profile = CANONICAL.model_copy(update={"skip_lines": 2})
    outcome = read_text(tmp_path, 'Station "7\n\n' + HEADER + ROW, profile)
    assert outcome.rows["line_number"].to_list() == [4]


def test_a_file_name_that_does_not_match_the_profile_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("timestamp,value\n2024-01-01 00:00:00,1\n")
    profile = load_profiles()["nab"].model_copy(update={"from_file_name": {"device_id": r"^room(\d+)"}})
    with pytest.raises(FileRejectedError, match="file_name"):
        read(path, profile)
    assert read(path, profile, file_name="room12.csv").rows["device_id"].to_list() == ["12"]


def test_a_wide_row_becomes_one_reading_per_filled_quantity_on_its_own_line(tmp_path: Path) -> None:
    profile = load_profiles()["luftdaten"]
    outcome = read_text(
        tmp_path, "sensor_id;timestamp;P1;P2\n7;2024-01-01T00:00:00;1;2\n7;2024-01-01T00:01:00;;3\n", profile
    )
    assert outcome.rows.select("line_number", "sensor_type", "value", "unit").rows() == [
        (2, "pm10", "1", "µg/m³"),
        (2, "pm2_5", "2", "µg/m³"),
        (3, "pm2_5", "3", "µg/m³"),
    ]
    assert outcome.chunks[0].raw_text([3, 2]) == ["7;2024-01-01T00:01:00;;3", "7;2024-01-01T00:00:00;1;2"]


def test_a_file_in_many_chunks_is_the_same_as_in_one(tmp_path: Path) -> None:
    text = HEADER + "".join(
        f'2024-01-15T10:30:45Z,"dev ""{i}""\n",t,{i}.5,\n' if i % 7 else "x,y\n\n" for i in range(2_000)
    )
    whole = read_text(tmp_path, text)
    parts = read_text(tmp_path, text, limits=ReadLimits(chunk_bytes=4_096))
    assert len(parts.chunks) > 5
    assert parts.rows.equals(whole.rows)
    assert parts.malformed == whole.malformed


def test_cells_that_look_like_other_spellings_of_empty_are_text(tmp_path: Path) -> None:
    outcome = read_text(tmp_path, "a,b\n01,na\n", columns_profile("a", "b"))
    assert outcome.rows.row(0)[1:3] == ("01", "na")


def test_limits_come_from_the_settings() -> None:
    assert ReadLimits.from_settings(Settings().file_ingest) == ReadLimits()
    with pytest.raises(SettingsError, match="INGEST_MAX_ROW_BYTES"):
        ReadLimits(max_row_bytes=2**40)


def test_rows_survive_the_file_they_came_from(tmp_path: Path) -> None:
    frames = [read_text(tmp_path, HEADER + ROW * (n + 1)).rows for n in range(20)]
    together = pl.concat(frames)
    assert together.height == sum(range(1, 21))
    assert set(together["timestamp"]) == {"2024-01-15T10:30:45Z"}


@given(
    st.lists(
        st.sampled_from([*"a1,;\t\"' \r\n\0=é€", "\r\n", '""', "a cell that is longer", ROW, HEADER]), max_size=30
    ),
    st.binary(max_size=3),
    st.integers(1, 200),
)
@settings(deadline=None)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], more: bytes, chunk_bytes: int
) -> None:
    content = (HEADER + "".join(texts)).encode() + more
    folder = tmp_path_factory.mktemp("bytes")
    outcome: Outcome | str
    try:
        outcome = read_text(folder, content, limits=ReadLimits(chunk_bytes=chunk_bytes, max_row_bytes=300))
    except FileRejectedError as refused:
        outcome = refused.rule
    if isinstance(outcome, str):
        assert outcome in {"no_rows", "encoding"}
    else:
        assert all(len(row) == 7 for row in casted(outcome).select(outcome.rows.columns).iter_rows())
        assert all(reason for _, _, reason in outcome.malformed)


def test_a_megabyte_of_blanks_in_a_cell_takes_no_time(tmp_path: Path) -> None:
    started = time.process_time()
    outcome = read_text(tmp_path, HEADER + f"2024-01-15T10:30:45Z,{' ' * 500_000}d{' ' * 500_000},t,{' ' * 40},C\n")
    assert outcome.rows.row(0)[2:5] == ("d", "t", None)
    assert time.process_time() - started < 5


def test_millions_of_tiny_lines_come_in_chunks_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "tiny.csv"
    path.write_bytes(HEADER.encode() + b"a\n" * 300_000)
    sizes = [chunk.malformed.height for chunk in read_chunks(path, "csv", CANONICAL, ReadLimits())]
    assert sum(sizes) == 300_000
    assert max(sizes) <= 250_001
