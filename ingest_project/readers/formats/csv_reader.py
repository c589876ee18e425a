"""CSV text to rows, block by block: by Arrow's reader where the text is regular, record by record elsewhere.

Text without delimiters, with cells between white space or at fixed positions of a line, has a splitter of its own
(`LineSplitter`): quotes mean nothing there, and every record is one line.

Arrow splits what is in form and hands over the rows of another width. It does not detect a misplaced quote, a NUL or a
row over the limit: a block with one of these is split by `csv_text.split_records`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from pyarrow import csv

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers import READINGS, Target
from ingest_project.readers.casting import TRIMMED, clean_name, kept
from ingest_project.readers.formats.csv_text import (
    INVALID_BYTE,
    LINE_END,
    Header,
    HeaderSearch,
    Record,
    find_header,
    is_blank,
    joined_names,
    split_records,
    text_blocks,
    without_comments,
)
from ingest_project.readers.layout import (
    MALFORMED,
    Malformed,
    ReadLimits,
    RowsChunk,
    TableChunk,
    layout_of,
    rows_chunk,
    rows_of_data,
    shortened,
)
from ingest_project.readers.matching import Layout, SameProfile, Surroundings, known_names
from ingest_project.readers.profile_parts import WHITESPACE
from ingest_project.readers.profiles import ReaderProfile

MAX_LINES_ABOVE = 1_000
CELL = r"[^ \t]+"


class Lines(NamedTuple):
    """Consecutive lines of a file, without their ends.

    Args:
        first: number of the first of them.
        texts: one for each line; a line over the row limit is cut just after the limit.
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
    lines, comment = _lines(blocks, limits.max_row_bytes), (profile.comment or "").encode()
    above: list[bytes] = []
    header: list[bytes] = []
    for chunk in lines:
        for index, line in enumerate(chunk.texts):
            if chunk.first + index <= profile.skip_lines or (comment and line.startswith(comment)):
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


def _lines(blocks: Iterable[tuple[bytes, bool]], max_row_bytes: int) -> Iterator[Lines]:
    carry, number, skipping = b"", 1, False
    for text, final in blocks:
        *texts, carry = LINE_END.split(carry + text)
        if final and carry:
            texts.append(carry)
        if skipping and texts:
            # The rest of an overlong line.
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
        profile: profile of the file.
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


MAX_LINES = 250_000
TAB, LF, CR, SPACE, QUOTE = b'\t\n\r "'
BLANKS = b" \t"
# Invisible characters at the ends of a cell, except line ends, which a quoted cell may contain.
UNSEEN_ENDS = TRIMMED.translate({ord("\r"): None, ord("\n"): None})
UNSEEN = frozenset(UNSEEN_ENDS) - set(" \t")
ORDINARY = bytes([*range(0x20, 0x7F), *b"\0\t\r\n"])

Positions = npt.NDArray[np.int64]


class CsvReader:
    """Reads CSV files; see `reading.Reader`."""

    def read(
        self, path: Path, profile: ReaderProfile, limits: ReadLimits, file_name: str, target: Target = READINGS
    ) -> Iterator[RowsChunk]:
        """Read one file; line numbers are physical lines."""
        blocks = text_blocks(path, profile.encoding, limits.chunk_bytes)
        if profile.fixed_width or profile.delimiter == WHITESPACE:
            above, names, lines = first_lines(blocks, profile, limits)
            layout = layout_of(names, profile, limits, Surroundings(file_name, above), target)
            tables = LineSplitter(layout, len(names), profile, limits.max_row_bytes).split(lines)
        else:
            header, text, final = find_header(blocks, header_search(SameProfile(profile), target, limits.max_row_bytes))
            if profile.header or profile.trailing_delimiter:
                header = header.without_spare_columns()
            header = header if profile.header else header.as_first_record()
            above = text[: header.own_start].decode("utf-8", "replace")
            layout = layout_of(header.names, profile, limits, Surroundings(file_name, above), target)
            rest = chain([(text[header.start :], final)], blocks)
            tables = split_blocks(rest, dialect_of(header, layout, profile, limits), header.line_number)
            if profile.header:
                tables = without_headers(tables, header, layout)
        for table in rows_of_data(tables, profile):
            yield rows_chunk(table.columns, table.malformed, table.raw_text, layout, profile)


