"""Proposed profiles: each reads its file with the right values, or asks a person where the file does not decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import openpyxl
import polars as pl
import pytest
import yaml

from ingest_project.contracts.files import file_type_of, is_readable
from ingest_project.core.errors import FileRejectedError
from ingest_project.file_ingest.sensor_readings import SensorTypes
from ingest_project.readers.casting import cast
from ingest_project.readers.guessing.dataset import guess_dataset
from ingest_project.readers.guessing.names import read_name
from ingest_project.readers.guessing.proposal import Draft, guess_profile, look_at
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.profiles import Profiles, ReaderProfile, load_profiles, read_profile
from ingest_project.readers.reading import read_chunks
from ingest_project_tests.readers.logger_files import LOGGER_FILES, LoggerFile
from ingest_project_tests.readers.real_files import (
    DATA,
    nasty_files,
    one_of_each,
    plain_reading,
    profile_name_of,
    sensor_files,
)
from ingest_project_tests.readers.test_shipped_profiles import SAMPLES

TYPES = SensorTypes.load().types
FIELD_FILES = sorted(path for path in (DATA / "field").rglob("*") if path.suffix in {".csv", ".xlsx"})


@cache
def _field_profiles() -> Profiles:
    # Not where the module is imported: to read a profile starts threads, and the processes of tests are forks.
    return load_profiles([DATA / "field" / "profiles"]) if DATA.exists() else load_profiles()


def type_of(path: Path) -> str:
    found = file_type_of(path.name)
    return found if is_readable(found) else "csv"


def guessed(path: Path, folder: Path) -> tuple[ReaderProfile, Draft]:
    """The proposal for a file, as a user would store and load it."""
    draft = guess_profile(look_at(path, type_of(path), ReadLimits()), path.name, "guessed", TYPES)
    written = folder / "guessed.yaml"
    written.write_text(draft.text(), encoding="utf-8")
    return read_profile(written), draft


def readings(path: Path, profile: ReaderProfile) -> pl.DataFrame:
    """What a profile reads in a file, typed."""
    chunks = list(read_chunks(path, type_of(path), profile, ReadLimits()))
    assert all(chunk.malformed.is_empty() for chunk in chunks)
    return cast(pl.concat([chunk.rows for chunk in chunks]), profile)


def sample_file(text: str | bytes, folder: Path, name: str = "hall-3.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("sample", LOGGER_FILES, ids=lambda sample: sample.name)
def test_a_loggers_file_is_read_as_a_person_reads_it(sample: LoggerFile, tmp_path: Path) -> None:
    path = sample_file(sample.content, tmp_path, sample.name)
    profile, draft = guessed(path, tmp_path)
    rows = readings(path, profile)
    assert rows["value"].null_count() == rows["timestamp"].null_count() == 0
    found = Counter(rows.select("timestamp", "device_id", "sensor_type", "value").rows())
    for when, *rest in sample.readings:
        assert found[datetime.fromisoformat(when), *rest] == 1, (when, rest)
    assert rows.height == sample.total
    asked = " ".join(draft.questions)
    assert all(word in asked for word in sample.asked), asked
    assert sample.asked or not draft.questions


@pytest.mark.parametrize(
    "path", one_of_each(sensor_files(), lambda path: str(path.parent)), ids=lambda path: "/".join(path.parts[-3:])
)
def test_a_real_sensor_file_gives_the_rows_of_its_own_profile_or_questions(path: Path, tmp_path: Path) -> None:
    profile, draft = guessed(path, tmp_path)
    rows = readings(path, profile)
    right = plain_reading(path)
    assert Counter(rows.select("timestamp", "value").rows()) == Counter(
        (when, value) for (when, _, _, value), count in right.items() for _ in range(count)
    )
    same = Counter(rows.select("timestamp", "device_id", "sensor_type", "value").rows()) == right
    asked = " ".join(draft.questions)
    # Whatever differs from the shipped profile is a question.
    assert same or "unit" in asked or "device" in asked
    assert same or profile_name_of(path) != "canonical"


@pytest.mark.parametrize("path", FIELD_FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_a_file_from_the_field_is_read_as_by_its_own_profile_or_doubted(path: Path, tmp_path: Path) -> None:
    if path.name == "calc.xlsx":
        # Its numbers were never calculated.
        with pytest.raises(FileRejectedError, match="no_values"):
            guessed(path, tmp_path)
        return
    profile, draft = guessed(path, tmp_path)
    rows = readings(path, profile)
    case = path.parent.name.partition("_")[0]
    profiles = _field_profiles()
    own = profiles.get({"f40": "f02"}.get(case, case), profiles["canonical"])
    asked = " ".join(draft.questions)
    right = readings(path, own)
    for mine, other in zip(rows.iter_rows(named=True), right.iter_rows(named=True), strict=True):
        for column in ("timestamp", "device_id", "sensor_type", "value", "unit"):
            assert mine[column] == other[column] or _is_doubted(column, mine, other, asked), (column, mine, other)


def _is_doubted(column: str, mine: dict[str, Any], other: dict[str, Any], asked: str) -> bool:
    """True where the guess says that it does not know, or where the other profile reads nothing."""
    if other[column] is None and column == "timestamp":
        return True
    if column == "timestamp":
        return "zone" in asked and abs(mine[column] - other[column]) <= timedelta(hours=14)
    return {"sensor_type": "measure", "unit": "unit", "device_id": "device", "value": "mark"}[column] in asked


@pytest.mark.parametrize(
    "entry", one_of_each(nasty_files(), lambda entry: Path(entry["file"]).parent.name), ids=lambda entry: entry["file"]
)
def test_a_nasty_file_gets_a_proposal_that_loads_or_a_reason(entry: dict[str, Any], tmp_path: Path) -> None:
    path = DATA / "nasty" / entry["file"]
    # Any other error would be a defect.
    with suppress(FileRejectedError):
        assert guessed(path, tmp_path)[0].name == "guessed"


def test_dates_that_may_be_read_two_ways_are_a_question_with_both(tmp_path: Path) -> None:
    text = "time,device,temp_c\n" + "".join(f"0{day}/02/2026 10:00,a,{day}\n" for day in range(1, 9))
    _, draft = guessed(sample_file(text, tmp_path), tmp_path)
    assert any("%m/%d/%Y %H:%M" in question for question in draft.questions)
    assert "%d/%m/%Y %H:%M" in draft.text()


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_published_format_gets_a_proposal_that_asks_or_agrees_with_its_shipped_profile(
    name: str, tmp_path: Path
) -> None:
    sample = SAMPLES[name]
    path = sample_file(sample.text, tmp_path, sample.name)
    profile, draft = guessed(path, tmp_path)
    chunks = list(read_chunks(path, type_of(path), profile, ReadLimits()))
    rows = cast(pl.concat([chunk.rows for chunk in chunks]), profile)
    found = rows.select("timestamp", "device_id", "sensor_type", "value").rows()
    assert draft.questions or set(found) == {row[1:5] for row in sample.expected}


def test_a_repeated_word_among_numbers_is_a_question(tmp_path: Path) -> None:
    text = "time,device,temp_c\n" + "".join(f"2026-01-15T1{i}:00:00Z,a,{'ERR' if i < 2 else 20.5}\n" for i in range(9))
    _, draft = guessed(sample_file(text, tmp_path), tmp_path)
    assert any("'ERR'" in question and "nulls" in question for question in draft.questions)


def test_dates_without_a_time_of_day_are_a_question(tmp_path: Path) -> None:
    text = "date,hour,device,temp_c\n" + "".join(f"2026-01-15,{hour} o'clock,a,2.5\n" for hour in range(5))
    _, draft = guessed(sample_file(text, tmp_path), tmp_path)
    assert any("time of day" in question for question in draft.questions)


def test_a_time_in_columns_of_year_day_and_hour_with_minute_is_found(tmp_path: Path) -> None:
    text = "Site,Met,,\nYear,Day,HHMM,AirTemp\n" + "".join(f"2026,15,{clock},1.5\n" for clock in (0, 5, 100, 2355))
    profile, draft = guessed(path := sample_file(text, tmp_path), tmp_path)
    clocks = [f"{moment:%j %H:%M}" for moment in readings(path, profile)["timestamp"]]
    assert clocks == ["015 00:00", "015 00:05", "015 01:00", "015 23:55"]
    assert any("header_rows: 2" in question for question in draft.questions)


def test_a_header_of_two_lines_of_which_one_alone_names_some_columns_is_read_as_one(tmp_path: Path) -> None:
    rows = "".join(f"2026-01-15T1{hour}:00:00Z,{hour},{hour}.5\n" for hour in range(5))
    profile, _ = guessed(sample_file(f"time,Air,Soil\n,Temp,Moist\n{rows}", tmp_path), tmp_path)
    assert profile.header_rows == 2
    assert {quantity.sensor_type for quantity in profile.quantities.values()} == {"temperature", "soil_moist"}


def test_a_loggers_serial_number_is_no_part_of_the_proposal(tmp_path: Path) -> None:
    text = LOGGER_FILES[5].content.decode()
    profile, _ = guessed(sample_file(text, tmp_path), tmp_path)
    other = sample_file(text.replace("10254", "99999"), tmp_path, "other.csv")
    assert readings(other, profile).height == LOGGER_FILES[5].total


def test_a_second_sheet_with_the_table_is_found(tmp_path: Path) -> None:
    path = tmp_path / "book.xlsx"
    book = openpyxl.Workbook()
    book.create_sheet("About", 0).append(["Exported by", "me"])
    sheet = book.create_sheet("Data")
    sheet.append([])
    sheet.append(["Time", "Device", "Temp °C"])
    for day in range(1, 6):
        sheet.append([datetime(2026, 1, day, 10), "a", 20.5 + day])  # noqa: DTZ001 - cells have no zone
    book.save(path)
    profile, draft = guessed(path, tmp_path)
    rows = readings(path, profile)
    assert rows["value"].to_list() == [21.5, 22.5, 23.5, 24.5, 25.5]
    assert any("zone" in question for question in draft.questions)


def test_one_day_over_twelve_decides_the_order_of_day_and_month(tmp_path: Path) -> None:
    text = "time,device,temp_c\n" + "".join(f"02/{day:02}/2026 10:00,a,{day}\n" for day in (1, 2, 13))
    profile, draft = guessed(sample_file(text, tmp_path), tmp_path)
    assert profile.timestamps.formats == ("%m/%d/%Y %H:%M",)
    assert "month first: 1 fit no other order" in draft.text()


def test_a_comma_before_three_digits_is_a_question(tmp_path: Path) -> None:
    text = "time;device;level\n" + "".join(f"2026-01-15T1{i}:00:00Z;a;1,23{i}\n" for i in range(5))
    _, draft = guessed(sample_file(text, tmp_path), tmp_path)
    assert any("1.234 or 1234" in question for question in draft.questions)


def test_a_known_type_is_not_claimed_for_values_that_it_cannot_have(tmp_path: Path) -> None:
    text = "time,device,pressure\n" + "".join(f"2026-01-15T1{i}:00:00Z,a,0.{i}\n" for i in range(5))
    profile, draft = guessed(sample_file(text, tmp_path), tmp_path)
    assert profile.quantities["pressure"].sensor_type == "pressure_unit_unknown"
    assert any("unit" in question for question in draft.questions)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "empty_file"),
        (b" \r\n\r\n", "empty_file"),
        (bytes(range(256)) * 20, "unreadable_container"),
        (b"%PDF-1.7 ...", "unreadable_container"),
        (b"\xef\xbb\xbf <!doctype html><table>", "unreadable_container"),
        (b'{"time": "2026-01-15T10:00:00Z"}', "unreadable_container"),
        (b",".join(b"%d" % number for number in range(3_000)), "limit_exceeded"),
        (b"only words\nand more words\n", "no_rows"),
        (b"time,device\n2026-01-15T10:00:00Z,a\n", "no_values"),
        (b"time,device,temp\n", "no_rows"),
    ],
)
def test_a_file_without_a_table_is_refused_with_its_rule(content: bytes, rule: str, tmp_path: Path) -> None:
    with pytest.raises(FileRejectedError) as refused:
        guessed(sample_file(content, tmp_path), tmp_path)
    assert refused.value.rule == rule


def test_texts_of_a_file_cannot_leave_their_comment_or_their_name(tmp_path: Path) -> None:
    header = 'time,device,"te\nmp: [x]\n# name: evil"\n'
    text = header + "".join(f'2026-01-15T1{i}:00:00Z,"a\nname: evil",2{i}.5\n' for i in range(5))
    profile, _ = guessed(sample_file(text, tmp_path), tmp_path)
    assert profile.name == "guessed"


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    record = b"2026-01-15T10:00:00Z,a,21.5\n"
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.write(b"time,device,temp_c\n" + record * 50_000)
        file.seek(20 * 1024**3)
        file.write(b"\n" + record)
    profile, _ = guessed(path, tmp_path)
    assert profile.columns["device"] == "device_id"


def dataset_of(text: str, folder: Path) -> Draft:
    """The proposal of a dataset for a file."""
    path = sample_file(text, folder)
    return guess_dataset(look_at(path, "csv", ReadLimits()), path.name, "csv", "own")


def column_of(cells: Sequence[str], folder: Path) -> tuple[str, str]:
    """The type that is proposed for a column of these cells, and all questions."""
    draft = dataset_of("own;other\n" + "".join(f"{cell};x\n" for cell in cells), folder)
    return yaml.safe_load(draft.text())["attributes"]["columns"][0]["type"], " ".join(draft.questions)


@pytest.mark.parametrize(
    ("cells", "kind", "asked"),
    [
        (["2026-01-15 10:00:00+01", "2026-01-15 10:00:01.5+01"], "timestamp", ""),
        (["2026-01-15-1030", "2026-01-16-1030"], "timestamp", "in which zone"),
        (["Thu, 15 Jan 2026 10:00:00 +0000", "Fri, 16 Jan 2026 10:00:00 +0000"], "timestamp", ""),
        (["13.01.2026 10:00", "2026-01-14 10:00"] * 2, "timestamp", "in which zone"),
        (["2026-01-15 23:00", "2026-01-15 24:00"], "timestamp", "is it the midnight at the end of its day?"),
        (["13/01/2026 10:00"] * 2 + ["01/14/2026 10:00"], "text", "2 of 3 are times"),
        (["28.02.2026 10:00", "27.02.2026 10:00", "30.02.2026 10:00"], "text", "2 of 3 are times"),
        (["1.5", "2.5", "inf", "below"], "text", "2 of 4 are numbers"),
        (["+491701234567", "+12025550100"], "text", ""),
        (["12E4", "34E5", "567"], "text", ""),
        (["1.2E4", "3E-5", "4E+05"], "number", ""),
        (["+1.5", "-2.5"], "number", ""),
        (["1 234,5", "12 345,0"], "number", ""),
        (["1'234.50", "12\u2019345.00"], "number", ""),
        (["1.234", "2.345"], "number", "mean 1.234 or 1234?"),
        (["20.5", "21.5", "-999.25"], "number", ""),
        (["20.5", "21.5", "9999"], "number", "does 9999 mean that there is no value?"),
    ],
)
def test_a_column_is_typed_where_its_values_decide_and_a_question_elsewhere(
    cells: list[str], kind: str, asked: str, tmp_path: Path
) -> None:
    found, questions = column_of(cells, tmp_path)
    assert found == kind
    assert asked in questions
    assert "or is it" not in questions
    assert ("in which zone" in questions) == (kind == "timestamp" and "+" not in cells[0])


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("clock", ["10:0{}", "10:0{}:00", "10:0{}:00.5"])
def test_blanks_in_times_divide_no_short_file(rows: int, clock: str, tmp_path: Path) -> None:
    text = "at,n\n" + "".join(f"2026-01-15 {clock.format(row)},{row}\n" for row in range(rows))
    columns = yaml.safe_load(dataset_of(text, tmp_path).text())["attributes"]["columns"]
    assert [(column["name"], column["type"]) for column in columns] == [("at", "timestamp"), ("n", "integer")]


@pytest.mark.parametrize("name", ["f.csv", "f.jsonl"])
def test_a_column_may_be_named_count(name: str, tmp_path: Path) -> None:
    text = "id,count\n1,5\n2,6\n3,n/v\n" if name == "f.csv" else '{"id":1,"count":5}\n{"id":2,"count":"n/v"}\n'
    path = sample_file(text, tmp_path, name)
    draft = guess_dataset(look_at(path, type_of(path), ReadLimits()), name, "csv", "own")
    assert [one["name"] for one in yaml.safe_load(draft.text())["attributes"]["columns"]] == ["id", "count"]


@pytest.mark.parametrize("sign", "~^!:")
def test_a_sign_that_divides_every_line_is_a_delimiter_and_a_question(sign: str, tmp_path: Path) -> None:
    draft = dataset_of("id,name,n\n1,a,1.5\n2,b,2.5\n".replace(",", sign), tmp_path)
    attributes = yaml.safe_load(draft.text())["attributes"]
    assert [column["name"] for column in attributes["columns"]] == ["id", "name", "n"]
    assert attributes["reader"]["delimiter"] == sign
    assert f"does {sign!r} divide the cells?" in draft.questions


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("id#name#n\n1#a#1.5\n2#b#2.5\n", True),
        ("url\nhttp://a/b\nhttp://c/d\n", False),
        ("10:00:00\n10:00:01\n", True),
        ("level\n1.5\n2.5\n", False),
    ],
)
def test_one_column_is_a_question_where_its_first_line_has_signs_between_words(
    text: str,
    asked: bool,  # noqa: FBT001 - drawn
    tmp_path: Path,
) -> None:
    draft = dataset_of(text, tmp_path)
    assert len(yaml.safe_load(draft.text())["attributes"]["columns"]) == 1
    assert ("what divides the cells?" in draft.questions) == asked


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        ("id;город\n1;Москва\n2;Тверь\n", "koi8-r", "koi8-r"),
        ("id;город\n1;Москва\n2;Тверь\n", "cp1251", "cp1251"),
        ("id;ort\n1;Köln\n", "cp437", "cp850"),
        ("id;ort\n1;Zürich\n2;Würzburg\n", "cp850", "cp850"),
        ("id;ort\n1;“Köln” sagt\n2;l\u2019eau\n", "cp1252", "cp1252"),
        ("日付,値\n2026-01-01,東京\n2026-01-02,大阪\n", "shift_jis", "cp932"),
    ],
)
def test_the_encoding_of_a_short_file_is_right_and_a_question_where_others_fit(
    text: str, encoding: str, named: str, tmp_path: Path
) -> None:
    path = sample_file(text.encode(encoding), tmp_path)
    found = look_at(path, "csv", ReadLimits()).encoding
    assert found is not None
    assert (found.name, found.sure) == (named, named == "cp1252")


def test_a_delimiter_at_the_end_of_all_records_is_proposed(tmp_path: Path) -> None:
    attributes = yaml.safe_load(dataset_of("id;name;n\n1;a;2;\n2;b;3;\n", tmp_path).text())["attributes"]
    assert attributes["reader"]["trailing_delimiter"] is True
    assert [column["name"] for column in attributes["columns"]] == ["id", "name", "n"]


@pytest.mark.parametrize(
    ("document", "rows", "asked"),
    [
        ('{"status": "ok", "page": {"next": null, "data": [{"a": 1}, {"a": 2}]}, "codes": [1]}', "page.data", "a row?"),
        ('{"type": "FeatureCollection", "features": [{"properties": {"a": 1}}]}', "features", "a row?"),
        ('{"data": [{"a": 1}], "errors": [{"b": 1}]}', None, "are the objects in data or errors the rows?"),
        ('{"data": [{"a": 1}]}\n{"data": [{"a": 2}]}', None, ""),
    ],
)
def test_the_list_of_rows_in_a_json_document_is_proposed(
    document: str, rows: str | None, asked: str, tmp_path: Path
) -> None:
    (path := tmp_path / "sample.json").write_text(document)
    draft = guess_dataset(look_at(path, "json", ReadLimits()), path.name, "json", "own")
    assert (yaml.safe_load(draft.text())["attributes"]["reader"] or {}).get("rows") == rows
    assert asked in " ".join(draft.questions)


@pytest.mark.parametrize(
    "text",
    [
        "time,level,flow\n{first}time,level,flow\n{rest}",
        "Logger X\n\nChannel,1,2\ntime,level,flow\nUnits,C,%\n{first}{rest}",
    ],
)
def test_a_repeated_header_and_numbers_above_the_names_are_no_records(text: str, tmp_path: Path) -> None:
    lines = [f"2026-01-15 10:{minute}:00,{minute}.5,{minute}\n" for minute in range(10, 20)]
    draft = dataset_of(text.format(first=lines[0], rest="".join(lines[1:])), tmp_path)
    columns = yaml.safe_load(draft.text())["attributes"]["columns"]
    assert [(column["name"], column["type"]) for column in columns] == [
        ("time", "timestamp"),
        ("level", "number"),
        ("flow", "integer"),
    ]


def test_a_header_above_text_columns_is_a_question(tmp_path: Path) -> None:
    draft = dataset_of("a=1 b=2\na=3 b=4\na=5 b=6\n", tmp_path)
    assert any("does line 1 name the columns?" in question for question in draft.questions)


def test_further_sheets_with_numbers_and_cells_in_per_cent_are_questions(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for title in ("One", "Two"):
        sheet = book.create_sheet(title)
        sheet.append(["share", "n"])
        sheet.append([0.45, 1])
        sheet["A2"].number_format = "0%"
    book.save(path := tmp_path / "book.xlsx")
    draft = guess_dataset(look_at(path, "xlsx", ReadLimits()), path.name, "xlsx", "own")
    asked = " ".join(draft.questions)
    assert "others have numbers or times too" in asked
    assert asked.count("cells shown as 45 %") == 1


def test_broken_lines_below_the_names_do_not_cost_the_names(tmp_path: Path) -> None:
    draft = dataset_of('id,name,n\n1,"a \\"b\\"",2\n2,"d",3\n3,"e",4\n', tmp_path)
    columns = yaml.safe_load(draft.text())["attributes"]["columns"]
    assert [column["name"] for column in columns] == ["id", "name", "n"]


def test_columns_behind_the_last_name_are_left_out_as_readers_do(tmp_path: Path) -> None:
    draft = dataset_of("time;v;;\n2026-01-15T10:00:00Z;1,5;;\n2026-01-15T10:10:00Z;2,5;;\n", tmp_path)
    columns = yaml.safe_load(draft.text())["attributes"]["columns"]
    assert [column["name"] for column in columns] == ["time", "v"]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("id,name,n\n1,'a, b',2\n2,'c, d',3\n", "does line 1 name the columns? It has 3 cells, the records have 4"),
        ("country,2019,2020,2021\nDE,1.5,2.5,3.5\nFR,4.5,5.5,6.5\n", "years and dates all along the first row"),
    ],
)
def test_an_uncertain_header_is_a_question(text: str, asked: str, tmp_path: Path) -> None:
    assert asked in " ".join(dataset_of(text, tmp_path).questions)


@pytest.mark.parametrize(
    ("name", "unit", "doubt"),
    [
        ("Durchfluss [m³/s]", "m³/s", None),
        ("Durchfluss [m3/h]", "m3/h", None),
        ("Durchfluss m³/s", "m³/s", None),
        ("Durchfluss, m³/s", "m³/s", None),
        ("Durchfluss (l/min)", "L/min", None),
        ("U-Wert [W/(m²·K)]", "W/(m²·K)", None),
        ("Energie (MWh)", "MWh", None),
        ("Temperatur [°C]", "°C", None),
        ("Temp/°C", "°C", None),
        ("Feuchte (%)", "%", None),
        ("PM10 [µg/m³]", "µg/m³", None),
        ("Absatz [Stk/h]", None, "Stk/h"),
        ("Absatz Stk/s", None, "Stk/s"),
        ("Index [FNU]", None, "FNU"),
        ("Dauer (min)", None, "min"),
        ("Temp (max)", None, None),
        ("Kennzahl (links oben)", None, None),
    ],
)
def test_a_unit_in_a_name_is_taken_whole_or_doubted(name: str, unit: str | None, doubt: str | None) -> None:
    found = read_name(name)
    assert (found.unit, found.doubt) == (unit, doubt)


def test_a_dataset_asks_about_units_markers_and_a_missing_key(tmp_path: Path) -> None:
    text = "Ort;Güte;Absatz [Stk/h];Fluss [m³/s]\n" + "a;gut;1,5;2,5\na;-;1,5;2,5\na;mäßig;2,5;3,5\n" * 4
    draft = dataset_of(text, tmp_path)
    asked = " ".join(draft.questions)
    assert "is 'Stk/h' its unit?" in asked
    assert "does '-' mean that there is no value?" in asked
    assert "unit: m³/s" in draft.text()
    assert "# no key: none of the columns without gaps differs in all 12 records" in draft.text()


@pytest.mark.parametrize("has_time", [True, False])
def test_columns_of_a_dataset_are_typed_by_their_values_whatever_their_names(tmp_path: Path, has_time: bool) -> None:  # noqa: FBT001 - drawn
    expected = {
        **dict.fromkeys(("year", "month", "day", "date", "update_code"), "integer"),
        "time": "number",
        "born": "date",
        "stamp": "text",
        **({"happened": "timestamp"} if has_time else {}),
    }
    rows = (
        f"2026,1,{n + 1},{n},{90_000_000 + n},{n}.5,2026-01-{n + 1:02d},x{n}"
        + (f",2026-01-{n + 1:02d}T10:00:00Z" if has_time else "")
        for n in range(20)
    )
    draft = dataset_of("\n".join([",".join(expected), *rows]) + "\n", tmp_path)
    columns = yaml.safe_load(draft.text())["attributes"]["columns"]
    assert {column["name"]: column["type"] for column in columns} == expected
