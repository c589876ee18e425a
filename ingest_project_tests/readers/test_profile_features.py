"""Features of reader profiles for real loggers, each on a small file of its kind."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from ingest_project.core.errors import FileRejectedError, SettingsError
from ingest_project.readers.casting import cast
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.profiles import ReaderProfile, read_profile
from ingest_project.readers.reading import read_chunks
from ingest_project_tests.readers.samples import Outcome, read
from ingest_project_tests.readers.test_excel import xlsx

WIDE = "columns: {time: timestamp}\nconstants: {device_id: d}\n"
LONG = "columns: {time: timestamp, value: value}\nconstants: {device_id: d, sensor_type: temperature}\n"


def profile_of(folder: Path, text: str) -> ReaderProfile:
    path = folder / "own.yaml"
    path.write_text(f"name: own\n{text}", encoding="utf-8")
    return read_profile(path)


def read_as(folder: Path, profile: str, text: str, chunk_bytes: int = 1024**2, name: str = "a.csv") -> Outcome:
    path = folder / name.rpartition("/")[2]
    path.write_text(text, encoding="utf-8")
    limits = ReadLimits(chunk_bytes=chunk_bytes)
    return read(path, profile_of(folder, profile), limits=limits, file_name=name)


def values(folder: Path, profile: str, text: str) -> list[float | None]:
    """The numbers of a file with the columns time and value, whose rows all have the same time."""
    outcome = read_as(folder, LONG + profile, text)
    return cast(outcome.rows, profile_of(folder, LONG + profile))["value"].to_list()


def moments(folder: Path, profile: str, text: str) -> list[datetime | None]:
    outcome = read_as(folder, profile, text)
    return cast(outcome.rows, profile_of(folder, profile))["timestamp"].to_list()


TIMED = "columns: {v: value}\nconstants: {device_id: d, sensor_type: t}\n"


@pytest.mark.parametrize(
    ("profile", "text", "expected"),
    [
        (
            'joined: {timestamp: [d, t]}\ntimestamps: {formats: ["%d/%m/%Y %H.%M.%S"]}',
            "d,t,v\n10/03/2004,18.00.00,1\n",
            18,
        ),
        (
            'joined: {timestamp: [year, month, day, hour]}\ntimestamps: {formats: ["%Y %m %d %H"]}',
            "No,year,month,day,hour,v\n1,2004,3,10,18,1\n",
            18,
        ),
        (
            'joined: {timestamp: [y, doy, hm]}\ntimestamps: {formats: ["%Y %j %H%M"]}',
            "y,doy,hm,v\n2004,70,1800,1\n",
            18,
        ),
        ('joined: {timestamp: [d, h]}\ntimestamps: {formats: ["%Y%m%d %H"]}', "d,h,v\n20040310,18,1\n", 18),
    ],
)
def test_a_time_may_stand_in_several_columns(tmp_path: Path, profile: str, text: str, expected: int) -> None:
    assert moments(tmp_path, TIMED + profile, text) == [datetime(2004, 3, 10, expected, tzinfo=UTC)]


def test_a_row_that_lacks_a_part_of_its_time_has_none(tmp_path: Path) -> None:
    profile = TIMED + 'joined: {timestamp: [d, t]}\ntimestamps: {formats: ["%Y-%m-%d %H:%M"]}'
    assert moments(tmp_path, profile, "d,t,v\n2004-03-10,,1\n,10:00,1\n") == [None, None]


def test_a_date_cell_and_a_time_cell_of_a_workbook_are_one_time(tmp_path: Path) -> None:
    day = datetime(2004, 3, 10)  # noqa: DTZ001 - cells of a workbook have no zone
    path = xlsx(tmp_path, [["d", "t", "v"], [day, day.replace(hour=18).time(), 1]])
    profile = profile_of(tmp_path, TIMED + "joined: {timestamp: [d, t]}\ntimestamps: {zone: +01:00}")
    (found,) = cast(read(path, profile, "xlsx").rows, profile)["timestamp"].to_list()
    assert found == datetime(2004, 3, 10, 17, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "hour"),
    [("UTC+01:00", 17), ("+01:00", 17), ("GMT-5", 23), ("-05:30", 23.5), ("Etc/GMT-1", 17), ("UTC", 18)],
)
def test_a_fixed_offset_has_the_sign_that_people_expect(tmp_path: Path, zone: str, hour: float) -> None:
    profile = TIMED.replace("{v", "{t: timestamp, v") + f'timestamps: {{zone: "{zone}"}}'
    (found,) = moments(tmp_path, profile, "t,v\n2004-03-10T18:00:00,1\n")
    assert found == datetime(2004, 3, 10, int(hour), int(hour % 1 * 60), tzinfo=UTC)


@pytest.mark.parametrize("written", ["%Y-%m-%d %H:%M", "iso8601", "%Y-%m-%d %H:%M:%S.%f"])
def test_24_o_clock_is_the_next_midnight_where_that_is_declared(tmp_path: Path, written: str) -> None:
    tail = ":00.0" if "%f" in written else ""
    text = (
        f"t,v\n2004-12-31 24:00{tail},1\n2004-12-31 23:00{tail},1\n2004-12-31 24:01{tail},1\n2004-12-31 25:00{tail},1\n"
    )
    declared = TIMED.replace("{v", "{t: timestamp, v") + f'timestamps: {{formats: ["{written}"], hour_24: HOW}}'
    eleven = datetime(2004, 12, 31, 23, tzinfo=UTC)
    assert moments(tmp_path, declared.replace("HOW", "midnight"), text) == [
        datetime(2005, 1, 1, tzinfo=UTC),
        eleven,
        None,
        None,
    ]
    assert moments(tmp_path, declared.replace("HOW", "reject"), text) == [None, eleven, None, None]


@pytest.mark.parametrize("chunk_bytes", [16, 40, 1024**2])
def test_units_comments_and_footers_are_left_out_and_lines_keep_their_numbers(tmp_path: Path, chunk_bytes: int) -> None:
    profile = LONG + 'comment: "#"\nskip_below_header: 2\nfooter: {rows: 2}\nskip_lines: 1'
    text = (
        'any "text\n# a comment, with "one quote\ntime,value\nTS,C\n# one, more\n,Avg\n2024-01-01T00:00:00Z,1\n'
        '#2024-01-01T00:00:00Z,2\n"2024-01-01T00:01:00Z",3\nbad\n\n2024-01-01T00:02:00Z,4\ncount,3\nend of file\n\n'
    )
    outcome = read_as(tmp_path, profile, text, chunk_bytes)
    assert outcome.rows.select("line_number", "value").rows() == [(7, "1"), (9, "3"), (12, "4")]
    assert outcome.malformed == [(10, "bad", "too_few_cells")]


def test_a_line_in_a_quoted_cell_is_no_comment(tmp_path: Path) -> None:
    text = 'time,value,note\na,1,"x\n#y"\n#b,2,"\nc,3,"z\n#\n"\n#d\n'
    outcome = read_as(tmp_path, LONG + 'comment: "#"', text)
    assert outcome.rows.select("line_number", "value").rows() == [(2, "1"), (5, "3")]
    assert outcome.malformed == []


@pytest.mark.parametrize("chunk_bytes", [24, 1024**2])
@pytest.mark.parametrize("footer", ["Total,9", "Total", '"Total",x,y,z'])
def test_a_footer_may_begin_where_a_cell_says_so(tmp_path: Path, footer: str, chunk_bytes: int) -> None:
    text = f"time,value\na,1\nb,2\n{footer}\nc,3\n"
    outcome = read_as(tmp_path, LONG + "footer: {begins: ^Total}", text, chunk_bytes)
    assert outcome.rows["value"].to_list() == ["1", "2"]
    assert outcome.malformed == []


def test_rows_are_left_out_by_the_text_of_a_column(tmp_path: Path) -> None:
    profile = LONG + "skip_rows: [{column: flag, equals: [M, 9]}, {column: '#1', matches: '^(?i)avg'}]"
    text = "time,value,flag\na,1,M\nb,2,ok\nAvg,3,\nc,4,9\nd,5,\n"
    assert read_as(tmp_path, profile, text).rows["value"].to_list() == ["2", "5"]
    with pytest.raises(FileRejectedError, match="no column 'flag'"):
        read_as(tmp_path, profile, "time,value\na,1\n")


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("scale: 0.1", "3\n21\n-9999\n", [0.3, 2.1, None]),
        ("scale: 0.1", "0.7\n1e-3\n", [0.07, 0.0001]),
        ("scale: 0.1, offset: -40", "653\n", [25.3]),
        ("unit: degF, to: °C", "50\n71.6\n-459.67\n", [10.0, 22.0, -273.15]),
        ("unit: inHg, to: hPa", "29.92\n", [pytest.approx(1013.2074811900271)]),
        ("scale: 0.1, unit: km/h, to: m/s", "360\n", [10.0]),
        ("words: {on: 1, off: 0, true: 1}", "ON\noff\nTrue\n7\nmaybe\n", [1.0, 0.0, 1.0, 7.0, None]),
        ("number_in_text: true", "12.5 °C\n-0039.1\nabout 7%\n1e3x\n", [12.5, -39.1, 7.0, 1000.0]),
        ("extract: '^([^|]+)[|]', scale: 0.1", "+0123|1\n+9999|9\n-0039|1\n", [12.3, 999.9, -3.9]),
        ("json_path: 'a.b[1]'", '"{""a"": {""b"": [1, 2.5]}}"\n{}\n', [2.5, None]),
    ],
)
def test_cells_are_converted_to_numbers(tmp_path: Path, rule: str, text: str, expected: list[float | None]) -> None:
    rows = "".join(f"2024-01-01T00:00:00Z,{line}\n" for line in text.splitlines())
    assert values(tmp_path, f"nulls: ['', '-9999']\ncells: {{value: {{{rule}}}}}", "time,value\n" + rows) == expected


@pytest.mark.parametrize(
    ("rule", "cell", "reason"),
    [
        ("number_in_text: true", "12 to 13", "value_not_one_number"),
        ("number_in_text: true", "1.2.3", "value_not_one_number"),
        ("number_in_text: true", "none", "value_not_one_number"),
        ("extract: '^([0-9]+) C$'", "71.6", "value_not_matched"),
        ("words: {on: 1}, others: reject", "1", "value_not_mapped"),
        ("json_path: a", "7 {", "value_not_json"),
    ],
)
def test_a_cell_that_a_conversion_cannot_read_rejects_its_row(
    tmp_path: Path, rule: str, cell: str, reason: str
) -> None:
    text = f"time,value\n2024-01-01T00:00:00Z,{cell}\n"
    outcome = read_as(tmp_path, LONG + f"cells: {{value: {{{rule}}}}}", text)
    assert outcome.rows.height == 0
    assert outcome.malformed == [(2, f"2024-01-01T00:00:00Z,{cell}", reason)]


def test_a_quantity_that_cannot_be_read_leaves_the_others_of_its_line(tmp_path: Path) -> None:
    profile = WIDE + (
        "quantities:\n  t: {sensor_type: temperature, unit: degF, to: °C, number_in_text: true}\n"
        "  h: {sensor_type: humidity, unit: '%'}\n"
    )
    outcome = read_as(tmp_path, profile, "time,t,h\na,50 F,1\nb,1 2,2\nc,,3\n")
    assert outcome.rows.select("line_number", "sensor_type", "value", "unit").rows() == [
        (2, "temperature", "10", "°C"),
        (2, "humidity", "1", "%"),
        (3, "humidity", "2", "%"),
        (4, "humidity", "3", "%"),
    ]
    assert outcome.malformed == [(3, "b,1 2,2", "value_not_one_number")]


def test_decimal_commas_are_kept_when_numbers_are_scaled(tmp_path: Path) -> None:
    profile = 'delimiter: ";"\nnumbers: {decimal: ",", thousands: "."}\n'
    text = "time;value\na;1.234,5\nb;-0,3\n"
    assert values(tmp_path, profile + "cells: {value: {scale: 0.1}}", text) == [123.45, -0.03]
    assert values(tmp_path, profile + "cells: {value: {number_in_text: true}}", text) == [1234.5, -0.3]


def test_number_cells_of_a_workbook_are_converted_as_numbers(tmp_path: Path) -> None:
    settings = LONG + 'numbers: {decimal: ","}\ncells: {value: {unit: degF, to: degC}}'
    path = xlsx(tmp_path, [["time", "value"], ["a", 71.6], ["b", "71,6"], ["c", "cold"], ["d", True]])
    profile = profile_of(tmp_path, settings)
    rows = cast(read(path, profile, "xlsx").rows, profile)
    assert rows.select("value", "value_text").rows() == [(22.0, "22"), (22.0, "22"), (None, "cold"), (None, "true")]


def test_columns_are_named_by_number_occurrence_or_expression(tmp_path: Path) -> None:
    profile = (
        "columns: {'#1': timestamp}\nignored: ['/^(?i)flag/', '#6']\nconstants: {device_id: d}\nquantities:\n"
        "  Temp: {sensor_type: a}\n  'Temp [2]': {sensor_type: b}\n  '/^Hum.*[%]/': {sensor_type: c}\n"
    )
    text = "Zeit,Temp,Flag 1,temp,Humidity (%),x,FLAG 2\nt,1,,2,3,9,\n"
    with pytest.raises(FileRejectedError, match=r"called 'Temp': see `Temp \[2\]`"):
        read_as(tmp_path, profile, text)
    outcome = read_as(tmp_path, profile.replace("  Temp:", "  'Temp [1]':"), text)
    assert outcome.rows.select("timestamp", "sensor_type", "value").rows() == [
        ("t", "a", "1"),
        ("t", "b", "2"),
        ("t", "c", "3"),
    ]
    assert outcome.chunks[0].unknown_columns == ()
    with pytest.raises(FileRejectedError, match=r"no column '/\^Hum"):
        read_as(tmp_path, profile.replace("  Temp:", "  'Temp [1]':"), text.replace("Humidity", "H"))


def test_a_column_named_like_a_selector_takes_precedence(tmp_path: Path) -> None:
    outcome = read_as(
        tmp_path, LONG.replace("time:", "'#2':").replace("value:", "'x [2]':", 1), "x [2],#2,x,x\n1,t,2,3\n"
    )
    assert outcome.rows.select("timestamp", "value").rows() == [("t", "1")]


def test_a_header_of_two_lines_is_joined(tmp_path: Path) -> None:
    profile = "header_rows: 2\nheader_separator: ' / '\ncolumns: {time: timestamp, Air / Temp: value}\n"
    profile += "constants: {device_id: d, sensor_type: t}"
    text = 'time,Air,Soil\n"",Temp,Temp\nt,1,2\n'
    outcome = read_as(tmp_path, profile, text, chunk_bytes=8)
    assert outcome.rows.select("line_number", "value").rows() == [(3, "1")]
    assert outcome.chunks[0].unknown_columns == ("Soil / Temp",)
    path = xlsx(tmp_path, [["time", "Air", "Soil"], [None, "Temp", "Temp"], ["t", 1, 2]])
    assert read(path, profile_of(tmp_path, profile), "xlsx").rows["value"].to_list() == ["1"]


@pytest.mark.parametrize("chunk_bytes", [16, 1024**2])
def test_columns_between_runs_of_white_space(tmp_path: Path, chunk_bytes: int) -> None:
    profile = LONG + 'delimiter: whitespace\ncomment: "%"\nskip_below_header: 1'
    text = "% NDBC\n time   value \t flag\nyr  degC  -\n\n  a \t 1.5   x\nb  2  \nc NA x\r\nd 4 x y\n"
    outcome = read_as(tmp_path, profile, text, chunk_bytes)
    assert outcome.rows.select("line_number", "timestamp", "value").rows() == [(5, "a", "1.5"), (7, "c", None)]
    assert outcome.malformed == [(6, "b  2  ", "too_few_cells"), (8, "d 4 x y", "too_many_cells")]
    assert [
        text.strip() for chunk in outcome.chunks for text in chunk.raw_text(chunk.rows["line_number"].to_list())
    ] == ["a \t 1.5   x", "c NA x"]


def test_cells_at_fixed_positions_of_a_line(tmp_path: Path) -> None:
    profile = "header: false\nfixed_width: {id: 1-4, day: 5-12, value: 14-18}\nnulls: ['', '-9999']\n"
    profile += "columns: {id: device_id, day: timestamp, value: value}\nconstants: {sensor_type: t}"
    text = "ST0120240102   1.5\nST0220240103 -9999  \nST0320240104\nST0420240105 12345 x\nST\x00520240105\n"
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    outcome = read(path, profile_of(tmp_path, profile), limits=ReadLimits())
    assert outcome.rows.select("line_number", "device_id", "timestamp", "value").rows() == [
        (1, "ST01", "20240102", "1.5"),
        (2, "ST02", "20240103", None),
        (3, "ST03", "20240104", None),
    ]
    assert [(line, reason) for line, _, reason in outcome.malformed] == [(4, "too_many_cells"), (5, "nul_byte")]


def test_a_line_over_the_limit_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("time value\na 1\n" + "x" * 5_000 + " 2\nb 3\n", encoding="utf-8")
    profile = profile_of(tmp_path, LONG + "delimiter: whitespace")
    outcome = read(path, profile, limits=ReadLimits(max_row_bytes=1_000, chunk_bytes=512))
    assert outcome.rows["line_number"].to_list() == [2, 4]
    assert [(line, reason) for line, _, reason in outcome.malformed] == [(3, "row_too_long")]


def test_the_device_comes_from_the_folder_or_from_a_line_above_the_header(tmp_path: Path) -> None:
    columns = "columns: {time: timestamp, value: value}\nconstants: {sensor_type: t}\n"
    folder = columns + "from_path: {device_id: '/([^/]+)/[^/]+$'}"
    assert read_as(tmp_path, folder, "time,value\nt,1\n", name="in/hall-3/a.csv").rows["device_id"].to_list() == [
        "hall-3"
    ]
    above = columns + "skip_lines: 2\nfrom_lines_above: {device_id: '(?m)^Serial: *([0-9]+)'}"
    text = "Logger\nSerial: 4711 (new)\ntime,value\nt,1\n"
    assert read_as(tmp_path, above, text).rows["device_id"].to_list() == ["4711"]
    with pytest.raises(FileRejectedError, match=r"lines above the header, .* not contain its device_id") as refused:
        read_as(tmp_path, above, text.replace("Serial", "Name"))
    assert refused.value.rule == "missing_constant"
    path = xlsx(tmp_path, [["Logger"], ["Serial: 4711"], ["time", "value"], ["t", 1]])
    assert read(path, profile_of(tmp_path, above), "xlsx").rows["device_id"].to_list() == ["4711"]


def test_all_sheets_of_a_workbook_are_read_and_name_their_device(tmp_path: Path) -> None:
    import openpyxl

    workbook = openpyxl.Workbook()
    for name, number in (("Log A", 1), ("Log B", 2), ("Notes", 9)):
        sheet = workbook.create_sheet(name)
        sheet.append(["time", "value"] if number < 9 else ["x"])
        sheet.append(["t", number])
    path = tmp_path / "a.xlsx"
    workbook.save(path)
    settings = "columns: {time: timestamp, value: value}\nconstants: {sensor_type: t}\n"
    settings += "from_sheet_name: {device_id: '^Log (.+)$'}\nsheet: "
    profile = profile_of(tmp_path, settings + "'Log *'")
    outcome = read(path, profile, "xlsx")
    assert outcome.rows.select("line_number", "device_id", "value").rows() == [(2, "A", "1"), (10_000_002, "B", "2")]
    assert outcome.chunks[1].raw_text([10_000_002]) == ['{"time":"t","value":"2"}']
    with pytest.raises(FileRejectedError, match="Sheet 'Notes': "):
        read(path, profile_of(tmp_path, settings + "'*'"), "xlsx")


def test_sensor_types_are_mapped_and_the_rest_is_kept_or_rejected(tmp_path: Path) -> None:
    profile = (
        "columns: {time: timestamp, value: value, type: sensor_type}\nconstants: {device_id: d}\n"
        "cells: {sensor_type: {words: {T_air: temperature, RH: humidity}, others: %s}}"
    )
    text = "time,type,value\na,t_AIR,1\nb,Wind,2\n"
    kept = read_as(tmp_path, profile % "keep", text)
    assert kept.rows["sensor_type"].to_list() == ["temperature", "Wind"]
    rejected = read_as(tmp_path, profile % "reject", text)
    assert rejected.rows["sensor_type"].to_list() == ["temperature"]
    assert rejected.malformed == [(3, "b,Wind,2", "sensor_type_not_mapped")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (LONG + "cells: {value: {unit: degX, to: degC}}", "line 4: .*'degX' is no unit, did you mean"),
        (LONG + "cells: {value: {unit: degF, to: hPa}}", "line 4: .*they measure different things"),
        (LONG + "cells: {value: {unit: dBm, to: mW}}", "line 4: .*by a factor and an offset"),
        (LONG + "cells: {value: {unit: 9**9**9, to: m}}", "line 4: .*is no unit"),
        (LONG + "cells: {value: {to: m}}", "line 4: .*needs the unit to convert from"),
        (LONG + "cells: {value: {scale: 0}}", "line 4: .*every number would be the same"),
        (LONG + "cells: {value: {others: reject}}", "line 4: .*would reject every row"),
        (LONG + "cells: {device_id: {scale: 2}}", "line 4: .*device_id comes from no column of the file"),
        (LONG + "cells: {unit: {scale: 2}}", "line 4: .*unit comes from no column of the file"),
        (LONG.replace("{time", "{u: unit, time") + "cells: {unit: {scale: 2}}", "line 4: .*unit is text"),
        (LONG + "cells: {value: {extract: '(a)\\1'}}", "line 4: .*backreferences are not supported"),
        (LONG + "cells: {value: {json_path: '$..a'}}", "line 4: .*write the path like"),
        (LONG + "skip_rows: [{column: a}]", "line 4: .*either equals or matches"),
        (LONG + "skip_rows: [{column: a, matches: '('}]", "line 4: .*not a regular expression"),
        (LONG + "timestamps:\n  zone: +10:00", "line 5: .*in quotes"),
        (LONG + "timestamps: {zone: UTC+15}", "further from Greenwich"),
        (LONG + 'timestamps: {formats: ["%H:%M"]}', "line 4: .*it has no year"),
        (LONG + 'timestamps: {formats: ["%y-%Y-%m-%d"]}', "line 4: .*year occurs twice"),
        (LONG + "delimiter: ';'\nfixed_width: {a: 1-2}", "has no delimiter"),
        (LONG + "fixed_width: {a: 2-1}", "the last character is before the first"),
        (LONG + "from_lines_above: {unit: '(.)'}", "no line is above the header"),
        (LONG + "columns: {a: value}", "a name occurs twice in line 4"),
        (LONG.replace("value: value", "value: value, Wert: value"), "line 2: .*value comes from more than one source"),
        (LONG.replace("time: t", "'/(/': t"), "line 2: .*not a regular expression"),
        (LONG.replace("time: t", "time: T"), "Timestamp is no column of the dataset, did you mean timestamp"),
    ],
)
def test_a_mistake_that_needs_no_file_is_found_at_load(tmp_path: Path, settings: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        profile_of(tmp_path, settings)


def test_yaml_words_are_read_as_text(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, LONG + "cells: {value: {words: {on: 1, No: 0, 0x10: 16, 1.50: x}}}")
    assert profile.cells["value"].words == {"on": "1", "No": "0", "0x10": "16", "1.50": "x"}


def test_conversions_of_a_million_cells_take_seconds(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("time,value\n" + "a,aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 50 F\n" * 200_000, encoding="utf-8")
    rule = "number_in_text: true, extract: '^(?:a|aa)+ (.*)$', unit: degF, to: degC"
    profile = profile_of(tmp_path, LONG + f"cells: {{value: {{{rule}}}}}")
    count = sum(
        chunk.rows.filter(pl.col("value") == "10").height for chunk in read_chunks(path, "csv", profile, ReadLimits())
    )
    assert count == 200_000
