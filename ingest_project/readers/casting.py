"""Readings as text to readings as moments and numbers, for the rows of many files at once."""

import re
from collections.abc import Iterable
from functools import lru_cache

import polars as pl

from ingest_project.readers.profiles import NumberLayout, ReaderProfile, TimestampLayout
from ingest_project.readers.timestamps import kept, moments_of_clock, parse_timestamps

TEXT = "s"
NUMBER = "n"
# A number that is shown as so many per cent.
PERCENT = "p"
DATE = "d"
# A length of time or a clock time without a day.
DURATION = "t"
BOOLEAN = "b"
ERROR = "e"
# A formula whose result nobody has worked out.
FORMULA = "f"

# The column that tells the kinds of another one's cells.
KIND_OF = "{}_kind".format


# The marks that people and spreadsheets write for one and the same.
ALIKE = {" ": " \u00a0\u202f\u2009", "'": "'\u2019"}
WORDS = "[iI][nN][fF](?:[iI][nN][iI][tT][yY])?|[nN][aA][nN]"
PERCENT_UNIT = "(?i)^(?:%.*|percent|pct)$"


def cast(rows: pl.DataFrame, profile: ReaderProfile) -> pl.DataFrame:
    """Give timestamp and value their types; keep their text beside them.

    Args:
        rows: readings as text, of any number of files; other columns pass through. Where a column tells the kinds of
            the cells (`cell_kinds`), the profile's rules are held to cells of text only.
        profile: the one all these files share.

    Returns:
        the rows with `timestamp` (UTC, microseconds) and `value` (float; infinities and NaN are kept as such), null
        where missing or unreadable, and `timestamp_text` and `value_text` as they were, so that one can tell which.
    """
    typed = KIND_OF("value") in rows.columns
    cells = _shown_per_cent(rows) if typed else rows
    return cells.with_columns(
        (
            _moments_of_cells(cells, profile.timestamps)
            if typed
            else parse_timestamps(rows["timestamp"], profile.timestamps)
        ).alias("timestamp"),
        numbers_of_cells(cells["value"], cells[KIND_OF("value")] if typed else None, profile.numbers).alias("value"),
        rows["timestamp"].alias("timestamp_text"),
        rows["value"].alias("value_text"),
    )


def parse_numbers(texts: pl.Series, layout: NumberLayout) -> pl.Series:
    """Decimal numbers, with or without an exponent; null for everything else, formulas among it.

    A number is the nearest one that 64 bits hold: 15 significant digits are exact. One too small for them is null: it
    would become zero.
    """
    if layout.decimal == "." and layout.thousands is None:
        # Polars reads this very shape and no other, in ASCII digits.
        return _without_lost(texts, texts.cast(pl.Float64, strict=False))
    plain = pl.col("text")
    if layout.thousands is not None:
        plain = plain.str.replace_all(f"[{re.escape(ALIKE.get(layout.thousands, layout.thousands))}]", "")
    number = pl.when(pl.col("text").str.contains(_pattern(layout))).then(
        plain.str.replace(layout.decimal, ".", literal=True).cast(pl.Float64, strict=False)
    )
    return _without_lost(texts, texts.to_frame("text").select(number.alias("text")).to_series())


def _without_lost(texts: pl.Series, numbers: pl.Series) -> pl.Series:
    """Null where something became nothing: 1e-400 is not zero."""
    zeros = (numbers == 0).arg_true()
    if not len(zeros):
        return numbers
    lost = zeros.filter(texts.gather(zeros).str.contains(r"^[^eE]*[1-9]"))
    return numbers.scatter(lost, None) if len(lost) else numbers


def _pattern(layout: NumberLayout) -> str:
    """What a number looks like. Without this, 1.234 in a file with decimal commas would be a little over one."""
    fraction = rf"(?:{re.escape(layout.decimal)}[0-9]*)?"
    shapes = [rf"[0-9]*{fraction}(?:[eE][+-]?[0-9]+)?", WORDS]
    # No group is longer or shorter than three digits, no grouped number begins with a zero, and one mark is used.
    marks = ALIKE.get(layout.thousands or "", layout.thousands or "")
    shapes += [rf"[1-9][0-9]{{0,2}}(?:{re.escape(mark)}[0-9]{{3}})+{fraction}" for mark in marks]
    return rf"^[+-]?(?:{'|'.join(shapes)})$"


def numbers_of_cells(texts: pl.Series, kinds: pl.Series | None, layout: NumberLayout) -> pl.Series:
    """The numbers that cells hold; null for every other cell.

    Args:
        texts: of the cells.
        kinds: of the cells; None, alone or for all, is text.
        layout: how numbers are written in text.
    """
    if kinds is None:
        return parse_numbers(texts, layout)
    is_number = kinds.is_in([NUMBER, PERCENT]).fill_null(value=False)
    from_text = parse_numbers(_texts_alone(texts, kinds), layout)
    # A number cell is written by us, as Python writes it.
    return kept(texts, is_number).cast(pl.Float64, strict=False).zip_with(is_number, from_text)


def without_null_numbers(table: pl.DataFrame, columns: Iterable[str], profile: ReaderProfile) -> pl.DataFrame:
    """A table without the numbers that mean "missing", however they are written: -9999.0 is -9999.

    Args:
        table: text, maybe with the kinds of its cells.
        columns: those of its columns that hold numbers.
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


def _texts_alone(texts: pl.Series, kinds: pl.Series) -> pl.Series:
    return kept(texts, (kinds == TEXT).fill_null(value=True))


def _moments_of_cells(rows: pl.DataFrame, layout: TimestampLayout) -> pl.Series:
    texts, kinds = rows["timestamp"], rows[KIND_OF("timestamp")]
    moments = parse_timestamps(_texts_alone(texts, kinds), layout)
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


def _shown_per_cent(rows: pl.DataFrame) -> pl.DataFrame:
    """Cells that hold 0.45 and show 45 % say 45, where their unit is per cent, or where nothing else says it is not."""
    percent = (pl.col(KIND_OF("value")) == PERCENT) & pl.col("unit").fill_null("%").str.contains(PERCENT_UNIT)
    return rows.with_columns(
        # The decimal point is moved in the text: a hundred times 0.07 is not 7.
        pl.when(percent).then(pl.col("value") + "e2").otherwise("value").alias("value"),
        pl.when(percent).then(pl.col("unit").fill_null("%")).otherwise("unit").alias("unit"),
    )
