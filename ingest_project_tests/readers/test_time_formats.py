"""Time formats: accepted text means what Python's strptime reads; any other is refused with its reason."""

from __future__ import annotations

import re
import string
from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.readers.casting import parse_timestamps
from ingest_project.readers.profile_parts import TimestampLayout
from ingest_project.readers.time_formats import time_format

DAYS = ["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%y", "%Y%m%d", "%d%m%y", "%d %b %Y", "%B %d, %Y", "%Y-%j", "%A, %d. %B %Y"]
DAYS += ["%y%j", "%-d/%-m/%Y", "%F", "%a %d-%b-%y", "%Y年%m月%d日", "%%%Y.%m.%d"]
CLOCKS = ["", "%H:%M", "%H%M%S", "%I:%M %p", "%I%p", "%H", "%H:%M:%S.%f", "%H:%M:%S,%f", "%-H:%M", "%T", "%-I.%M%p"]
CLOCKS += ["%H:%M:%S %z", "%H%M%S%f", "%H:%M%z", "%R UTC"]
FORMATS = [f"{day}{gap}{clock}" for day in DAYS for clock in CLOCKS for gap in (" ", "T", "") if clock or not gap]
Formats = st.sampled_from(FORMATS)
Moments = st.datetimes(datetime(1969, 1, 1), datetime(2068, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - in UTC


def moments(texts: list[str | None], *formats: str, **layout: object) -> list[datetime | None]:
    column = pl.Series(texts, dtype=pl.String)
    return parse_timestamps(column, TimestampLayout.model_validate({"formats": formats, **layout})).to_list()


def python_format(name: str) -> str:
    return (
        re.sub("%-([dmHIMSj])", r"%\1", name).replace("%F", "%Y-%m-%d").replace("%T", "%H:%M:%S").replace("%R", "%H:%M")
    )


def in_utc(text: str, name: str) -> datetime | None:
    """What strptime makes of a text, in UTC; None where it refuses it."""
    try:
        moment = datetime.strptime(text, python_format(name))  # noqa: DTZ007 - as the text says
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


@given(Formats, st.lists(Moments, min_size=1, max_size=8), st.integers(-14 * 60, 14 * 60))
@settings(deadline=None)
def test_every_format_reads_what_it_writes_as_strptime_does(name: str, written: list[datetime], minutes: int) -> None:
    zone = timezone(timedelta(minutes=minutes)) if "%z" in name else UTC
    texts = [moment.astimezone(zone).strftime(python_format(name)) for moment in written]
    expected = [in_utc(text, name) for text in texts]
    assert None not in expected
    assert moments([*texts], name) == expected


Mutations = st.sampled_from(
    [*string.digits, *" .:-+/ZzT", "AM", "pm", "\uff11", "٣", "\u017f", "\u00a0", "\n", "\0", "x", ""]
)


@given(Formats, Moments, st.lists(st.tuples(st.integers(0, 40), st.booleans(), Mutations), min_size=1, max_size=4))
@settings(deadline=None)
def test_no_text_is_accepted_that_strptime_rejects_or_reads_otherwise(
    name: str, moment: datetime, changes: list[tuple[int, bool, str]]
) -> None:
    text = moment.strftime(python_format(name))
    for place, replaces, what in changes:
        text = text[:place] + what + text[place + replaces :]
    (found,) = moments([text], name)
    assert found is None or found == in_utc(text, name), (text, name)


@given(st.text(st.sampled_from([*"0123456789-:.,+ TZtz", "\uff11", "\u2212"]), max_size=30))
@settings(deadline=None)
def test_iso_8601_and_unix_times_are_what_python_reads_or_nothing(text: str) -> None:
    (iso,) = moments([text], "iso8601")
    if iso is not None:
        plain = re.sub(r"(\.\d{6})\d+", r"\1", text.replace(",", ".").replace(" Z", "Z").replace(" z", "z"))
        there = datetime.fromisoformat(re.sub(r" (?=[+-])", "", plain.upper()))
        assert iso == (there.replace(tzinfo=UTC) if there.tzinfo is None else there)
    (unix,) = moments([text], "unix_seconds")
    if unix is not None:
        assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text)
        whole, _, fraction = text.lstrip("-").partition(".")
        microseconds = int(whole + fraction[:6].ljust(6, "0")) * (-1 if text[0] == "-" else 1)
        assert unix == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("%s", "%s is not supported; write unix_seconds"),
        ("%H:%M", "it has no year"),
        ("%d.%m. %H:%M", "it has no year"),
        ("%Y-%m %H:%M", "it has no day"),
        ("%Y-%d", "it has no month"),
        ("%d.%m.%Y %I:%M", "%I and %p say an hour only together"),
        ("%d.%m.%Y %H:%M %p", "%I and %p say an hour only together"),
        ("%d.%m.%Y %M:%S", "the minute says nothing without the hour"),
        ("%d.%m.%Y %H:%S", "the second says nothing without the minute"),
        ("%d.%m.%Y %H.%f", "the fraction says nothing without the second"),
        ("%Y-%m-%d %Y", "the year occurs twice"),
        ("%Y-%y-%m-%d", "the year occurs twice"),
        ("%Y-%j-%d", "the day of the year leaves nothing"),
        ("%Y-%m-%d %H:%M:%S%.3f", "%"),
        ("%Y-%m-%dT%H:%M:%S%.f", "write .%f"),
        ("%Y-%m-%d %Z", "the name of a zone is no offset"),
        ("%e.%m.%Y", "write %d"),
        ("%c", "a machine's language"),
        ("%G-W%V-%u", "weeks"),
        ("%_d.%m.%Y", "%_d is not supported"),
        ("%Y-%m-%d %", "a % without a directive"),
        ("yesterday", "no directive"),
        ("%Y-%m-%d" + "x" * 100, "longer than 100"),
    ],
)
def test_a_format_that_leaves_the_moment_open_is_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(ValueError, match="is not a time format") as refused:
        TimestampLayout.model_validate({"formats": [name]})
    assert repr(name) in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text", ["15.01.26 10:10", "15.1.0026 10:10", "15.01.02026 10:10", "15.01.2026 10:10x", "10:10"]
)
def test_a_year_has_four_digits_and_nothing_follows_the_shape(text: str) -> None:
    found = moments([text], "%d.%m.%Y %H:%M")
    assert found == [None] or found == [datetime(26, 1, 15, 10, 10, tzinfo=UTC)]
    assert (
        moments(["26-01-15 10:00:00", "15-01-26 10:00:00", "2024-1-15T10:30:45Z", "+2024-1-15T10:30:45Z"], "iso8601")
        == [None] * 4
    )


