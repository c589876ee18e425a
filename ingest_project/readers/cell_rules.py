"""Convert cells as a profile says, column by column: parts, words and numbers in text, scales and units."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import polars as pl

from ingest_project.readers.casting import KIND_OF, kept, matched_name, numbers_of_cells, without_null_numbers
from ingest_project.readers.cells import DATE, DURATION, INEXACT, NUMBER, PERCENT, TEXT
from ingest_project.readers.matching import Layout
from ingest_project.readers.profile_parts import CellRule, NumberLayout, Scale
from ingest_project.readers.profiles import ReaderProfile

# Of a number without an exponent: the digits after the last mark.
FRACTION = "[.,]([0-9]+)$"
Step = tuple[str, Callable[[pl.Series], pl.Series]]


def without_skipped(cells: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """Leave out the rows on which the profile has a condition."""
    for name, rule in layout.skipped:
        text = pl.col(name)
        matches = text.is_in(rule.equals) if rule.matches is None else text.str.contains(rule.matches)
        cells = cells.filter(~matches.fill_null(value=False))
    return cells


def read_cells(
    cells: pl.DataFrame, layout: Layout, profile: ReaderProfile
) -> tuple[pl.DataFrame, Sequence[pl.DataFrame]]:
    """Join columns, and take cells apart.

    Returns:
        the cells, and line_number and reason of those that cannot be read. A row with one is left out; in a wide file
        only the quantity that it has there. Most files have neither.
    """
    for column, parts in layout.joined.items():
        cells = cells.with_columns(_joined(cells, column, parts))
    refused: list[pl.DataFrame] = []
    for name, column, rule in _rules(layout, profile):
        if rule.reads_text and name in cells.columns:
            cells, reasons = _read(cells, name, rule, profile)
            bad = cells.select("line_number", reason=column + reasons).filter(reasons.is_not_null())
            if not bad.height:
                continue
            refused.append(bad)
            if name not in layout.quantities:
                cells = cells.filter(reasons.is_null())
    if layout.appended:
        cells = cells.with_columns(pl.col(name) + text for name, text in layout.appended.items())
    if profile.sensor_types and profile.other_sensor_types == "reject" and "sensor_type" in cells.columns:
        known = _type_numbers(cells["sensor_type"], profile).is_not_null() | cells["sensor_type"].is_null()
        refused.append(cells.select("line_number", reason=pl.lit("sensor_type_not_mapped")).filter(~known))
        cells = cells.filter(known)
    return cells, refused


def converted(cells: pl.DataFrame, layout: Layout, profile: ReaderProfile) -> pl.DataFrame:
    """Scale numbers and convert their units; a text that is no number stays as it is, to be rejected later."""
    for name, _, rule in _rules(layout, profile):
        if rule.conversion is not None and name in cells.columns:
            cells = _scaled(cells, name, rule.conversion, profile.numbers)
    if profile.sensor_types and "sensor_type" in cells.columns:
        cells = _by_sensor_type(cells, profile)
    return cells


def _scaled(cells: pl.DataFrame, name: str, conversion: Scale, numbers: NumberLayout) -> pl.DataFrame:
    kinds = cells[KIND_OF(name)] if KIND_OF(name) in cells.columns else None
    fraction = cells[name].str.extract(FRACTION, 1).str.len_chars().fill_null(0)
    places = kept(fraction, ~cells[name].str.contains("[eE]").fill_null(value=True))
    values = conversion.apply(numbers_of_cells(cells[name], kinds, numbers), places)
    is_number = values.is_not_null()
    texts = values.cast(pl.String).str.strip_suffix(".0")
    if kinds is None:
        texts = texts.str.replace(".", numbers.decimal, literal=True)
        return cells.with_columns(texts.zip_with(is_number, cells[name]).alias(name))
    # A number cell is written in the notation of Python.
    number = pl.Series([NUMBER]).new_from_index(0, len(kinds))
    kinds_now = number.zip_with(is_number & (kinds == TEXT).fill_null(value=True), kinds)
    return cells.with_columns(texts.zip_with(is_number, cells[name]).alias(name), kinds_now.alias(KIND_OF(name)))


def _by_sensor_type(cells: pl.DataFrame, profile: ReaderProfile) -> pl.DataFrame:
    """Give the readings of a long file the type, unit and scale that the profile says of their sensor type."""
    numbers = _type_numbers(cells["sensor_type"], profile)
    own = pl.col("unit") if "unit" in cells.columns else pl.lit(None, pl.String)
    kinds = [KIND_OF("unit")] if KIND_OF("value") in cells.columns else []
    parts = []
    for number, quantity in enumerate(profile.sensor_types.values()):
        rows = cells.with_row_index("position").filter((numbers == number).fill_null(value=False))
        unit = pl.lit(quantity.to or quantity.unit, pl.String) if quantity.unit else own
        rows = rows.with_columns(pl.lit(quantity.sensor_type).alias("sensor_type"), unit.alias("unit"))
        parts.append(_scaled(rows, "value", quantity.conversion, profile.numbers) if quantity.conversion else rows)
    rest = cells.with_row_index("position").filter(numbers.is_null()).with_columns(own.alias("unit"))
    found = pl.concat([*parts, rest]).sort("position").drop("position")
    return found.with_columns(pl.lit(TEXT).alias(name) for name in kinds)


def _type_numbers(types: pl.Series, profile: ReaderProfile) -> pl.Series:
    """Return the position of each sensor type in the profile; null for one that it does not list."""
    listed = {matched_name(name): number for number, name in enumerate(profile.sensor_types)}
    found = {text: listed[name] for text in types.unique().drop_nulls() if (name := matched_name(text)) in listed}
    return types.replace_strict(found, default=None, return_dtype=pl.Int64)


def _rules(layout: Layout, profile: ReaderProfile) -> Iterator[tuple[str, str, CellRule]]:
    """Yield each rule with the name of its column in the table and in the target."""
    yield from ((column, column, rule) for column, rule in profile.cells.items())
    yield from ((name, "value", quantity) for name, quantity in layout.quantities.items())


def _joined(cells: pl.DataFrame, column: str, parts: Sequence[str]) -> list[pl.Expr]:
    text = pl.concat_str([pl.col(name) for name in parts], separator=" ")
    if KIND_OF(parts[0]) not in cells.columns:
        return [text.alias(column)]
    # In workbooks, a date cell and a clock time in the next cell form one time.
    is_time = (pl.col(KIND_OF(parts[0])) == DATE) & (pl.col(KIND_OF(parts[1])) == DURATION) & (len(parts) == len("dt"))
    day, clock = pl.col(parts[0]).str.slice(0, 10), pl.col(parts[1])
    return [
        pl.when(is_time).then(pl.concat_str(day, pl.lit("T"), clock)).otherwise(text).alias(column),
        pl.when(is_time).then(pl.lit(DATE)).otherwise(pl.lit(TEXT)).alias(KIND_OF(column)),
    ]


def _read(cells: pl.DataFrame, name: str, rule: CellRule, profile: ReaderProfile) -> tuple[pl.DataFrame, pl.Series]:
    """Apply the steps of a rule to the texts of a column; return why a cell cannot be read, null for most."""
    kinds = cells[KIND_OF(name)] if KIND_OF(name) in cells.columns else None
    texts = before = cells[name]
    reasons = pl.Series([None], dtype=pl.String).new_from_index(0, len(texts))
    for reason, step in _steps(rule, profile.numbers, kinds):
        found = step(texts)
        failed = found.is_null() & texts.is_not_null()
        reasons = pl.Series([reason]).new_from_index(0, len(texts)).zip_with(failed, reasons)
        texts = found
    # What means "missing" may be a part of the cell. json_path gives "" where its path leads nowhere.
    texts = kept(texts, ~texts.is_in(["", *profile.nulls, *rule.nulls])).alias(name)
    if rule.append:
        texts = (texts + rule.append).alias(name)
    changed = [texts]
    if kinds is not None:
        is_text = texts.is_null() | (texts != before).fill_null(value=True)
        changed.append(pl.Series([TEXT]).new_from_index(0, len(kinds)).zip_with(is_text, kinds).alias(kinds.name))
    cells = cells.with_columns(changed)
    return without_null_numbers(cells, [name], profile) if rule.conversion else cells, reasons


def _steps(rule: CellRule, numbers: NumberLayout, kinds: pl.Series | None) -> Iterator[Step]:
    """Yield the steps of a rule, each with the reason of a cell for which it returns null."""
    if path := rule.json_path:
        yield "_not_json", lambda texts: _json_value(texts, path)
    if pattern := rule.extract:
        yield "_not_matched", lambda texts: texts.str.extract(pattern, 1)
    if rule.words:
        yield "_not_mapped", lambda texts: _words(texts, rule)
    if rule.number_in_text:
        yield "_not_one_number", lambda texts: _number_in(texts, numbers, kinds)


def _json_value(texts: pl.Series, path: str) -> pl.Series:
    """Return the values at a path; empty where it leads nowhere, null where the text is no JSON."""
    found = texts.str.json_path_match(f"$.{path}")
    if found.null_count() == texts.null_count():
        return found
    is_json = texts.str.json_path_match("$").is_not_null()
    return found.zip_with(~(found.is_null() & is_json), pl.Series([""]).new_from_index(0, len(texts)))


def _words(texts: pl.Series, rule: CellRule) -> pl.Series:
    meanings = {matched_name(word): meaning for word, meaning in rule.words.items()}
    distinct = texts.unique().drop_nulls().to_list()
    known = {text: meanings[word] for text in distinct if (word := matched_name(text)) in meanings}
    if rule.others == "keep":
        return texts.replace(known)
    return texts.replace_strict(known, default=None, return_dtype=pl.String)


def _number_in(texts: pl.Series, numbers: NumberLayout, kinds: pl.Series | None) -> pl.Series:
    """Return the one number in each text; null where there is none, or more than one."""
    found = texts.str.extract_all(_number_pattern(numbers))
    single = pl.DataFrame({"found": found}).select(
        pl.when(pl.col("found").list.len() == 1).then(pl.col("found").list.first())
    )
    only = single.to_series()
    if kinds is None:
        return only
    return texts.zip_with(kinds.is_in([NUMBER, PERCENT, INEXACT]).fill_null(value=False), only)


def _number_pattern(numbers: NumberLayout) -> str:
    mark = re.escape(numbers.decimal)
    grouped = ""
    if numbers.thousands:
        grouped = rf"[1-9][0-9]{{0,2}}(?:{re.escape(numbers.thousands)}[0-9]{{3}})+(?:{mark}[0-9]+)?|"
    return rf"[+-]?(?:{grouped}[0-9]+(?:{mark}[0-9]*)?|{mark}[0-9]+)(?:[eE][+-]?[0-9]+)?"
