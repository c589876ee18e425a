"""Cast text and workbook cells to moments, numbers and names, for the rows of many files at once.

Invisible characters are stripped from the ends of names, and rejected inside: a byte order mark, a no-break space or a
stray quote would make a second device that looks like the real one, and a sensor type without its limits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

import polars as pl

from ingest_project.contracts.columns import FAULT_OF
from ingest_project.readers.cells import DATE, INEXACT, MAX_NUMBER_LENGTH, NUMBER, PERCENT, TEXT
from ingest_project.readers.profile_parts import NumberLayout, Scale, TimestampLayout, offset_of
from ingest_project.readers.profiles import ReaderProfile
from ingest_project.readers.time_formats import moments, time_format

MOMENT = pl.Datetime("us", "UTC")
# The digits after the last mark of a number without an exponent.
FRACTION = "[.,]([0-9]+)$"
# The layouts for which Polars has a special parser, ten times faster than the general one, each with the shape that a
# text must have: the parser alone would also accept `24-1-5` and the 60th second.
PLAIN_ISO_SHAPES = {
    "%Y-%m-%dT%H:%M:%SZ": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9]Z$",
    "%Y-%m-%dT%H:%M:%S": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9]$",
    "%Y-%m-%d %H:%M:%S": r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-5][0-9]$",
}
# Most digits before the decimal point: enough for the year 9999.
UNIX_DIGITS = {"unix_seconds": 12, "unix_milliseconds": 15}
MICROSECONDS = {"unix_seconds": 1_000_000, "unix_milliseconds": 1_000}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_TICK = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
# Many systems write the last microsecond of the year 9999 for "no end"; unix times and offsets could exceed it.
LAST_TICK = (datetime.max.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
# Polars has the changes of clocks up to 2099. On the last day clocks are as after their last change in a year.
UNKNOWN_TO_POLARS = (datetime(2100, 1, 1), datetime(9999, 12, 31))  # noqa: DTZ001 - clock times
AMBIGUOUS: dict[str, Literal["null", "earliest", "latest"]] = {
    "reject": "null",
    "earliest": "earliest",
    "latest": "latest",
}

# Name of the column with the kinds of another column's cells.
KIND_OF = "{}_kind".format


# Variants of a mark that people and spreadsheets use.
ALIKE = {" ": " \u00a0\u202f\u2009", "'": "'\u2019"}
WORDS = "[iI][nN][fF](?:[iI][nN][iI][tT][yY])?|[nN][aA][nN]"
PERCENT_UNIT = "(?i)^(?:%.*|percent|pct)$"

# Invisible letters and marks, in addition to the controls, formats and separators of Unicode.
UNSEEN = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0xFFFD, *range(0xFE00, 0xFE10)}
UNSEEN |= set(range(0xE0100, 0xE01F0))
QUOTES = "\"'`´‘’‚‛“”„‟«»‹›＂"  # noqa: RUF001 - look-alike quotes are intended
# The shape of most names, which need no further check.
PLAIN_NAME = r"^[0-9A-Za-z](?:[0-9A-Za-z_.:/+#() -]*[0-9A-Za-z_.:/+#()-])?$"


# First and last of each run of Unicode white space and format characters, byte order marks among them; a constant,
# because a look-up for each of a million characters takes a third of a second.
TRIMMED_RANGES = (
    *((0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0xAD, 0xAD), (0x600, 0x605), (0x61C, 0x61C)),
    *((0x6DD, 0x6DD), (0x70F, 0x70F), (0x890, 0x891), (0x8E2, 0x8E2), (0x1680, 0x1680), (0x180E, 0x180E)),
    *((0x2000, 0x200F), (0x2028, 0x202F), (0x205F, 0x206F), (0x3000, 0x3000), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB)),
    *((0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A)),
    *((0xE0001, 0xE0001), (0xE0020, 0xE007F)),
)
TRIMMED = "".join(chr(code) for first, last in TRIMMED_RANGES for code in range(first, last + 1))


def kept(values: pl.Series, where: pl.Series) -> pl.Series:
    """Replace the values where this is false by null; keeps the type, which `Series.set` loses with the last value."""
    if not len(values):
        return values
    nothing = pl.Series(values.name, [None], values.dtype).new_from_index(0, len(values))
    return values.zip_with(where.fill_null(value=False), nothing)


def parse_timestamps(texts: pl.Series, layout: TimestampLayout) -> pl.Series:
    """Parse moments in UTC, to the microsecond; null where the text is missing or fits none of the formats.

    Digits beyond the microsecond are dropped, never rounded. A date alone is no moment unless a format of the profile
    says so. Clock times that do not exist in the zone, because clocks went forward, are null.
    """
    found = _first_fit(texts, [step for name in layout.formats for step in _steps(name, texts)], layout)
    return _within_supported_years(found)


def moments_of_clock(clock_times: pl.Series, layout: TimestampLayout) -> pl.Series:
    """Convert local clock times to moments in UTC; null where none exists, or two exist and the profile rejects both.

    Args:
        clock_times: in the zone of the layout.
        layout: names the zone, and which of two moments a clock time means.
    """
    if layout.zone == "UTC":
        return _within_supported_years(clock_times.dt.replace_time_zone("UTC"))
    offset = offset_of(layout.zone)
    if offset is not None:
        return _within_supported_years((clock_times - timedelta(seconds=offset)).dt.replace_time_zone("UTC"))
    local = clock_times.dt.replace_time_zone(
        layout.zone, ambiguous=AMBIGUOUS[layout.ambiguous], non_existent="null"
    ).dt.convert_time_zone("UTC")
    later = clock_times.is_between(*UNKNOWN_TO_POLARS, closed="left").arg_true()
    if len(later):
        moments_later = [_moment(clock, layout) for clock in clock_times.gather(later)]
        local = local.scatter(later, pl.Series(moments_later, dtype=MOMENT))
    return _within_supported_years(local)


def _moment(clock: datetime, layout: TimestampLayout) -> datetime | None:
    """Convert one clock time as `moments_of_clock` does, by Python's rules of the zone."""
    zone = ZoneInfo(layout.zone)
    first, second = (clock.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    twice = {"reject": None, "earliest": first, "latest": second}[layout.ambiguous]
    # A time that clocks skip is the later of the two by the offset before the change.
    return first if first == second else twice if first < second else None


def _steps(name: str, texts: pl.Series) -> list[str]:
    """Return the parsers to try for a format, the most likely first."""
    if name != "iso8601":
        return [name]
    first = texts.drop_nulls().head(1).to_list()
    likely = sorted(PLAIN_ISO_SHAPES, key=lambda plain: not first or not _looks_like(first[0], plain))
    return [*likely, "iso8601"]


def _looks_like(text: str, plain: str) -> bool:
    return text[10:11] == plain[8] and text.endswith("Z") == plain.endswith("Z")


def _first_fit(texts: pl.Series, steps: list[str], layout: TimestampLayout) -> pl.Series:
    """Try each parser on the texts that the earlier ones did not parse."""
    found = _parse(texts, steps[0], layout)
    for step in steps[1:]:
        recovered = (found.is_null() & texts.is_not_null()).arg_true()
        if not len(recovered):
            break
        found = found.scatter(recovered, _parse(texts.gather(recovered), step, layout))
    return found


def _parse(texts: pl.Series, step: str, layout: TimestampLayout) -> pl.Series:
    if step in PLAIN_ISO_SHAPES:
        return _plain_iso(texts, step, layout)
    if step in UNIX_DIGITS:
        return _unix(texts, step)
    known = time_format(step, hour_24=layout.hour_24 == "midnight")
    parts = moments(texts, known)
    local = parts["clock"].dt.replace_time_zone("UTC") if known.is_utc else moments_of_clock(parts["clock"], layout)
    if "offset" not in known.parts:
        return local
    absolute = parts.select((pl.col("clock") - pl.duration(seconds="offset")).dt.replace_time_zone("UTC")).to_series()
    return absolute.zip_with(parts["offset"].is_not_null(), local)


def _plain_iso(texts: pl.Series, step: str, layout: TimestampLayout) -> pl.Series:
    shaped = texts.str.contains(PLAIN_ISO_SHAPES[step])
    if not shaped.all():
        texts = kept(texts, shaped)
    clock = texts.str.to_datetime(step, time_unit="us", strict=False, cache=False)
    return clock.dt.replace_time_zone("UTC") if step.endswith("Z") else moments_of_clock(clock, layout)


def _unix(texts: pl.Series, step: str) -> pl.Series:
    """Parse unix times as integers: a float of seconds cannot represent every microsecond."""
    whole = rf"^(?P<sign>-?)(?P<whole>[0-9]{{1,{UNIX_DIGITS[step]}}})(?:\.(?P<fraction>[0-9]{{1,9}}))?$"
    parts = texts.to_frame("text").select(pl.col("text").str.extract_groups(whole)).unnest("text")
    width = len(str(MICROSECONDS[step])) - 1
    fraction = pl.col("fraction").fill_null("0").str.slice(0, width).str.pad_end(width, "0").cast(pl.Int64)
    ticks = pl.col("whole").cast(pl.Int64) * MICROSECONDS[step] + fraction
    signed = pl.when(pl.col("sign") == "-").then(-ticks).otherwise(ticks)
    return _within_supported_years(parts.select(signed.cast(MOMENT)).to_series())


def _within_supported_years(found: pl.Series) -> pl.Series:
    """Replace moments outside the years 1 to 9999 by null, compared as numbers: Python cannot represent them."""
    ticks = found.to_physical()
    outside = (ticks < FIRST_TICK) | (ticks > LAST_TICK)
    return kept(found, ~outside) if outside.any() else found


def cast(rows: pl.DataFrame, profile: ReaderProfile) -> pl.DataFrame:
    """Give timestamp and value their types; keep their text in further columns.

    Args:
        rows: readings as text, of any number of files; other columns pass through. Where a column has the kinds of
            the cells (see `cells`), the profile's rules apply to cells of text only.
        profile: the one all these files share.

    Returns:
        the rows with `timestamp` (UTC, microseconds) and `value` (float; infinities and NaN are kept as such), null
        where missing or unreadable, and `timestamp_text` and `value_text` as they were, to distinguish the two. Also
        `FAULT_OF("timestamp")`, see `clock_faults`, if there are such times.
    """
    typed = KIND_OF("value") in rows.columns
    cells = _scaled_percentages(rows) if typed else rows
    kinds = cells[KIND_OF("timestamp")] if typed else None
    found = moments_of_cells(rows["timestamp"], kinds, profile.timestamps)
    faults = clock_faults(rows["timestamp"], kinds, found, profile.timestamps)
    return cells.with_columns(
        found.alias("timestamp"),
        *([] if faults is None else [faults.alias(FAULT_OF("timestamp"))]),
        numbers_of_cells(cells["value"], cells[KIND_OF("value")] if typed else None, profile.numbers).alias("value"),
        rows["timestamp"].alias("timestamp_text"),
        rows["value"].alias("value_text"),
    )


def parse_numbers(texts: pl.Series, layout: NumberLayout) -> pl.Series:
    """Parse decimal numbers, with or without an exponent; null for everything else, formulas included.

    A number is the nearest 64-bit float: 15 significant digits are exact. One that would underflow to zero is null.
    """
    if layout.decimal == "." and layout.thousands is None:
        # Polars reads exactly this shape, in ASCII digits.
        return _without_lost(texts, texts.cast(pl.Float64, strict=False))
    plain = plain_numbers(kept(texts, texts.str.contains(_pattern(layout))), None, layout)
    return _without_lost(texts, plain.cast(pl.Float64, strict=False))


def _without_lost(texts: pl.Series, numbers: pl.Series) -> pl.Series:
    """Replace a number that underflowed to zero, such as 1e-400, by null."""
    zeros = (numbers == 0).arg_true()
    if not len(zeros):
        return numbers
    lost = zeros.filter(texts.gather(zeros).str.contains(r"^[^eE]*[1-9]"))
    return numbers.scatter(lost, None) if len(lost) else numbers


def _pattern(layout: NumberLayout) -> str:
    """Return the shape of a number: without it, 1.234 in a file with decimal commas would be a decimal fraction."""
    fraction = rf"(?:{re.escape(layout.decimal)}[0-9]*)?"
    shapes = [rf"[0-9]*{fraction}(?:[eE][+-]?[0-9]+)?", WORDS]
    # No group is longer or shorter than three digits, no grouped number begins with a zero, and one mark is used.
    marks = ALIKE.get(layout.thousands or "", layout.thousands or "")
    shapes += [rf"[1-9][0-9]{{0,2}}(?:{re.escape(mark)}[0-9]{{3}})+{fraction}" for mark in marks]
    return rf"^[+-]?(?:{'|'.join(shapes)})$"


def plain_numbers(texts: pl.Series, kinds: pl.Series | None, layout: NumberLayout) -> pl.Series:
    """Write numbers with a decimal point and no other mark; see `numbers_of_cells`."""
    marks = ALIKE.get(layout.thousands or "", layout.thousands or "")
    plain = texts.str.replace_all(f"[{re.escape(marks)}]", "") if marks else texts
    plain = plain if layout.decimal == "." else plain.str.replace(layout.decimal, ".", literal=True)
    return plain if kinds is None else plain.zip_with((kinds == TEXT).fill_null(value=True), texts)


def numbers_of_cells(texts: pl.Series, kinds: pl.Series | None, layout: NumberLayout) -> pl.Series:
    """Return the numbers in cells; null for every other cell.

    Args:
        texts: texts of the cells.
        kinds: kinds of the cells; None, alone or for all, is text.
        layout: how numbers are written in text.
    """
    if kinds is None:
        return parse_numbers(texts, layout)
    is_number = kinds.is_in([NUMBER, PERCENT, INEXACT]).fill_null(value=False)
    from_text = parse_numbers(text_cells(texts, kinds), layout)
    # Number cells are written in the notation of Python; those of JSON may be too small for a float.
    plain = kept(texts, is_number)
    return _without_lost(plain, plain.cast(pl.Float64, strict=False)).zip_with(is_number, from_text)


def scaled_numbers(
    texts: pl.Series, kinds: pl.Series | None, layout: NumberLayout, conversion: Scale, *, exact: bool
) -> pl.Series:
    """Convert the numbers in cells, see `numbers_of_cells`.

    Returns:
        them with a decimal point, null for other cells: `exact` with all digits, also those that a float does not keep.
    """
    fraction = texts.str.extract(FRACTION, 1).str.len_chars().fill_null(0)
    places = kept(fraction, ~texts.str.contains("[eE]").fill_null(value=True))
    values = conversion.apply(numbers_of_cells(texts, kinds, layout), places)
    scaled = values.cast(pl.String).str.strip_suffix(".0")
    is_long = values.is_not_null() & texts.str.len_bytes().is_between(15, MAX_NUMBER_LENGTH, closed="right")
    if not (exact and conversion.keeps_decimals and is_long.any()):
        return scaled
    plain = plain_numbers(texts, kinds, layout)
    return plain.replace(conversion.exactly(plain.filter(is_long).unique())).zip_with(is_long, scaled)


def without_null_numbers(table: pl.DataFrame, columns: Iterable[str], profile: ReaderProfile) -> pl.DataFrame:
    """Replace the numbers that mean "missing" by null, however they are written: -9999.0 is -9999.

    Args:
        table: text, maybe with the kinds of its cells.
        columns: its columns with numbers.
        profile: which spellings mean "missing".
    """
    markers = _null_numbers(profile.nulls, profile.numbers)
    if not markers:
        return table
    missing = []
    for name in columns:
        kinds = table[KIND_OF(name)] if KIND_OF(name) in table.columns else None
        found = numbers_of_cells(table[name], kinds, profile.numbers)
        missing.append(kept(table[name], ~found.is_in(markers).fill_null(value=False)))
    return table.with_columns(missing)


@lru_cache(maxsize=64)
def _null_numbers(nulls: tuple[str, ...], layout: NumberLayout) -> list[float]:
    spellings = pl.Series([text for text in nulls if text], dtype=pl.String)
    as_declared = parse_numbers(spellings, layout)
    return as_declared.fill_null(spellings.cast(pl.Float64, strict=False)).drop_nulls().drop_nans().to_list()


def text_cells(texts: pl.Series, kinds: pl.Series) -> pl.Series:
    """Replace the cells that are not text by null."""
    return kept(texts, (kinds == TEXT).fill_null(value=True))


def clock_faults(
    texts: pl.Series, kinds: pl.Series | None, found: pl.Series, layout: TimestampLayout
) -> pl.Series | None:
    """Find the clock times that their zone passes twice (`ambiguous_time`) or skips (`skipped_time`).

    Args:
        texts: texts of the cells.
        kinds: kinds of the cells; None is text.
        found: the moments in them, see `moments_of_cells`.
        layout: the layout by which they were read.

    Returns:
        for each text one of `columns.CLOCK_FAULTS` or null; None if there is no such time.
    """
    unread = (found.is_null() & texts.is_not_null()).arg_true()
    if not len(unread) or layout.zone == "UTC" or offset_of(layout.zone) is not None:
        return None

    def read(**changed: str) -> pl.Series:
        of_cells = None if kinds is None else kinds.gather(unread)
        return moments_of_cells(texts.gather(unread), of_cells, layout.model_copy(update=changed))

    twice = read(ambiguous="earliest").is_not_null()
    # At the ends of the calendar a time may be out of range in its zone alone.
    skipped = read(zone="UTC").dt.year().is_between(2, 9998).fill_null(value=False) & ~twice
    if not (twice | skipped).any():
        return None
    faults = pl.select(pl.when(twice).then(pl.lit("ambiguous_time")).when(skipped).then(pl.lit("skipped_time")))
    return pl.Series([None], dtype=pl.String).new_from_index(0, len(texts)).scatter(unread, faults.to_series())


def moments_of_cells(texts: pl.Series, kinds: pl.Series | None, layout: TimestampLayout) -> pl.Series:
    """Return the moments in cells, see `parse_timestamps`: of text, of dates, and of numbers if they are unix times.

    Args:
        texts: texts of the cells.
        kinds: kinds of the cells; None, alone or for all, is text.
        layout: how times are written in text, and the zone of dates.
    """
    if kinds is None:
        return parse_timestamps(texts, layout)
    moments = parse_timestamps(text_cells(texts, kinds), layout)
    is_date = (kinds == DATE).fill_null(value=False)
    if is_date.any():
        clock = kept(texts, is_date).str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
        moments = moments_of_clock(clock, layout).zip_with(is_date, moments)
    unix = tuple(name for name in layout.formats if name.startswith("unix_"))
    is_number = (kinds == NUMBER).fill_null(value=False)
    if unix and is_number.any():
        counted = parse_timestamps(kept(texts, is_number), layout.model_copy(update={"formats": unix}))
        moments = counted.zip_with(is_number, moments)
    return moments


def _scaled_percentages(rows: pl.DataFrame) -> pl.DataFrame:
    """Convert cells of 0.45 shown as 45 % to 45, if their unit is per cent or missing."""
    percent = (pl.col(KIND_OF("value")) == PERCENT) & pl.col("unit").fill_null("%").str.contains(PERCENT_UNIT)
    return rows.with_columns(
        # The decimal point is moved in the text: a hundred times 0.07 is not 7.
        pl.when(percent).then(pl.col("value") + "e2").otherwise("value").alias("value"),
        pl.when(percent).then(pl.col("unit").fill_null("%")).otherwise("unit").alias("unit"),
    )


@lru_cache(maxsize=4_096)
def clean_name(name: str) -> str:
    """Strip unseen characters from both ends of a name, and compose it (Unicode's NFC)."""
    return unicodedata.normalize("NFC", name.strip(TRIMMED))


@lru_cache(maxsize=4_096)
def is_suspicious(name: str) -> bool:
    """Return True if a clean name has invisible or unprintable characters, or unmatched quotes."""
    if not name.isprintable() or any(ord(character) in UNSEEN for character in name):
        return True
    return name[:1] in QUOTES or name[-1:] in QUOTES or name.count('"') % 2 == 1


def unusual_names(names: pl.Series) -> pl.Series:
    """Return the distinct names of a column that do not match PLAIN_NAME."""
    different = names.unique().drop_nulls()
    return different.filter(~different.str.contains(PLAIN_NAME))


@lru_cache(maxsize=4_096)
def matched_name(name: str) -> str:
    """Return the form in which names are compared: without case and invisible characters."""
    seen = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
    return " ".join(seen.casefold().split())