def test_the_hour_and_the_half_second_are_kept() -> None:
    assert moments(["5/1/2026 9:05", "15/11/2026 14:45"], "%-d/%-m/%Y %-H:%M") == [
        datetime(2026, 1, 5, 9, 5, tzinfo=UTC),
        datetime(2026, 11, 15, 14, 45, tzinfo=UTC),
    ]
    assert moments(["2026-01-15 12:05 am", "2026-01-15 02:05 PM"], "%Y-%m-%d %I:%M %p") == [
        datetime(2026, 1, 15, 0, 5, tzinfo=UTC),
        datetime(2026, 1, 15, 14, 5, tzinfo=UTC),
    ]
    # As Davis's stations write it.
    assert moments(["1/15/26 9:00a", "1/15/26 12:30a", "1/15/26 9:00p"], "%m/%d/%y %I:%M%p") == [
        datetime(2026, 1, 15, 9, 0, tzinfo=UTC),
        datetime(2026, 1, 15, 0, 30, tzinfo=UTC),
        datetime(2026, 1, 15, 21, 0, tzinfo=UTC),
    ]
    assert moments(["2026-01-15 10:00:00.5"], "%Y-%m-%d %H:%M:%S.%f") == [
        datetime(2026, 1, 15, 10, 0, 0, 500_000, tzinfo=UTC)
    ]
    assert moments(["2026-01-15 03"], "%Y-%m-%d %H") == [datetime(2026, 1, 15, 3, tzinfo=UTC)]