READER = CsvReader()


def without_headers(tables: Iterator[TableChunk], header: Header, layout: Layout) -> Iterator[TableChunk]:
    """Reject the records that repeat the header, as in files that were put together: as texts they would be rows."""
    written = {name: header.names[index] for name, index in layout.wanted.items()}
    for table in tables:
        # In a file with a single column, the header's text may also be a value.
        found = table.columns if len(written) > 1 else table.columns.clear()
        for name, text in written.items():
            if not found.height:
                break
            # Comparing a column takes a fraction of the time of a filter, and usually the first column decides.
            same = found[name] == text
            found = found.filter(same) if same.any() else found.clear()
        if found.height:
            numbers = found["line_number"].to_list()
            rows = [Malformed(*row, "repeated_header") for row in zip(numbers, table.raw_text(numbers), strict=True)]
            columns = table.columns.filter(~pl.col("line_number").is_in(numbers))
            yield TableChunk(columns, pl.concat([table.malformed, _frame(rows)]).sort("line_number"), table.raw)
        else:
            yield table


@lru_cache(maxsize=64)
def header_search(same: SameProfile, target: Target, max_row_bytes: int) -> HeaderSearch:
    """Return how to find the header of files with one profile."""
    profile = same.profile
    return HeaderSearch(
        profile.delimiter,
        known_names(profile, target),
        profile.skip_lines,
        max_row_bytes,
        (profile.comment or "").encode(),
        profile.header_rows,
        profile.header_separator,
    )


@dataclass(frozen=True)
class Dialect:
    """How to split text into the cells that are wanted.

    Args:
        delimiter: one ASCII character.
        width: cells of every good record.
        wanted: the columns to read: the name each gets, and its index.
        nulls: texts that mean "missing".
        max_row_bytes: longer records are malformed.
        spare: columns without a name at the end of the header: as many further cells a record may have, all empty.
        comment: beginning of lines to ignore; empty for none.
    """

    delimiter: str
    width: int
    wanted: Mapping[str, int]
    nulls: frozenset[str]
    max_row_bytes: int
    spare: int = 0
    comment: bytes = b""


def dialect_of(header: Header, layout: Layout, profile: ReaderProfile, limits: ReadLimits) -> Dialect:
    """Return how to split the records below this header."""
    nulls = frozenset(profile.nulls)
    comment = (profile.comment or "").encode()
    width = len(header.names)
    spare = header.spare or int(profile.trailing_delimiter)
    return Dialect(header.delimiter, width, layout.wanted, nulls, limits.max_row_bytes, spare, comment)


def split_blocks(blocks: Iterable[tuple[bytes, bool]], dialect: Dialect, line_number: int) -> Iterator[TableChunk]:
    """Yield all records of the text.

    Args:
        blocks: text, and whether it is the last; the first begins where a record begins.
        dialect: how to split it.
        line_number: physical line the first block begins on.

    Memory stays within a few times the block size and the row limit: of a longer line only the beginning is kept.
    """
    carry = b""
    skipping = False
    for text, final in _halve_long_blocks(blocks):
        if skipping:
            match = LINE_END.search(text)
            if match is None:
                continue
            text, skipping, line_number = text[match.end() :], False, line_number + 1  # noqa: PLW2901 - the rest of it
        block, consumed = without_comments(carry + text, dialect.comment, final=final), -1
        while consumed and block and (final or consumed < 0 or len(block) > dialect.max_row_bytes):
            chunk, consumed, lines = _split(block, dialect, line_number, final=final)
            if chunk is not None:
                yield chunk
            line_number += lines
            block = block[consumed:]
        carry = block
        if len(carry) > dialect.max_row_bytes:
            yield _chunk_of_records([], [Malformed(line_number, shortened(carry), "row_too_long")], dialect, {})
            carry, skipping = b"", True


