"""Times and numbers as people write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast as cast_type
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from ingest_project.readers.casting import (
    cast,
    clock_faults,
    moments_of_cells,
    moments_of_clock,
    parse_numbers,
    parse_timestamps,
)
from ingest_project.readers.cells import DATE, TEXT
from ingest_project.readers.profile_parts import NumberLayout, TimestampLayout
from ingest_project_tests.readers.samples import CANONICAL


def moment(text: str | None, **layout: object) -> datetime | None:
    moments = parse_timestamps(pl.Series([text], dtype=pl.String), TimestampLayout.model_validate(layout))
    return cast_type("datetime | None", moments.to_list()[0])


def number(text: str | None, **layout: object) -> float | None:
    numbers = parse_numbers(pl.Series([text], dtype=pl.String), NumberLayout.model_validate(layout))
    return cast_type("float | None", numbers.to_list()[0])


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Sydney", "Africa/Casablanca"])
def test_clocks_change_in_every_year_as_python_has_it(zone: str) -> None:
    clocks = [datetime(year, month, 15, 12) for year in (1970, 2099, 2100, 2104, 9999) for month in range(1, 13)]  # noqa: DTZ001
    found = moments_of_clock(pl.Series(clocks, dtype=pl.Datetime("us")), TimestampLayout(zone=zone))
    assert found.to_list() == [clock.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC) for clock in clocks]


@pytest.mark.parametrize(
    ("ambiguous", "twice"), [("reject", None), ("earliest", "2100-10-31T00:30Z"), ("latest", "2100-10-31T01:30Z")]
)
def test_times_that_clocks_skip_or_pass_twice_are_known_in_the_next_century(ambiguous: str, twice: str | None) -> None:
    layout = TimestampLayout(zone="Europe/Berlin", ambiguous=ambiguous, hour_24="midnight")
    texts = ["2100-03-28 02:30", "2100-10-31 02:30", "9999-12-31 24:00"]
    skipped, found, last = parse_timestamps(pl.Series(texts), layout)
    assert (skipped, found) == (None, twice and datetime.fromisoformat(twice))
    assert last == datetime(9999, 12, 31, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-15T10:30:45Z",
        "2024-01-15T10:30:45",
        "2024-01-15 10:30:45",
        "2024-01-15t10:30:45z",
        "2024-01-15 10:30:45 Z",
        "2024-01-15T11:30:45+01:00",
        "2024-01-15T11:30:45+0100",
        "2024-01-15T11:30:45+01",
        "2024-01-15 05:00:45-05:30",
        "2024-01-15T10:30:45.000",
        "2024-01-15T10:30:45,000000000Z",
    ],
)
def test_iso_8601_in_all_its_spellings_is_one_moment(text: str) -> None:
    assert moment(text) == datetime(2024, 1, 15, 10, 30, 45, tzinfo=UTC)


def test_fractions_are_kept_to_the_microsecond_and_minutes_are_enough() -> None:
    assert moment("2024-01-15T10:30:45.1234567Z") == datetime(2024, 1, 15, 10, 30, 45, 123456, tzinfo=UTC)
    assert moment("2024-01-15T10:30") == datetime(2024, 1, 15, 10, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "yesterday",
        "2024-01-15",
        "2024-02-30T10:30:45Z",
        "2024-01-15T25:30:45Z",
        "2024-01-15T10:61:45Z",
        "2024-01-15T10:30:45+25:00",
        "15.01.2024 10:30:45",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "2024-01-15T10:30:45Zulu",
        "\uff11\uff12\uff13\uff14-01-15T10:30:45Z",
        "=NOW()",
    ],
)
def test_a_value_that_is_not_a_time_becomes_null(text: str | None) -> None:
    assert moment(text) is None


def test_mixed_spellings_in_one_column_are_each_understood() -> None:
    texts = [
        "2024-01-15 10:30:45",
        "2024-01-15T10:30:45Z",
        None,
        "x",
        "2024-01-15T10:30:45",
        "2024-01-15T12:30:45+02:00",
    ] * 50
    expected = datetime(2024, 1, 15, 10, 30, 45, tzinfo=UTC)
    parsed = parse_timestamps(pl.Series(texts), TimestampLayout()).to_list()
    assert parsed == [expected, expected, None, None, expected, expected] * 50


def test_clock_times_are_in_the_zone_of_the_profile_and_offsets_win() -> None:
    assert moment("2024-07-01 12:00:00", zone="Europe/Berlin") == datetime(2024, 7, 1, 10, tzinfo=UTC)
    assert moment("2024-01-01 12:00:00.5", zone="Europe/Berlin") == datetime(2024, 1, 1, 11, 0, 0, 500000, tzinfo=UTC)
    assert moment("2024-07-01T12:00:00Z", zone="Europe/Berlin") == datetime(2024, 7, 1, 12, tzinfo=UTC)
    assert moment("2024-07-01T12:00:00-04:00", zone="Europe/Berlin") == datetime(2024, 7, 1, 16, tzinfo=UTC)


def test_an_hour_that_does_not_exist_is_null_and_one_that_occurs_twice_is_as_the_profile_says() -> None:
    assert moment("2024-03-31 02:30:00", zone="Europe/Berlin") is None
    assert moment("2024-10-27 02:30:00", zone="Europe/Berlin") is None
    assert moment("2024-10-27 02:30:00", zone="Europe/Berlin", ambiguous="earliest") == datetime(
        2024, 10, 27, 0, 30, tzinfo=UTC
    )
    assert moment("2024-10-27 02:30:00", zone="Europe/Berlin", ambiguous="latest") == datetime(
        2024, 10, 27, 1, 30, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ("text", "kind", "fault"),
    [
        ("2024-10-27 02:30:00", None, "ambiguous_time"),
        ("2024-03-31 02:30:00", None, "skipped_time"),
        ("2024-10-27T02:30:00", DATE, "ambiguous_time"),
        ("2024-03-31T02:30:00", DATE, "skipped_time"),
        ("2024-02-31 02:30:00", None, None),
        ("yesterday", None, None),
    ],
)
def test_a_reading_tells_a_time_that_clocks_pass_twice_or_skip_from_nonsense(
    text: str, kind: str | None, fault: str | None
) -> None:
    zone = TimestampLayout(zone="Europe/Berlin")
    texts = pl.Series(["2024-10-27T12:00:00", text, None])
    kinds = pl.Series([TEXT, kind, None]) if kind else None
    faults = clock_faults(texts, kinds, moments_of_cells(texts, kinds, zone), zone)
    assert (None if faults is None else faults.to_list()) == (fault and [None, fault, None])


def test_a_profile_names_other_formats_and_the_first_that_fits_wins() -> None:
    formats = ["%d.%m.%Y %H:%M", "%d.%m.%Y", "iso8601"]
    assert moment("05.01.2024 10:30", formats=formats) == datetime(2024, 1, 5, 10, 30, tzinfo=UTC)
    assert moment("05.01.2024", formats=formats) == datetime(2024, 1, 5, tzinfo=UTC)
    assert moment("2024-01-05T10:30:00Z", formats=formats) == datetime(2024, 1, 5, 10, 30, tzinfo=UTC)
    assert moment("05/Jan/2024 10:30:00 +0200", formats=["%d/%b/%Y %H:%M:%S %z"]) == datetime(
        2024, 1, 5, 8, 30, tzinfo=UTC
    )


def test_unix_times_are_moments_when_the_profile_says_so() -> None:
    assert moment("1705314645", formats=["unix_seconds"]) == datetime(2024, 1, 15, 10, 30, 45, tzinfo=UTC)
    assert moment("1705314645.25", formats=["unix_seconds"]) == datetime(2024, 1, 15, 10, 30, 45, 250000, tzinfo=UTC)
    assert moment("1705314645000", formats=["unix_milliseconds"]) == datetime(2024, 1, 15, 10, 30, 45, tzinfo=UTC)
    assert moment("1e30", formats=["unix_seconds"]) is None
    assert moment("nan", formats=["unix_seconds"]) is None
    assert moment("9e12", formats=["unix_seconds"]) is None


@pytest.mark.parametrize(
    ("text", "expected"), [("21.5", 21.5), ("-0.5", -0.5), ("+3", 3), (".5", 0.5), ("1e3", 1000), ("007", 7)]
)
def test_number_cells_are_read_as_numbers(text: str, expected: float) -> None:
    assert number(text) == expected


@pytest.mark.parametrize("text", [None, "", "abc", "1,5", "1_000", "0x10", "1 000", "=1+1", "12 C", "١٢", "true"])
def test_a_value_that_is_not_a_number_becomes_null(text: str | None) -> None:
    assert number(text) is None


def test_decimal_commas_and_thousands_are_read_as_the_profile_says() -> None:
    assert number("1,5", decimal=",") == 1.5
    assert number("-1,5e3", decimal=",") == -1500
    assert number("1.234", decimal=",") is None
    assert number("1.234.567,5", decimal=",", thousands=".") == 1234567.5
    assert number("1234567,5", decimal=",", thousands=".") == 1234567.5
    assert number("1.23,5", decimal=",", thousands=".") is None
    assert number("1,234.5", thousands=",") == 1234.5
    assert number("12'345.5", thousands="'") == 12345.5
    assert number("-", decimal=",") is None


def test_infinities_are_distinguished_from_text_that_is_no_number() -> None:
    assert number("inf") == float("inf")
    assert number("-Infinity") == float("-inf")
    assert number("1e999") == float("inf")
    assert str(number("NaN")) == "nan"


def test_casting_keeps_the_text_and_the_columns_it_does_not_know() -> None:
    rows = pl.DataFrame(
        {
            "file_index": [7],
            "line_number": [2],
            "timestamp": ["x"],
            "device_id": ["d"],
            "sensor_type": ["t"],
            "value": ["1"],
            "unit": [None],
        },
        schema_overrides={"unit": pl.String},
    )
    typed = cast(rows, CANONICAL)
    assert typed.row(0, named=True) == {
        "file_index": 7,
        "line_number": 2,
        "timestamp": None,
        "device_id": "d",
        "sensor_type": "t",
        "value": 1.0,
        "unit": None,
        "timestamp_text": "x",
        "value_text": "1",
    }


def test_no_rows_at_all_are_cast_too() -> None:
    rows = pl.DataFrame(schema=dict.fromkeys(("timestamp", "value"), pl.String))
    assert cast(rows, CANONICAL).schema["timestamp"] == pl.Datetime("us", "UTC")
