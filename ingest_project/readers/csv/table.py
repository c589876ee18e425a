"""CSV text to columns of text, block by block: the clean blocks vectorised, the odd ones with care."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.csv.arrow_strings import Positions, TextBlock, column_of, text_columns
from ingest_project.readers.csv.fallback_tokenizer import LINE_END, Record, split_carefully
from ingest_project.readers.csv.rejects import (
    INVALID_BYTE,
    Dialect,
    Malformed,
    frame_of,
    is_blank,
    reason_for,
    shortened,
    sort_out,
)
from ingest_project.readers.csv.row_index import RecordIndex, index_records

MOST_LINES = 250_000


@dataclass(frozen=True)
class TableChunk:
    """The records of one block.

    Args:
        columns: `line_number` and the wanted columns as text, one row per good record; null is missing.
        line_numbers: physical line each good record starts on, ascending.
        malformed: the other records, except blank ones: line_number, raw_text, reason.
        block: the text; starts, ends: the place of each good record in it.
    """

    columns: pl.DataFrame
    line_numbers: Positions
    malformed: pl.DataFrame
    block: TextBlock
    starts: Positions
    ends: Positions

    def raw_text(self, line_numbers: Sequence[int]) -> list[str]:
        """The text of the good records that start on these lines, shortened visibly when it is long."""
        places = np.searchsorted(self.line_numbers, np.asarray(line_numbers, np.int64))
        return [shortened(self.block.slice(int(self.starts[i]), int(self.ends[i]))) for i in places]


def split_blocks(blocks: Iterable[tuple[bytes, bool]], dialect: Dialect, line_number: int) -> Iterator[TableChunk]:
    """All records of the text.

    Args:
        blocks: text, and whether it is the last; the first begins where a record begins.
        dialect: how to split it.
        line_number: physical line the first block begins on.

    Memory stays within a few times the block size and the row limit: of a longer line only the beginning is kept.
    """
    carry = b""
    skipping = False
    for text, final in _bounded(blocks):
        if skipping:
            match = LINE_END.search(text)
            if match is None:
                continue
            text, skipping, line_number = text[match.end() :], False, line_number + 1  # noqa: PLW2901 - the rest of it
        block, consumed = TextBlock.of(carry, text), -1
        while consumed and block.size and (final or consumed < 0 or block.size > dialect.max_row_bytes):
            chunk, consumed, lines = _split(block, dialect, line_number, final=final)
            if chunk is not None:
                yield chunk
            line_number += lines
            block = TextBlock.of(block.slice(consumed, block.size)) if consumed else block
        carry = block.slice(0, block.size)
        if len(carry) > dialect.max_row_bytes:
            yield _malformed_only(Malformed(line_number, shortened(carry), "row_too_long"), dialect)
            carry, skipping = b"", True


def _bounded(blocks: Iterable[tuple[bytes, bool]]) -> Iterator[tuple[bytes, bool]]:
    """The same text, with blocks of very many, very short lines halved: each line costs memory, however short it is."""
    for text, final in blocks:
        middle = len(text) // 2
        if middle > MOST_LINES and text.count(b"\n") + text.count(b"\r") > MOST_LINES:
            middle += text[middle - 1 : middle + 1] == b"\r\n"
            yield from _bounded([(text[:middle], False), (text[middle:], final)])
        else:
            yield text, final


def _split(block: TextBlock, dialect: Dialect, line_number: int, *, final: bool) -> tuple[TableChunk | None, int, int]:
    """The chunk of a block's complete records, the bytes they take and the lines they span."""
    index = index_records(block, ord(dialect.delimiter), final=final)
    if index is not None and int((index.ends - index.starts).max()) <= dialect.max_row_bytes:
        return _chunk_of_index(block, index, dialect, line_number), index.consumed, index.line_count
    if index is None and not final and block.size <= dialect.max_row_bytes:
        return None, 0, 0
    text = block.slice(0, block.size)
    records = list(split_carefully(text, dialect.delimiter.encode(), final=final, max_row_bytes=dialect.max_row_bytes))
    if not records:
        return None, 0, 0
    last = records[-1]
    return _chunk_of_records(block, records, dialect, line_number), last.after, last.line + last.lines


def _chunk_of_index(block: TextBlock, index: RecordIndex, dialect: Dialect, line_number: int) -> TableChunk:
    good, bad = sort_out(block, index, dialect, line_number)
    line_numbers = index.lines[good] + line_number
    cells = index.cells(good, dialect.width, list(dialect.wanted.values()))
    columns = text_columns(block, cells, dialect.null_spellings)
    arrays = {"line_number": pa.array(line_numbers)} | dict(zip(dialect.wanted, columns, strict=True))
    return TableChunk(
        columns=pl.DataFrame(pa.table(arrays)),
        line_numbers=line_numbers,
        malformed=bad,
        block=block,
        starts=index.starts[good],
        ends=index.ends[good],
    )