def _halve_long_blocks(blocks: Iterable[tuple[bytes, bool]]) -> Iterator[tuple[bytes, bool]]:
    """Halve blocks of very many, very short lines: each line costs memory, however short it is."""
    for text, final in blocks:
        middle = len(text) // 2
        if middle > MAX_LINES and text.count(b"\n") + text.count(b"\r") > MAX_LINES:
            middle += text[middle - 1 : middle + 1] == b"\r\n"
            yield from _halve_long_blocks([(text[:middle], False), (text[middle:], final)])
        else:
            yield text, final


def _split(text: bytes, dialect: Dialect, line_number: int, *, final: bool) -> tuple[TableChunk | None, int, int]:
    """Return the chunk of a block's complete records, its length in bytes and in lines."""
    regular = read_regular(text, dialect, line_number, final=final)
    if regular is not None:
        return regular
    records = list(split_records(text, dialect.delimiter, final=final, max_row_bytes=dialect.max_row_bytes))
    if not records:
        return None, 0, 0
    good, malformed, raw = [], [], {}
    for record in records:
        number, written = record.line + line_number, text[record.start : record.end]
        if is_blank(written, dialect.delimiter):
            continue
        if reason := record.reason or _reason(written, record.cells or [], dialect):
            malformed.append(Malformed(number, shortened(written), reason))
        else:
            good.append((number, record))
            raw[number] = written
    last = records[-1]
    return _chunk_of_records(good, malformed, dialect, raw), last.after, last.line + last.lines


def _chunk_of_records(
    good: Sequence[tuple[int, Record]], malformed: Sequence[Malformed], dialect: Dialect, raw: Mapping[int, bytes]
) -> TableChunk:
    columns: dict[str, pl.Series] = {"line_number": pl.Series([number for number, _ in good], dtype=pl.Int64)}
    for name, position in dialect.wanted.items():
        texts = ((record.cells or [])[position].decode().strip(UNSEEN_ENDS) for _, record in good)
        found = [None if text == "" or text in dialect.nulls else text for text in texts]
        columns[name] = pl.Series(found, dtype=pl.String)
    return TableChunk(pl.DataFrame(columns), _frame(malformed), raw.__getitem__)


def _frame(malformed: Sequence[Malformed]) -> pl.DataFrame:
    return pl.DataFrame(malformed, schema=MALFORMED.schema, orient="row") if malformed else MALFORMED


def _reason(raw: bytes, cells: Sequence[bytes], dialect: Dialect) -> str | None:
    """Return why a record with these cells is no row of its table; None for a valid row."""
    if b"\0" in raw:
        return "invalid_bytes" if INVALID_BYTE.encode() in raw else "nul_byte"
    fits = dialect.width <= len(cells) <= dialect.width + dialect.spare
    if fits and not any(cell.strip(BLANKS) for cell in cells[dialect.width :]):
        return None
    return _fault_of_width(raw, len(cells), dialect)


def _fault_of_width(raw: bytes, cells: int, dialect: Dialect) -> str:
    if cells < dialect.width:
        return "too_few_cells"
    ends = raw.rstrip(b" ").endswith(dialect.delimiter.encode())
    return "trailing_delimiter" if ends and cells == dialect.width + 1 else "too_many_cells"


