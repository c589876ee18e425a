"""Time formats: the patterns of Python's strptime, as strict regular expressions over whole columns.

Polars' own parser is chrono's, which silently accepts two digits as a year, drops an hour or reads `.5` as nanoseconds.
So a format is translated here: its shape in ASCII digits must match the whole text, and the moment is composed of the
parts that it names. A format that strptime would read differently is rejected when the profile is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

import polars as pl

MONTHS: tuple[str, ...] = ("january", "february", "march", "april", "may", "june", "july", "august", "september")
MONTHS += ("october", "november", "december")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
Tokens = list[tuple[str | None, ...]]

MAX_FORMAT_LENGTH = 100
# POSIX, as strptime has it: two digits are the years 1969 to 2068.
FIRST_SHORT_YEAR = 69
# Unambiguous short forms of several directives, which strftime and C have and strptime lacks.
SHORT_FOR = {"%F": "%Y-%m-%d", "%T": "%H:%M:%S", "%R": "%H:%M"}
# Without the leading zero, as C's strftime writes; both are read.
SHORT_FOR |= {f"%-{letter}": f"%{letter}" for letter in "dmHIMSj"}
REMEDIES = {
    "s": "write unix_seconds instead",
    "Z": "the name of a zone is no offset; write it as text and name the zone next to the formats",
    "e": "write %d, which also reads one digit",
    "k": "write %H, which also reads one digit",
    "l": "write %I, which also reads one digit",
    ".f": "write .%f",
    "D": "write %m/%d/%y",
    "P": "write %p",
    "h": "write %b",
    "r": "write %I:%M:%S %p",
    "x": "what it means depends on a machine's language",
    "X": "what it means depends on a machine's language",
    "c": "what it means depends on a machine's language",
} | dict.fromkeys("UWGVuwCg", "weeks and centuries are not read; write the date in full")
# One number of hour and minute, as data loggers write it: 5 is 00:05, 100 is 01:00.
HOUR_MINUTE = "-H%M"
TOKEN = re.compile(rf"%(:z|\.f|{HOUR_MINUTE}|[-_0^#]*[A-Za-z%])|(\s+)|([^%\s]+)|(%)")
ENDS_IN_UTC = re.compile(r"(?:^|[^A-Za-z])(?:Z|UTC|GMT)$")
OFFSET = r"(?P<offset>[Zz]|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?)"

SAMPLES = (
    datetime(2026, 1, 15, 9, 5, 7, 500_000, UTC),
    datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC),
    datetime(1999, 12, 31, tzinfo=UTC),
    datetime(2000, 1, 1, 12, 0, 0, 1, UTC),
    datetime(2068, 11, 30, 0, 30, 9, 250_000, UTC),
    datetime(1970, 10, 10, 12, 10, 10, 10, UTC),
)
SAMPLE_OFFSET = "+05:30"


class Directive(NamedTuple):
    """Meaning of one directive.

    Args:
        part: part of a moment, e.g. `month`.
        pattern: its text.
        next_to_digits: its pattern if a digit may follow or precede it; None for one that is no number.
    """

    part: str
    pattern: str
    next_to_digits: str | None = None


@dataclass(frozen=True)
class TimeFormat:
    """Shape of the whole text of a time.

    Args:
        pattern: a regular expression with a group for each part of a moment.
        parts: the names of those groups.
        is_utc: True if the format itself ends in UTC, by a literal Z, UTC or GMT at its end.
        hour_24: True if 24:00 is the midnight at the end of its day.
    """

    pattern: str
    parts: frozenset[str]
    is_utc: bool = False
    hour_24: bool = False


def _any_case(words: tuple[str, ...]) -> str:
    """Return a pattern of ASCII letters alone: `(?i)` would also match a long s or a Kelvin sign."""
    return "|".join("".join(f"[{letter.upper()}{letter}]" for letter in word) for word in words)


DAY = Directive("day", "3[01]|[12][0-9]|0?[1-9]", "3[01]|[12][0-9]|0[1-9]")
DIRECTIVES = {
    "Y": Directive("year", "[0-9]{4}", "[0-9]{4}"),
    "y": Directive("short_year", "[0-9]{2}", "[0-9]{2}"),
    "m": Directive("month", "1[0-2]|0?[1-9]", "1[0-2]|0[1-9]"),
    "b": Directive("month_name", _any_case(tuple(name[:3] for name in MONTHS))),
    "B": Directive("month_name", _any_case(MONTHS)),
    "d": DAY,
    "j": Directive("day_of_year", "[0-9]{1,3}", "[0-9]{3}"),
    "a": Directive("weekday", _any_case(tuple(name[:3] for name in WEEKDAYS))),
    "A": Directive("weekday", _any_case(WEEKDAYS)),
    "H": Directive("hour", "2[0-3]|[01]?[0-9]", "2[0-3]|[01][0-9]"),
    "I": Directive("half_day_hour", "1[0-2]|0?[1-9]", "1[0-2]|0[1-9]"),
    # strptime reads two letters; Davis's stations write one.
    "p": Directive("half", "[AaPp][Mm]?"),
    HOUR_MINUTE: Directive("hour_minute", "[0-9]{1,4}", "[0-9]{4}"),
    "M": Directive("minute", "[0-5]?[0-9]", "[0-5][0-9]"),
    "S": Directive("second", "[0-5]?[0-9]", "[0-5][0-9]"),
    "f": Directive("fraction", "[0-9]{1,6}", "[0-9]{6}"),
    "z": Directive("offset", "Z|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9]"),
    ":z": Directive("offset", "Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9]"),
}
ISO_8601 = TimeFormat(
    r"^(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})[Tt ](?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})"
    rf"(?::(?P<second>[0-5][0-9])(?:[.,](?P<fraction>[0-9]{{1,9}}))?)? ?{OFFSET}?$",
    frozenset({"year", "month", "day", "hour", "minute", "second", "fraction", "offset"}),
)


@lru_cache(maxsize=256)
def time_format(name: str, *, hour_24: bool = False) -> TimeFormat:
    """Translate a strptime pattern.

    Args:
        name: the pattern, or `iso8601`.
        hour_24: True reads 24:00 as the midnight at the end of its day, which strptime does not.

    Raises:
        ValueError: it has a directive that strptime does not know, does not determine a moment, or is not read as
            strptime reads it; the message names the cause.
    """
    if hour_24:
        found = time_format(name)
        # Longest first: 2 would also fit the beginning of 24.
        return replace(found, pattern=found.pattern.replace("(?P<hour>2[0-3]", "(?P<hour>2[0-4]"), hour_24=True)
    if name == "iso8601":
        return ISO_8601
    try:
        written = _without_short_forms(name)
        found = _translate(written)
        _require_a_moment(found.parts)
        _require_same_as_strptime(written, found)
    except ValueError as error:
        raise ValueError(f"{name!r} is not a time format: {error}") from None
    return found


def _without_short_forms(name: str) -> str:
    if "%" not in name:
        raise ValueError("it has no directive such as %Y")
    if len(name) > MAX_FORMAT_LENGTH:
        raise ValueError(f"it is longer than {MAX_FORMAT_LENGTH} characters")
    return re.sub(f"%%|%{HOUR_MINUTE}|%-?[A-Za-z]", lambda found: SHORT_FOR.get(found[0], found[0]), name)


def _translate(name: str) -> TimeFormat:
    tokens = [match.groups() for match in TOKEN.finditer(name)]
    pattern, parts = [], []
    for index, (directive, space, literal, _) in enumerate(tokens):
        if space:
            pattern.append("[ \t]+")
        elif literal or directive == "%":
            pattern.append(re.escape(literal or "%"))
        else:
            known = _directive(directive)
            crowded = _ends_in_digit(tokens[:index]) or _begins_with_digit(tokens[index + 1 :])
            pattern.append(f"(?P<{known.part}>{(crowded and known.next_to_digits) or known.pattern})")
            parts += ["hour", "minute", known.part] if directive == HOUR_MINUTE else [known.part]
    twice = sorted({part for part in parts if parts.count(part) > 1})
    if twice:
        raise ValueError(f"the {twice[0].replace('_', ' ')} occurs twice")
    tail = tokens[-1][2] or ""
    return TimeFormat(f"^{''.join(pattern)}$", frozenset(parts), bool(ENDS_IN_UTC.search(tail)))


def _directive(name: str | None) -> Directive:
    if name is None:
        raise ValueError("it has a % without a directive")
    if name not in DIRECTIVES:
        remedy = REMEDIES.get(name)
        raise ValueError(f"%{name} is not supported" + (f"; {remedy}" if remedy else ", strptime does not have it"))
    return DIRECTIVES[name]


def _ends_in_digit(before: Tokens) -> bool:
    directive, _, literal, _ = before[-1] if before else (None,) * 4
    return bool(literal and literal[-1].isdigit()) or directive in {"z", ":z"} or _is_number(directive)


def _begins_with_digit(after: Tokens) -> bool:
    directive, _, literal, _ = after[0] if after else (None,) * 4
    return bool(literal and literal[0].isdigit()) or _is_number(directive)


def _is_number(directive: str | None) -> bool:
    return directive in DIRECTIVES and DIRECTIVES[directive].next_to_digits is not None


def _require_a_moment(parts: frozenset[str]) -> None:
    """Reject a format that does not determine the day, or names a part twice."""
    for same in (("year", "short_year"), ("month", "month_name"), ("hour", "half_day_hour")):
        if parts.issuperset(same):
            raise ValueError(f"the {same[0]} occurs twice")
    if not parts & {"year", "short_year"}:
        raise ValueError("it has no year")
    if "day_of_year" in parts:
        if parts & {"day", "month", "month_name"}:
            raise ValueError("the day of the year leaves nothing for month and day to say")
    elif "day" not in parts or not parts & {"month", "month_name"}:
        raise ValueError("it has no month" if "day" in parts else "it has no day")
    if ("half_day_hour" in parts) != ("half" in parts):
        raise ValueError("%I and %p say an hour only together")
    known = parts | ({"hour"} if "half" in parts else set())
    for part, needed in (("minute", "hour"), ("second", "minute"), ("fraction", "second"), ("offset", "hour")):
        if part in parts and needed not in known:
            raise ValueError(f"the {part} says nothing without the {needed}")


def _require_same_as_strptime(name: str, found: TimeFormat) -> None:
    """Read sample moments in this format with both parsers."""
    python = name.replace("%:z", "%z").replace(f"%{HOUR_MINUTE}", "%H%M")
    texts = [sample.strftime(python.replace("%z", SAMPLE_OFFSET)) for sample in SAMPLES]
    try:
        expected = [datetime.strptime(text, python) for text in texts]  # noqa: DTZ007 - as the text says
    except (ValueError, re.error) as error:
        raise ValueError(f"Python's strptime rejects it: {error}") from None
    ours = moments(pl.Series(texts), found)
    clock = pl.Series([moment.replace(tzinfo=None) for moment in expected], dtype=pl.Datetime("us"))
    offset = pl.Series([_seconds(moment) for moment in expected], dtype=pl.Int64)
    if not (ours["clock"].equals(clock) and ours["offset"].equals(offset)):
        raise ValueError("it is not read as Python's strptime reads it")


def _seconds(moment: datetime) -> int | None:
    offset = moment.utcoffset()
    return None if offset is None else offset // timedelta(seconds=1)


def moments(texts: pl.Series, found: TimeFormat) -> pl.DataFrame:
    """Read a column of times.

    Args:
        texts: as written.
        found: the format of all of them.

    Returns:
        `clock`, the time as written, without zone, to the microsecond; `offset`, seconds east of Greenwich. `clock` is
        null where the text is not of the format, or names no moment; `offset` where it has none.
    """
    parts = texts.to_frame("text").select(pl.col("text").str.extract_groups(found.pattern)).unnest("text")
    has = found.parts
    if "hour_minute" in has:
        written = pl.col("hour_minute").str.zfill(4)
        parts = parts.with_columns(hour=written.str.slice(0, 2), minute=written.str.slice(2))
    clock_text = _clock_text(has)
    if found.hour_24:
        is_24 = clock_text.str.slice(11, 2) == "24"
        clock_text = pl.when(is_24).then(clock_text.str.replace("T24", "T00", literal=True)).otherwise(clock_text)
    clock = clock_text.str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False, cache=False)
    if "fraction" in has:
        digits = pl.col("fraction").fill_null("0").str.slice(0, 6).str.pad_end(6, "0")
        clock += pl.duration(microseconds=digits.cast(pl.Int64))
    if "day_of_year" in has:
        later = clock + pl.duration(days=pl.col("day_of_year").cast(pl.Int64) - 1)
        clock = pl.when(later.dt.year() == clock.dt.year()).then(later)
    if "weekday" in has:
        number = _number_of("weekday", {name[:3]: str(index) for index, name in enumerate(WEEKDAYS, 1)})
        clock = pl.when(clock.dt.weekday() == number.cast(pl.Int8)).then(clock)
    if found.hour_24:
        midnight = pl.when(clock == clock.dt.truncate("1d")).then(clock + pl.duration(days=1))
        clock = pl.when(is_24).then(midnight).otherwise(clock)
    return parts.select(clock.alias("clock"), _offset(has).alias("offset"))


def _clock_text(has: frozenset[str]) -> pl.Expr:
    """Compose day and time in ISO 8601 of the parts that a format has."""
    day, minute, second = (
        _two_digits(part, has, missing) for part, missing in (("day", "01"), ("minute", "00"), ("second", "00"))
    )
    return pl.format("{}-{}-{}T{}:{}:{}", _year(has), _month(has), day, _hour(has), minute, second)


def _two_digits(part: str, has: frozenset[str], missing: str) -> pl.Expr:
    return pl.col(part).str.zfill(2).fill_null(missing) if part in has else pl.lit(missing)


def _year(has: frozenset[str]) -> pl.Expr:
    if "year" in has:
        return pl.col("year")
    short = pl.col("short_year")
    century = pl.when(short.cast(pl.Int8) < FIRST_SHORT_YEAR).then(pl.lit("20")).otherwise(pl.lit("19"))
    return pl.when(short.is_not_null()).then(pl.concat_str(century, short))


def _month(has: frozenset[str]) -> pl.Expr:
    if "month_name" in has:
        return _number_of("month_name", {name[:3]: f"{index:02}" for index, name in enumerate(MONTHS, 1)})
    return _two_digits("month", has, "01")


def _number_of(part: str, numbers: dict[str, str]) -> pl.Expr:
    prefix = pl.col(part).str.slice(0, 3).str.to_lowercase()
    return prefix.replace_strict(numbers, default=None, return_dtype=pl.String)


def _hour(has: frozenset[str]) -> pl.Expr:
    if "half_day_hour" not in has:
        return _two_digits("hour", has, "00")
    afternoon = pl.when(pl.col("half").str.to_lowercase().str.starts_with("p")).then(12).otherwise(0)
    return (pl.col("half_day_hour").cast(pl.Int64) % 12 + afternoon).cast(pl.String).str.zfill(2)


def _offset(has: frozenset[str]) -> pl.Expr:
    if "offset" not in has:
        return pl.lit(None, pl.Int64)
    digits = pl.col("offset").str.replace_all(r"[^0-9]", "").str.pad_end(4, "0").cast(pl.Int64)
    seconds = digits // 100 * 3600 + digits % 100 * 60
    return pl.when(pl.col("offset").str.starts_with("-")).then(-seconds).otherwise(seconds)
