"""Text files without delimiters: cells between runs of white space, or at fixed positions of a line.

Quotes mean nothing here, and every record is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import polars as pl

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.casting import TRIMMED, clean_name, kept
from ingest_project.readers.formats.csv_text import INVALID_BYTE, LINE_END, joined_names
from ingest_project.readers.formats.table_chunks import MALFORMED, TableChunk, shortened
from ingest_project.readers.layout import Layout, ReadLimits
from ingest_project.readers.reader_profile import ReaderProfile

MAX_LINES_ABOVE = 1_000
CELL = r"[^ \t]+"


class Lines(NamedTuple):
    """Consecutive lines of a file, without their ends.

    Args:
        first: number of the first of them.
        texts: one for each line; one over the row limit is cut just behind it.
    """

    first: int
    texts: list[bytes]


def first_lines(
    blocks: Iterable[tuple[bytes, bool]], profile: ReaderProfile, limits: ReadLimits
) -> tuple[str, list[str], Iterator[Lines]]:
    """Read the header.

    Returns:
        the lines above it, the names of the columns, and the lines from the first record on.

    Raises:
        FileRejectedError: `empty_file`: no line has text.
    """
    lines = _lines(blocks, limits.max_row_bytes)
    above: list[bytes] = []
    header: list[bytes] = []
    for chunk in lines:
        for index, line in enumerate(chunk.texts):
            if chunk.first + index <= profile.skip_lines or _is_comment(line, profile):
                above += [line] if len(above) < MAX_LINES_ABOVE else []
                continue
            header += [line] if line.strip(b" \t") else []
            if len(header) == profile.header_rows or (header and not profile.header):
                own = index + profile.header
                rest = Lines(chunk.first + own, chunk.texts[own:])
                return b"\n".join(above).decode("utf-8", "replace"), _names(header, profile), chain([rest], lines)
    raise FileRejectedError("empty_file", "The file has no line with text.")


def _names(header: Sequence[bytes], profile: ReaderProfile) -> list[str]:
    if profile.fixed_width:
        return [*profile.fixed_width]
    rows = [[clean_name(name) for name in line.decode("utf-8", "replace").split()] for line in header]
    if not profile.header:
        return [str(number) for number in range(1, len(rows[0]) + 1)]
    return joined_names(rows, profile.header_separator)


def _is_comment(line: bytes, profile: ReaderProfile) -> bool:
    return profile.comment is not None and line.startswith(profile.comment.encode())


def _lines(blocks: Iterable[tuple[bytes, bool]], max_row_bytes: int) -> Iterator[Lines]:
    carry, number, skipping = b"", 1, False
    for text, final in blocks:
        *texts, carry = LINE_END.split(carry + text)
        if final and carry:
            texts.append(carry)
        if skipping and texts:
            # The rest of a line that was too long.
            texts[0], skipping = b"", False
        yield Lines(number, texts)
        number += len(texts)
        if len(carry) > max_row_bytes and not final:
            if not skipping:
                yield Lines(number, [carry[: max_row_bytes + 1]])
            carry, skipping = b"", True


@dataclass(frozen=True)
class LineSplitter:
    """Splits lines into the cells that are wanted.

    Args:
        layout: which columns to read.
        width: how many columns there are.
        profile: of the file.
        max_row_bytes: longer lines are malformed.
    """

    layout: Layout
    width: int
    profile: ReaderProfile
    max_row_bytes: int

    def split(self, lines: Iterable[Lines]) -> Iterator[TableChunk]:
        """Yield the records of a file, from its first record on."""
        for chunk in lines:
            texts = pl.Series("text", [line.decode("utf-8", "replace") for line in chunk.texts], dtype=pl.String)
            numbers = pl.Series("line_number", range(chunk.first, chunk.first + len(texts)), dtype=pl.Int64)
            table = pl.DataFrame([numbers, texts]).filter(pl.col("text").str.strip_chars(" \t") != "")
            if self.profile.comment:
                table = table.filter(~pl.col("text").str.starts_with(self.profile.comment))
            yield self._chunk(table, chunk)

    def _chunk(self, table: pl.DataFrame, lines: Lines) -> TableChunk:
        cells, count = self._fixed() if self.profile.fixed_width else self._separate()
        table = table.with_columns(pl.col("text").str.extract_all(CELL).alias("cells"))
        table = table.with_columns(self._reason(count).alias("reason"))
        bad = table.filter(pl.col("reason").is_not_null())
        raw_text = pl.Series("raw_text", [shortened(line.encode()) for line in bad["text"]], pl.String)
        columns = table.filter(pl.col("reason").is_null()).select(
            "line_number", *(cells(index).str.strip_chars(TRIMMED).alias(n) for n, index in self.layout.wanted.items())
        )
        nulls = ["", *self.profile.nulls]
        columns = columns.with_columns(kept(columns[name], ~columns[name].is_in(nulls)) for name in self.layout.wanted)
        malformed = bad.with_columns(raw_text).select(MALFORMED.columns)
        return TableChunk(columns, malformed, lambda number: lines.texts[number - lines.first])

    def _separate(self) -> tuple[Callable[[int], pl.Expr], pl.Expr]:
        return lambda index: pl.col("cells").list.get(index, null_on_oob=True), pl.col("cells").list.len()

    def _fixed(self) -> tuple[Callable[[int], pl.Expr], pl.Expr]:
        """Cut cells by their positions; a line may end early, but nothing may follow the last column."""
        bounds = [tuple(map(int, positions.split("-"))) for positions in self.profile.fixed_width.values()]
        end = max(last for _, last in bounds)
        spare = (pl.col("text").str.slice(end).str.strip_chars(" \t") != "").cast(pl.Int64)
        return lambda index: pl.col("text").str.slice(bounds[index][0] - 1, bounds[index][1] - bounds[index][0] + 1), (
            spare + self.width
        )

    def _reason(self, count: pl.Expr) -> pl.Expr:
        text = pl.col("text")
        broken = {
            "row_too_long": text.str.len_bytes() > self.max_row_bytes,
            "invalid_bytes": text.str.contains(INVALID_BYTE, literal=True),
            "nul_byte": text.str.contains("\0", literal=True),
            "too_few_cells": count < self.width,
            "too_many_cells": count > self.width,
        }
        return pl.coalesce(pl.when(condition).then(pl.lit(reason)) for reason, condition in broken.items())
