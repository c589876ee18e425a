"""Chunks of a table as text, whatever its format; its rows in the columns of their target; the limits of reading.

Cells are converted as the profile says, column by column: parts, words and numbers in text, scales and units.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

import polars as pl

from ingest_project.core.errors import LimitExceededError, SettingsError
from ingest_project.core.settings import FileIngestSettings
from ingest_project.readers import READINGS, RESCUED, Target
from ingest_project.readers.casting import KIND_OF, kept, matched_name, scaled_numbers, without_null_numbers
from ingest_project.readers.cells import DATE, DURATION, INEXACT, NUMBER, PERCENT, TEXT
from ingest_project.readers.formats.csv_text import CANDIDATE_DELIMITERS, INVALID_BYTE
from ingest_project.readers.matching import FIRST_CELL, Layout, SameProfile, Surroundings, match_columns
from ingest_project.readers.profile_parts import WHITESPACE, CellRule, NumberLayout, Scale
from ingest_project.readers.profiles import ReaderProfile

MAX_ROW_LIMIT_BYTES = 256 * 1024**2


def _default(name: str) -> Any:  # noqa: ANN401 - of any type
    return FileIngestSettings.model_fields[name].default


@dataclass(frozen=True)
class ReadLimits:
    """Limits of reading one file; names and defaults are those of the settings.

    Args:
        chunk_bytes: text that is read at a time. Reading needs about thirty times as much memory.
    """

    max_row_bytes: int = _default("max_row_bytes")
    max_columns: int = _default("max_columns")
    max_excel_bytes: int = _default("max_excel_bytes")
    max_excel_cells: int = _default("max_excel_cells")
    max_excel_memory_bytes: int = _default("max_excel_memory_bytes")
    max_excel_seconds: float = _default("max_excel_seconds")
    max_parquet_memory_bytes: int = _default("max_parquet_memory_bytes")
    max_parquet_seconds: float = _default("max_parquet_seconds")
    max_json_depth: int = _default("max_json_depth")
    max_expanded_bytes: int = _default("max_expanded_bytes")
    max_expansion_ratio: int = _default("max_expansion_ratio")
    max_archive_members: int = _default("max_archive_members")
    max_archive_depth: int = _default("max_archive_depth")
    chunk_bytes: int = 1024**2

    def __post_init__(self) -> None:
        if self.max_row_bytes > MAX_ROW_LIMIT_BYTES:
            raise SettingsError(f"INGEST_MAX_ROW_BYTES can be at most {MAX_ROW_LIMIT_BYTES}: a row is kept in memory.")

    @classmethod
    def from_settings(cls, settings: FileIngestSettings) -> ReadLimits:
        """Return the limits that are in force."""
        names = (each.name for each in fields(cls) if each.name != "chunk_bytes")
        return cls(**{name: getattr(settings, name) for name in names})


RawText = Callable[[Sequence[int]], list[str]]
"""Returns the records that start on some lines, as they were written, shortened visibly when over 64 KiB."""


@dataclass(frozen=True)
class RowsChunk:
    """Some consecutive rows of a file.

    Args:
        rows: line_number (physical line, or row of the sheet, on which the record starts) and the columns of the
            target; all but the first are text, trimmed, and null where missing. Of a workbook also the kind of each of
            these cells, see `cells.Cell`. With `Target.keep_unknown` also `rescued_data`, the text of the file's
            other cells by column name, as a JSON object; null where all are missing.
        malformed: line_number, raw_text and reason of records that are no rows, see `csv_reader.Malformed`.
        raw_text: returns the records that start on these lines of `rows`, in any order.
        unknown_columns: columns of the file that are neither wanted nor left out on purpose; the second of a name is
            called `name [2]`.
        missing_columns: columns of the target that the file leaves out.
        reordered: True if the columns that are found by their own name have another order than the target's.
        left_out: files of the archive that the profile does not choose.
    """

    rows: pl.DataFrame
    malformed: pl.DataFrame
    raw_text: RawText
    unknown_columns: tuple[str, ...] = ()
    missing_columns: tuple[str, ...] = ()
    reordered: bool = False
    left_out: tuple[str, ...] = ()


def to_rows(table: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """Convert a table's rows to those of the target: line_number and its columns, all of them text.

    In a wide file one row becomes as many readings as it has quantities that are not empty, in the profile's order.
    The kinds of cells, if the table has them, are kept.
    """
    if layout.rescued:
        table = table.with_columns(_rescued(layout.rescued))
    elif layout.target.keep_unknown and RESCUED not in table.columns:
        table = table.hstack([pl.Series(RESCUED, [None], pl.String).new_from_index(0, table.height)])
    if not layout.quantities:
        return _ordered(table, layout.constants, layout.target)
    parts = []
    for name, quantity in layout.quantities.items():
        names = {name: "value", KIND_OF(name): KIND_OF("value")}
        rows = table.filter(pl.col(name).is_not_null()).rename(names, strict=False)
        constants = {**layout.constants, "sensor_type": quantity.sensor_type, "unit": quantity.to or quantity.unit}
        parts.append(_ordered(rows, constants, layout.target))
    return pl.concat(parts).sort("line_number", maintain_order=True)


def _rescued(columns: Mapping[str, str]) -> pl.Expr:
    """Return the cells of unknown columns as the text of one JSON object, without the missing ones."""
    members = [
        # A missing cell makes its member null, which is then left out.
        pl.when(pl.col(cell).is_not_null()).then(
            pl.struct(pl.col(cell).alias(name)).struct.json_encode().str.strip_prefix("{").str.strip_suffix("}")
        )
        for cell, name in columns.items()
    ]
    joined = pl.concat_str(members, separator=",", ignore_nulls=True)
    return pl.when(joined != "").then("{" + joined + "}").alias(RESCUED)


def _ordered(table: pl.DataFrame, constants: Mapping[str, str | None], target: Target) -> pl.DataFrame:
    columns = ["line_number", *target.columns, *([RESCUED] if target.keep_unknown else [])]
    if table.columns == columns:
        return table
    if any(KIND_OF(name) in table.columns for name in target.columns):
        columns += [KIND_OF(name) for name in target.columns]
        constants = dict.fromkeys(map(KIND_OF, constants)) | dict(constants)
    return table.select(
        pl.lit(constants[name], pl.String).alias(name) if name in constants else pl.col(name) for name in columns
    )


def layout_of(
    names: Sequence[str],
    profile: ReaderProfile,
    limits: ReadLimits,
    surroundings: Surroundings | str,
    target: Target = READINGS,
) -> Layout:
    """Match a header with the profile, within the limit of columns.

    Args:
        names: of the header.
        profile: of the file.
        limits: of the number of columns.
        surroundings: the file's location, and other texts around its rows.
        target: the columns wanted.
    """
    if len(names) > limits.max_columns:
        raise LimitExceededError("INGEST_MAX_COLUMNS", f"The file has {len(names)} columns, over {limits.max_columns}")
    around = Surroundings(surroundings) if isinstance(surroundings, str) else surroundings
    if profile.takes_texts:
        return match_columns(names, profile, around, target)
    return _layout_of_header(tuple(names), SameProfile(profile), target)


@lru_cache(maxsize=64)
def _layout_of_header(names: tuple[str, ...], same: SameProfile, target: Target) -> Layout:
    """Match the header that many files share once."""
    return match_columns(names, same.profile, Surroundings(""), target)


def rows_chunk(
    cells: pl.DataFrame, malformed: pl.DataFrame, raw_text: RawText, layout: Layout, profile: ReaderProfile
) -> RowsChunk:
    """Return the rows of the target that some rows of a table are."""
    refused: Sequence[pl.DataFrame] = ()
    if layout.converts:
        cells, refused = read_cells(without_skipped(cells, layout), layout, profile)
    for bad in refused:
        texts = pl.Series("raw_text", raw_text(bad["line_number"].to_list()), pl.String)
        malformed = malformed.vstack(bad.with_columns(texts).select(malformed.columns))
    if refused:
        malformed = malformed.sort("line_number", maintain_order=True)
    cells = without_null_numbers(cells, layout.numbers, profile)
    if layout.converts:
        cells = converted(cells, layout, profile)
    rows = to_rows(cells, layout)
    return RowsChunk(rows, malformed, raw_text, layout.unknown, layout.missing, layout.reordered)


RAW_TEXT_BYTES = 64 * 1024
MALFORMED = pl.DataFrame(schema={"line_number": pl.Int64, "raw_text": pl.String, "reason": pl.String})


class Malformed(NamedTuple):
    """A record that is no row of the table.

    Args:
        line_number: physical line it starts on, the first line of the file is 1.
        raw_text: its text, shortened visibly when it is over 64 KiB.
        reason: `too_few_cells`, `too_many_cells`, `trailing_delimiter` (one more cell, which is empty),
            `unbalanced_quote`, `row_too_long`, `nul_byte`, `invalid_bytes` (not in the file's encoding), or
            `repeated_header`.
    """

    line_number: int
    raw_text: str
    reason: str


@dataclass(frozen=True)
class TableChunk:
    """The records of one block.

    Args:
        columns: `line_number` and the wanted columns as text, one row per good record; null is missing.
        malformed: the other records, except blank ones: line_number, raw_text, reason.
        raw: returns the record that starts on a line, as it was written.
    """

    columns: pl.DataFrame
    malformed: pl.DataFrame
    raw: Callable[[int], bytes]

    def raw_text(self, line_numbers: Sequence[int]) -> list[str]:
        """Return the text of the good records that start on these lines, shortened visibly when it is long."""
        return [shortened(self.raw(number)) for number in line_numbers]

    @property
    def line_numbers(self) -> pl.Series:
        """The numbers of all its records, in their order."""
        return pl.concat([self.columns["line_number"], self.malformed["line_number"]]).sort()

    def where(self, condition: pl.Expr) -> TableChunk:
        """Keep the records for which a condition on their line number holds."""
        return replace(self, columns=self.columns.filter(condition), malformed=self.malformed.filter(condition))


def shortened(raw: bytes) -> str:
    """Return text to display: at most RAW_TEXT_BYTES of it, NUL and invalid bytes as hexadecimal digits."""
    text = raw[:RAW_TEXT_BYTES].decode("utf-8", "ignore" if len(raw) > RAW_TEXT_BYTES else "replace")
    visible = text.replace(INVALID_BYTE, "\\x").replace("\0", "\\x00") if "\0" in text else text
    return visible if len(raw) <= RAW_TEXT_BYTES else f"{visible}… [{len(raw)} bytes]"


def rows_of_data(tables: Iterator[TableChunk], profile: ReaderProfile) -> Iterator[TableChunk]:
    """Leave out the rows below the header and at the end of the file that are not data."""
    if profile.skip_below_header:
        tables = _without_first(tables, profile.skip_below_header)
    if profile.footer.begins:
        tables = _without_footer(tables, profile.footer.begins, profile.delimiter)
    if profile.footer.rows:
        tables = _without_last(tables, profile.footer.rows)
    return tables


def _without_first(tables: Iterator[TableChunk], count: int) -> Iterator[TableChunk]:
    for table in tables:
        numbers = table.line_numbers.head(count)
        count -= len(numbers)
        yield table.where(pl.col("line_number") > numbers[-1]) if len(numbers) else table


def _without_last(tables: Iterator[TableChunk], count: int) -> Iterator[TableChunk]:
    held: deque[TableChunk] = deque()
    for table in tables:
        held.append(table)
        while sum(len(each.line_numbers) for each in held) - len(held[0].line_numbers) >= count:
            yield held.popleft()
    kept: list[TableChunk] = []
    for table in reversed(held):
        numbers = table.line_numbers.tail(count)
        count -= len(numbers)
        kept.append(table.where(pl.col("line_number") < numbers[0]) if len(numbers) else table)
    yield from reversed(kept)


def _without_footer(tables: Iterator[TableChunk], begins: str, delimiter: str | None) -> Iterator[TableChunk]:
    marks = " \t" if delimiter == WHITESPACE else delimiter or "".join(CANDIDATE_DELIMITERS)
    raw_cell = pl.col("raw_text").str.extract(rf'^[ \t]*"?([^"{re.escape(marks)}]*)', 1)
    for table in tables:
        bad = table.malformed.select("line_number", raw_cell.alias(FIRST_CELL))
        cells = pl.concat([table.columns.select("line_number", FIRST_CELL), bad])
        footer = cells.filter(pl.col(FIRST_CELL).str.contains(begins))["line_number"]
        if len(footer):
            yield table.where(pl.col("line_number") < footer.min())
            return
        yield table


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
            cells = _scaled(cells, name, rule.conversion, profile.numbers, exact=layout.target != READINGS)
    if profile.sensor_types and "sensor_type" in cells.columns:
        cells = _by_sensor_type(cells, profile)
    return cells


def _scaled(cells: pl.DataFrame, name: str, conversion: Scale, numbers: NumberLayout, *, exact: bool) -> pl.DataFrame:
    """Scale a column: `exact` for one that may be decimal, while a reading is a float, which has no more digits."""
    kinds = cells[KIND_OF(name)] if KIND_OF(name) in cells.columns else None
    texts = scaled_numbers(cells[name], kinds, numbers, conversion, exact=exact)
    is_number = texts.is_not_null()
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
        scale = quantity.conversion
        parts.append(_scaled(rows, "value", scale, profile.numbers, exact=False) if scale else rows)
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
    # A text that means "missing" may be a part of the cell. json_path returns "" for a path without a value.
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
    """Return the one number in each text; null for a text with no number or several."""
    found = texts.str.extract_all(_number_pattern(numbers))
    only = kept(found.list.first(), found.list.len() == 1)
    if kinds is None:
        return only
    return texts.zip_with(kinds.is_in([NUMBER, PERCENT, INEXACT]).fill_null(value=False), only)


def _number_pattern(numbers: NumberLayout) -> str:
    mark = re.escape(numbers.decimal)
    grouped = ""
    if numbers.thousands:
        grouped = rf"[1-9][0-9]{{0,2}}(?:{re.escape(numbers.thousands)}[0-9]{{3}})+(?:{mark}[0-9]+)?|"
    return rf"[+-]?(?:{grouped}[0-9]+(?:{mark}[0-9]*)?|{mark}[0-9]+)(?:[eE][+-]?[0-9]+)?"