def test_two_digit_years_are_read_where_a_format_says_so_and_as_posix_counts_them() -> None:
    assert moments(["15.01.26", "15.01.68", "15.01.69", "15.01.026", "15.01.6x"], "%d.%m.%y") == [
        datetime(2026, 1, 15, tzinfo=UTC),
        datetime(2068, 1, 15, tzinfo=UTC),
        datetime(1969, 1, 15, tzinfo=UTC),
        None,
        None,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "2016-12-31T23:59:60Z",
        "2024-01-15T24:00:00Z",
        "-0044-03-15T10:00:00Z",
        "0000-01-01T00:00:00Z",
        "2024-01-15T10:30:45.1234567890Z",
        "2024-01-15T10:30:45+24:00",
        "2024-01-15T10:30:45+05:60",
        "2024-01-15T10:30:45.Z",
        "2024-01-15T10:30:45+\u0660\u0665",
        "2024-01-15T10:30:45.\u0665Z",
        "10:30:45",
    ],
)
def test_impossible_times_are_null(text: str) -> None:
    assert moments([text], "iso8601") == [None]


@pytest.mark.parametrize("offset", ["Z", "z", "+00:00", "-00:00", "+0000", "+00", " Z"])
def test_offsets_of_nothing_are_utc_whatever_the_zone_of_the_profile(offset: str) -> None:
    assert moments([f"2024-07-01T10:30:45{offset}"], "iso8601", zone="Europe/Berlin") == [
        datetime(2024, 7, 1, 10, 30, 45, tzinfo=UTC)
    ]
    assert moments(["2024-07-01 10:30 UTC"], "%Y-%m-%d %H:%M UTC", zone="Europe/Berlin") == [
        datetime(2024, 7, 1, 10, 30, tzinfo=UTC)
    ]


def test_digits_beyond_the_microsecond_are_dropped_and_never_rounded() -> None:
    expected = datetime(2024, 1, 15, 10, 30, 45, 999_999, tzinfo=UTC)
    assert moments(["2024-01-15T10:30:45.999999999Z"], "iso8601") == [expected]
    assert moments(["1705314645.999999999"], "unix_seconds") == [expected]
    assert moments(["1705314645999.999999"], "unix_milliseconds") == [expected]
    assert moments(["2024-01-15 10:30:45.999999999"], "%Y-%m-%d %H:%M:%S.%f") == [None]


@pytest.mark.parametrize("text", ["1e9", "0x5F", "1_705_314_645", "+1705314645", " 1705314645", "1705314645.", "inf"])
def test_unix_times_are_digits_and_no_other_number(text: str) -> None:
    assert moments([text], "unix_seconds") == [None]


@pytest.mark.parametrize("name", ["%d.%m.%Y %H:%M", "iso8601", "unix_seconds", "%B %d %Y %H:%M:%S.%f"])
def test_long_and_hostile_text_takes_linear_time(name: str) -> None:
    texts: list[str | None] = [
        "1" * 1_000_000,
        " " * 1_000_000,
        "2024-" * 200_000,
        "january " * 100_000,
        "\u0661" * 300_000,
    ]
    assert moments(texts, name) == [None] * 5


def test_an_hour_and_a_minute_as_one_number_need_no_leading_zeros() -> None:
    texts = ["2026 15 0", "2026 15 5", "2026 15 100", "2026 15 1230", "2026 15 0905", "2026 15 2400", "2026 15 160"]
    clocks = ["00:00", "00:05", "01:00", "12:30", "09:05"]
    expected = [datetime.fromisoformat(f"2026-01-15T{clock}:00+00:00") for clock in clocks]
    assert moments([*texts], "%Y %j %-H%M") == [*expected, None, None]
    midnight = datetime(2026, 1, 16, tzinfo=UTC)
    assert moments([*texts], "%Y %j %-H%M", hour_24="midnight") == [*expected, midnight, None]
    assert moments(["202601150905", "20260115905"], "%Y%m%d%-H%M") == [expected[-1], None]


def test_a_format_is_translated_once() -> None:
    assert time_format("%d.%m.%Y") is time_format("%d.%m.%Y")