@dataclass(frozen=True)
class _RecordIndex:
    """Positions of the records of a regular block.

    Args:
        text: complete records, with correct quotes.
        first_line: physical line it begins on.
        quotes: positions of all quotes.
    """

    text: bytes
    first_line: int
    quotes: Positions

    @cached_property
    def _line_ends(self) -> Positions:
        codes = np.frombuffer(self.text, np.uint8)
        ends = np.flatnonzero(codes == LF)
        if b"\r" in self.text:
            returns = np.flatnonzero(codes == CR)
            lone = returns[codes[np.minimum(returns + 1, codes.size - 1)] != LF]
            ends = np.sort(np.concatenate([ends, lone]))
        return ends if len(ends) and ends[-1] == codes.size - 1 else np.append(ends, codes.size)

    @cached_property
    def _last_lines(self) -> Positions:
        """The last line of each record, counted from 0."""
        return np.flatnonzero((np.searchsorted(self.quotes, self._line_ends) & 1) == 0)

    @property
    def line_count(self) -> int:
        return len(self._line_ends)

    @cached_property
    def line_numbers(self) -> Positions:
        """Physical line that each record starts on."""
        if not len(self.quotes):
            return np.arange(self.first_line, self.first_line + self.line_count)
        return np.append(0, self._last_lines[:-1] + 1) + self.first_line

    @cached_property
    def bounds(self) -> Positions:
        """Start of each record, and the end of the last one."""
        return np.append(0, self._line_ends[self._last_lines] + 1)

    def raw(self, line_number: int) -> bytes:
        record = int(self.line_numbers.searchsorted(line_number)) if len(self.quotes) else line_number - self.first_line
        raw = self.text[self.bounds[record] : self.bounds[record + 1]]
        return raw.removesuffix(b"\n").removesuffix(b"\r") if raw.endswith(b"\n") else raw.removesuffix(b"\r")


def _index(text: bytes, dialect: Dialect, line_number: int, *, final: bool) -> _RecordIndex | None:
    """Find the complete records of a block; None where it is not regular, or has none."""
    if b"\0" in text or not text:
        return None
    codes = np.frombuffer(text, np.uint8)
    quotes = np.flatnonzero(codes == QUOTE) if b'"' in text else np.empty(0, np.int64)
    index = _RecordIndex(text, line_number, quotes)
    if not final:
        end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        if len(quotes):
            closed = index.bounds[index.bounds <= end]
            end = int(closed[-1]) if len(closed) else 0
        if not end:
            return None
        index = _RecordIndex(text[:end], line_number, quotes[: np.searchsorted(quotes, end)])
    if len(quotes) and not _has_regular_quotes(index, dialect.delimiter):
        return None
    return None if len(text) > dialect.max_row_bytes and np.diff(index.bounds).max() > dialect.max_row_bytes else index


def _has_regular_quotes(index: _RecordIndex, delimiter: str) -> bool:
    """Return True if each opening quote begins a cell or is the second of a pair, and each closing one ends a cell."""
    quotes = index.quotes
    if len(quotes) % 2:
        return False
    opening, closing = quotes[::2], quotes[1::2]
    codes = np.frombuffer(b"\n" + index.text + b"\n", np.uint8)
    bound = np.zeros(256, np.bool_)
    bound[[LF, CR, ord(delimiter)]] = True
    doubled = opening[1:] == closing[:-1] + 1
    begins, ends = bound[codes[opening]], bound[codes[closing + 2]]
    begins[1:] |= doubled
    ends[:-1] |= doubled
    return bool(begins.all() and ends.all())


def read_regular(text: bytes, dialect: Dialect, line_number: int, *, final: bool) -> tuple[TableChunk, int, int] | None:
    """Read a block by Arrow.

    Returns:
        the chunk of its complete records, its length in bytes and in lines; None where the block is not
        regular, has no complete record, or uses the spare columns of its header.
    """
    index = _index(text, dialect, line_number, final=final)
    if index is None:
        return None
    irregular: list[csv.InvalidRow] = []
    cells = _read_by_arrow(index, dialect, irregular)
    spare = [cells[position] for position in range(dialect.width, dialect.width + dialect.spare)]
    if spare and (irregular or any(column.null_count() < len(column) for column in spare)):
        return None
    numbers = index.line_numbers
    if irregular:
        numbers = np.delete(numbers, [row.number - 1 for row in irregular])
    columns = [pl.Series("line_number", numbers, pl.Int64)]
    columns += [cells[position].alias(name) for name, position in dialect.wanted.items()]
    malformed = [
        Malformed(
            int(index.line_numbers[row.number - 1]),
            shortened(row.text.encode()),
            _fault_of_width(row.text.encode(), row.actual_columns, dialect),
        )
        for row in irregular
        if not is_blank(row.text.encode(), dialect.delimiter)
    ]
    chunk = TableChunk(_without_blank(pl.DataFrame(columns), index, dialect), _frame(malformed), index.raw)
    return chunk, len(index.text), index.line_count


