"""Readings as text to readings as moments and numbers, for the rows of many files at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import polars as pl

from ingest_project.formats.timestamps import parse_timestamps

if TYPE_CHECKING:
    from ingest_project.formats.profiles import NumberLayout, ReaderProfile


def cast(rows: pl.DataFrame, profile: ReaderProfile) -> pl.DataFrame:
    """Give timestamp and value their types; keep their text beside them.

    Args:
        rows: readings as text, of any number of files; other columns pass through.
        profile: the one all these files share.

    Returns:
        the rows with `timestamp` (UTC, microseconds) and `value` (float; infinities and NaN are kept as such), null
        where missing or unreadable, and `timestamp_text` and `value_text` as they were, so that one can tell which.
    """
    return rows.with_columns(
        parse_timestamps(rows["timestamp"], profile.timestamps).alias("timestamp"),
        parse_numbers(rows["value"], profile.numbers).alias("value"),
        rows["timestamp"].alias("timestamp_text"),
        rows["value"].alias("value_text"),
    )


def parse_numbers(texts: pl.Series, layout: NumberLayout) -> pl.Series:
    """Decimal numbers, with or without an exponent; null for everything else, formulas among it."""
    if layout.decimal == "." and layout.thousands is None:
        return texts.cast(pl.Float64, strict=False)
    plain = pl.col("text").str.replace_all(layout.thousands or "", "", literal=True)
    if layout.thousands is None:
        plain = pl.col("text")
    number = pl.when(pl.col("text").str.contains(_pattern(layout))).then(
        plain.str.replace(layout.decimal, ".", literal=True).cast(pl.Float64, strict=False)
    )
    return texts.to_frame("text").select(number.alias("text")).to_series()


def _pattern(layout: NumberLayout) -> str:
    """What a number looks like. Without this, 1.234 in a file with decimal commas would be a little over one."""
    digits = r"\d*"
    if layout.thousands is not None:
        digits = rf"(?:\d{{1,3}}(?:{re.escape(layout.thousands)}\d{{3}})+|\d*)"
    return rf"(?i)^[+-]?(?:{digits}(?:{re.escape(layout.decimal)}\d*)?(?:e[+-]?\d+)?|inf|infinity|nan)$"
