"""Times as text to moments in UTC, whole columns at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import polars as pl

from ingest_project.readers.profiles import TimestampLayout
from ingest_project.readers.time_formats import moments, time_format


def kept(values: pl.Series, where: pl.Series) -> pl.Series:
    """The values where this is true, and null elsewhere: of the same type, which `Series.set` loses with the last."""
    if not len(values):
        return values
    nothing = pl.Series(values.name, [None], values.dtype).new_from_index(0, len(values))
    return values.zip_with(where.fill_null(value=False), nothing)


MOMENT = pl.Datetime("us", "UTC")
# The layouts for which Polars has a parser of its own, ten times faster than the general one, with the shape it must
# be held to: it takes `24-1-5` and the 60th second as well.
PLAIN_ISO_SHAPES = {
    "%Y-%m-%dT%H:%M:%SZ": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9]Z$",
    "%Y-%m-%dT%H:%M:%S": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9]$",
    "%Y-%m-%d %H:%M:%S": r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-5][0-9]$",
}
# Digits before the decimal point: the year 9999 is as far as they can go.
UNIX_DIGITS = {"unix_seconds": 12, "unix_milliseconds": 15}
MICROSECONDS = {"unix_seconds": 1_000_000, "unix_milliseconds": 1_000}
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

    Digits beyond the microsecond are dropped, never rounded. A date alone is no moment unless a format of the profile
    says so. Clock times that do not exist in the zone, because clocks went forward, are null.
    """
    found = _first_fit(texts, [step for name in layout.formats for step in _steps(name, texts)], layout)
    return _within_reach(found)


def moments_of_clock(clock_times: pl.Series, layout: TimestampLayout) -> pl.Series:
    """Local clock times, without zone, to moments in UTC; null where there is none, or two and the profile takes none.

    Args:
        clock_times: in the zone of the layout.
        layout: names the zone, and which of two moments a clock time means.
    """
    if layout.zone == "UTC":
        return _within_reach(clock_times.dt.replace_time_zone("UTC"))
    local = clock_times.to_frame("clock").select(
        pl.col("clock").dt.replace_time_zone(
            layout.zone,
            ambiguous=AMBIGUOUS[layout.ambiguous],
            non_existent="null",
        )
    )
    return _within_reach(local["clock"].dt.convert_time_zone("UTC"))


def _steps(name: str, texts: pl.Series) -> list[str]:
    """A format as the parsers to try, the likeliest first."""
    if name != "iso8601":
        return [name]
    first = texts.drop_nulls().head(1).to_list()
    likely = sorted(PLAIN_ISO_SHAPES, key=lambda plain: not first or not _looks_like(first[0], plain))
    return [*likely, "iso8601"]


def _looks_like(text: str, plain: str) -> bool:
    return text[10:11] == plain[8] and text.endswith("Z") == plain.endswith("Z")


def _first_fit(texts: pl.Series, steps: list[str], layout: TimestampLayout) -> pl.Series:
    """Try each parser on what the ones before it left over."""
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
    known = time_format(step)
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
    """Count in whole numbers: a float of seconds cannot hold every microsecond."""
    whole = rf"^(?P<sign>-?)(?P<whole>[0-9]{{1,{UNIX_DIGITS[step]}}})(?:\.(?P<fraction>[0-9]{{1,9}}))?$"
    parts = texts.to_frame("text").select(pl.col("text").str.extract_groups(whole)).unnest("text")
    width = len(str(MICROSECONDS[step])) - 1
    fraction = pl.col("fraction").fill_null("0").str.slice(0, width).str.pad_end(width, "0").cast(pl.Int64)
    ticks = pl.col("whole").cast(pl.Int64) * MICROSECONDS[step] + fraction
    signed = pl.when(pl.col("sign") == "-").then(-ticks).otherwise(ticks)
    return _within_reach(parts.select(signed.cast(MOMENT)).to_series())


def _within_reach(found: pl.Series) -> pl.Series:
    """Null for moments outside the years 1 to 9999, compared as numbers: Python cannot even name them."""
    ticks = found.to_physical()
    outside = (ticks < FIRST_TICK) | (ticks > LAST_TICK)
    return kept(found, ~outside) if outside.any() else found