def _read_by_arrow(index: _RecordIndex, dialect: Dialect, irregular: list[csv.InvalidRow]) -> dict[int, pl.Series]:
    """Return the wanted and the spare columns by their index, trimmed; null is missing.

    Rows of another width are left out and appended to `irregular`.
    """

    def skip(row: csv.InvalidRow) -> str:
        irregular.append(row)
        return "skip"

    names = [str(position) for position in range(dialect.width + dialect.spare)]
    included = sorted({*dialect.wanted.values(), *range(dialect.width, len(names))})
    quoted = len(index.quotes) > 0
    nulls = ["", *dialect.nulls]
    # `read_csv` would start a thread for each file.
    reader = csv.open_csv(
        pa.BufferReader(index.text),
        csv.ReadOptions(use_threads=False, column_names=names, block_size=len(index.text) + 1),
        csv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char='"' if quoted else False,
            newlines_in_values=quoted,
            ignore_empty_lines=False,
            invalid_row_handler=skip,
        ),
        csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=[names[position] for position in included],
            null_values=nulls,
            strings_can_be_null=True,
            check_utf8=False,
        ),
    )
    columns = reader.read_all().columns
    cells = {position: pl.Series(values=column) for position, column in zip(included, columns, strict=True)}
    to_trim = _characters_to_trim(index.text, index.quotes, dialect.delimiter)
    return {position: _trimmed(column, to_trim, nulls) for position, column in cells.items()} if to_trim else cells


def _trimmed(column: pl.Series, characters: str, nulls: Sequence[str]) -> pl.Series:
    trimmed = column.str.strip_chars(characters)
    return kept(trimmed, ~trimmed.is_in(nulls))


def _characters_to_trim(text: bytes, quotes: Positions, delimiter: str) -> str:
    """Return the characters to strip from the ends of cells; empty if no cell has any."""
    # Most files have few or no characters beyond ASCII.
    if not UNSEEN.isdisjoint(text.translate(None, ORDINARY).decode()):
        return UNSEEN_ENDS
    if b" " not in text and b"\t" not in text:
        return ""
    codes = np.frombuffer(text, np.uint8)
    if delimiter == "\t" and ((codes[quotes[::2] + 1] == TAB) | (codes[quotes[1::2] - 1] == TAB)).any():
        return " \t"
    blanks = np.flatnonzero((codes == SPACE) | ((codes == TAB) if delimiter != "\t" else False))
    if not len(blanks):
        return ""
    if blanks[0] == 0 or blanks[-1] == codes.size - 1:
        return " \t"
    edges = np.zeros(256, np.bool_)
    edges[[LF, CR, QUOTE, ord(delimiter)]] = True
    return " \t" if edges[codes[blanks - 1]].any() or edges[codes[blanks + 1]].any() else ""


def _without_blank(columns: pl.DataFrame, index: _RecordIndex, dialect: Dialect) -> pl.DataFrame:
    """Drop the rows of nothing but delimiters and blanks; only the text of rows without any cell is checked."""
    if any(not column.null_count() for column in columns.get_columns()[1:]):
        return columns
    candidates = columns.select(pl.all_horizontal(pl.exclude("line_number").is_null())).to_series()
    blank = [n for n in columns["line_number"].filter(candidates) if is_blank(index.raw(n), dialect.delimiter)]
    return columns.filter(~pl.col("line_number").is_in(blank)) if blank else columns
