"""Chunks of a table as text, whatever format they were read from, and the rows of a file that are not data."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import polars as pl

from ingest_project.readers.formats.csv_text import CANDIDATE_DELIMITERS, INVALID_BYTE
from ingest_project.readers.matching import FIRST_CELL
from ingest_project.readers.profile_parts import WHITESPACE
from ingest_project.readers.reader_profile import ReaderProfile

RAW_TEXT_BYTES = 64 * 1024
MALFORMED = pl.DataFrame(schema={"line_number": pl.Int64, "raw_text": pl.String, "reason": pl.String})


class Malformed(NamedTuple):
    """A record that is no row of the table.

    Args:
        line_number: physical line it starts on, the first line of the file is 1.
        raw_text: its text, shortened visibly when it is over 64 KiB.
        reason: `too_few_cells`, `too_many_cells`, `unbalanced_quote`, `row_too_long`, `nul_byte`,
            `invalid_bytes` (not in the file's encoding), or `repeated_header`.
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
        cells = pl.concat(
            [
                table.columns.select("line_number", pl.col(FIRST_CELL)),
                table.malformed.select("line_number", raw_cell.alias(FIRST_CELL)),
            ]
        )
        footer = cells.filter(pl.col(FIRST_CELL).str.contains(begins))["line_number"]
        if len(footer):
            yield table.where(pl.col("line_number") < footer.min())
            return
        yield table