def _chunk_of_records(block: TextBlock, records: list[Record], dialect: Dialect, line_number: int) -> TableChunk:
    good: list[Record] = []
    malformed = []
    for record in records:
        raw = block.slice(record.start, record.end)
        if is_blank(raw, dialect.delimiter):
            continue
        reason = record.reason or reason_for(raw, record.cells or [], dialect)
        if reason:
            malformed.append(Malformed(record.line + line_number, shortened(raw), reason))
        else:
            good.append(record)
    line_numbers = np.array([record.line + line_number for record in good], np.int64)
    texts = {
        name: column_of([record.cells[column].decode() for record in good if record.cells], dialect.null_spellings)
        for name, column in dialect.wanted.items()
    }
    return TableChunk(
        columns=pl.DataFrame({"line_number": line_numbers} | texts),
        line_numbers=line_numbers,
        malformed=frame_of(malformed),
        block=block,
        starts=np.array([record.start for record in good], np.int64),
        ends=np.array([record.end for record in good], np.int64),
    )


def _malformed_only(malformed: Malformed, dialect: Dialect) -> TableChunk:
    nothing = np.empty(0, np.int64)
    columns = pl.DataFrame(schema={"line_number": pl.Int64} | dict.fromkeys(dialect.wanted, pl.String))
    return TableChunk(columns, nothing, frame_of([malformed]), TextBlock.of(), nothing, nothing)


# Longest first: the mark of UTF-16 begins that of UTF-32.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
CONTAINERS = (
    (b"PK\x03\x04", "a zip archive or a workbook"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF-", "a PDF document"),
)
LONGEST_MAGIC = 5
MARKED = "ingest_project.marked"
# Beyond this, the encoding is the wrong one, and marking would cost more than reading.
MOST_INVALID_BYTES = 100_000


def text_blocks(path: Path, encoding: str, block_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """The text of a file, in order, as UTF-8, each block with whether it is the last.

    A byte that is not of the encoding is the fault of its row, not of the file: it is marked by INVALID_BYTE.

    Args:
        path: a file that does not change while it is read.
        encoding: of files without a byte order mark; a mark always wins and is taken off.
        block_bytes: how much of the file to read at a time. No block ends between a CR and an LF.

    Raises:
        FileRejectedError: `empty_file`; `unreadable_container` for a file that is not text; `encoding` where more than
            MOST_INVALID_BYTES are not of its encoding.
    """
    with path.open("rb") as file:
        start = file.read(LONGEST_MAGIC)
        if not start:
            raise FileRejectedError("empty_file", "The file has no bytes.")
        for magic, what in CONTAINERS:
            if start.startswith(magic):
                raise FileRejectedError("unreadable_container", f"The file is {what}, not text.")
        mark, encoding = next(
            ((mark, marked) for mark, marked in BYTE_ORDER_MARKS if start.startswith(mark)), (b"", encoding)
        )
        file.seek(len(mark))
        yield from _blocks(file, codecs.lookup(encoding).name, block_bytes)


def _blocks(file: BinaryIO, encoding: str, block_bytes: int) -> Iterator[tuple[bytes, bool]]:
    decoder = codecs.getincrementaldecoder(encoding)(MARKED)
    held = b""
    invalid = 0
    raw = file.read(block_bytes)
    while True:
        following = file.read(block_bytes)
        text, marked = _decoded(decoder, raw, encoding, final=not following)
        invalid += marked
        if invalid > MOST_INVALID_BYTES:
            detail = f"More than {MOST_INVALID_BYTES:,} bytes of the file are not {encoding}."
            raise FileRejectedError("encoding", f"{detail} Name the encoding in the file's reader profile.")
        text = held + text
        if not following:
            yield text, True
            return
        # A CR may be half of a CRLF.
        held = b"\r" if text.endswith(b"\r") else b""
        yield text.removesuffix(b"\r"), False
        raw = following


def _decoded(decoder: codecs.IncrementalDecoder, raw: bytes, encoding: str, *, final: bool) -> tuple[bytes, int]:
    """The text of the next bytes as UTF-8, and how many of them were not valid."""
    is_utf_8 = encoding == "utf-8"
    pending = bool(decoder.getstate()[0])
    if is_utf_8 and not pending and raw.isascii():
        return raw, 0
    text = decoder.decode(raw, final)
    marked = text.count(INVALID_BYTE) if "\0" in text else 0
    # A character cut by the block's end waits in the decoder: it goes with the next block, once it is known to be one.
    unchanged = is_utf_8 and not marked and not pending and not decoder.getstate()[0]
    return (raw if unchanged else text.encode()), marked


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Write each byte that is no text as INVALID_BYTE and its two digits: what it was can be told, and is no text."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(f"{INVALID_BYTE}{byte:02x}" for byte in error.object[error.start : error.end]), error.end


codecs.register_error(MARKED, _mark)
