"""Times as text to moments in UTC, whole columns at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import polars as pl

if TYPE_CHECKING:
    from ingest_project.formats.profiles import TimestampLayout

MICROSECONDS = pl.Datetime("us")
MOMENT = pl.Datetime("us", "UTC")
MICROSECONDS_A_SECOND = 1_000_000
# The layouts for which Polars has a parser of its own, ten times faster than the general one.
PLAIN_ISO_FORMATS = ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S")
ISO_8601 = (
    r"^(?P<day>\d{4}-\d{2}-\d{2})[Tt ](?P<clock>\d{2}:\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r" ?(?P<offset>[Zz]|(?P<sign>[+-])(?P<hours>[01]\d|2[0-3])(?::?(?P<minutes>[0-5]\d))?)?$"
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_TICK = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
# The last moment that every store can hold; unix times and offsets could go past it.
LAST_TICK = (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
AMBIGUOUS: dict[str, Literal["null", "earliest", "latest"]] = {
    "reject": "null",
    "earliest": "earliest",
    "latest": "latest",
}


def parse_timestamps(texts: pl.Series, layout: TimestampLayout) -> pl.Series:
    """Moments in UTC, to the microsecond; null where the text is missing or fits none of the formats.

    A date alone is no moment unless a format of the profile says so. Clock times that do not exist in the zone, because
    clocks went forward, are null.
    """
    moments = _first_fit(texts, [step for name in layout.formats for step in _steps(name, texts)], layout)
    return _within_reach(moments)


def _steps(name: str, texts: pl.Series) -> list[str]:
    """A format as the parsers to try, the likeliest first."""
    if name != "iso8601":
        return [name]
    first = texts.drop_nulls().head(1).to_list()
    likely = sorted(PLAIN_ISO_FORMATS, key=lambda plain: not first or not _looks_like(first[0], plain))
    return [*likely, "iso8601"]


def _looks_like(text: str, plain: str) -> bool:
    return text[10:11] == plain[8] and text.endswith("Z") == plain.endswith("Z")


def _first_fit(texts: pl.Series, steps: list[str], layout: TimestampLayout) -> pl.Series:
    """Try each parser on what the ones before it left over."""
    moments = _parse(texts, steps[0], layout)
    for step in steps[1:]:
        left_over = (moments.is_null() & texts.is_not_null()).arg_true()
        if not len(left_over):
            break
        moments = moments.scatter(left_over, _parse(texts.gather(left_over), step, layout))
    return moments


def _parse(texts: pl.Series, step: str, layout: TimestampLayout) -> pl.Series:
    if step == "iso8601":
        return _any_iso(texts, layout)
    if step in {"unix_seconds", "unix_milliseconds"}:
        scale = MICROSECONDS_A_SECOND if step == "unix_seconds" else 1_000
        numbers = texts.cast(pl.Float64, strict=False) * scale
        return numbers.round().cast(pl.Int64, strict=False).cast(MOMENT)
    if step.endswith("Z") and "%" not in step[-2:]:
        return texts.str.to_datetime(step, time_unit="us", strict=False, cache=False).dt.replace_time_zone("UTC")
    if "%z" in step or "%:z" in step or "%#z" in step:
        return texts.str.to_datetime(step, time_unit="us", time_zone="UTC", strict=False, cache=False)
    if not any(clock in step for clock in ("%H", "%I", "%k", "%l", "%T", "%R", "%r", "%X", "%c", "%s")):
        return _from_clock(texts.str.to_date(step, strict=False, cache=False).cast(MICROSECONDS), layout)
    return _from_clock(texts.str.to_datetime(step, time_unit="us", strict=False, cache=False), layout)


def _from_clock(clock_times: pl.Series, layout: TimestampLayout) -> pl.Series:
    """Local clock times to moments."""
    if layout.zone == "UTC":
        return clock_times.dt.replace_time_zone("UTC")
    local = clock_times.to_frame("clock").select(
        pl.col("clock").dt.replace_time_zone(
            layout.zone,
            ambiguous=AMBIGUOUS[layout.ambiguous],
            non_existent="null",
        )
    )
    return local["clock"].dt.convert_time_zone("UTC")


def _any_iso(texts: pl.Series, layout: TimestampLayout) -> pl.Series:
    """Every other spelling of ISO 8601: offsets, fractions, minutes only."""
    parts = texts.to_frame("text").select(pl.col("text").str.extract_groups(ISO_8601)).unnest("text")
    clock = pl.concat_str("day", pl.lit("T"), "clock", pl.lit(":"), pl.col("second").fill_null("00"))
    fraction = pl.col("fraction").fill_null("0").str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64)
    seconds = pl.col("hours").cast(pl.Int64) * 3600 + pl.col("minutes").fill_null("0").cast(pl.Int64) * 60
    offset = pl.when(pl.col("sign") == "-").then(-seconds).otherwise(seconds).fill_null(0)
    times = parts.select(
        clock.str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False, cache=False)
        + pl.duration(microseconds=fraction),
        offset=offset,
        has_offset=pl.col("offset").is_not_null(),
    )
    absolute = times.select(
        (pl.col("day") - pl.duration(seconds=pl.col("offset"))).dt.replace_time_zone("UTC")
    ).to_series()
    return absolute.zip_with(times["has_offset"], _from_clock(times["day"], layout))


def _within_reach(moments: pl.Series) -> pl.Series:
    """Null for moments outside the years 1 to 9999, compared as numbers: Python cannot even name them."""
    ticks = moments.to_physical()
    outside = (ticks < FIRST_TICK) | (ticks > LAST_TICK)
    return moments.set(outside, None) if outside.any() else moments
