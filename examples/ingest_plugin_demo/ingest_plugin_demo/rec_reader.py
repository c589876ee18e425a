"""Record files: `name: value` lines, records separated by blank lines, comments after `#`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import polars as pl

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers import READINGS, Target
from ingest_project.readers.formats.csv_text import text_blocks
from ingest_project.readers.layout import MALFORMED, ReadLimits, RowsChunk, layout_of, rows_chunk, shortened
from ingest_project.readers.profiles import ReaderProfile

CHUNK_RECORDS = 10_000


class Record(NamedTuple):
    """One record.

    Args:
        line: that it begins on.
        raw: as written.
        fields: by name.
        reason: why it is no row; empty for a row.
    """

    line: int
    raw: bytes
    fields: Mapping[str, str]
    reason: str = ""


class RecReader:
    """Reads record files; see `ingest_project.readers.reading.Reader`."""

    def read(
        self, path: Path, profile: ReaderProfile, limits: ReadLimits, file_name: str, target: Target = READINGS
    ) -> Iterator[RowsChunk]:
        """Yield the rows of one file; the columns are the fields of its first good record."""
        lines = _lines(text_blocks(path, profile.encoding, limits.chunk_bytes), limits.max_row_bytes)
        records = _records(lines, limits.max_row_bytes)
        names: list[str] = []
        while chunk := list(islice(records, CHUNK_RECORDS)):
            names = names or [*next((record.fields for record in chunk if not record.reason), ())]
            if not names:
                raise FileRejectedError("unreadable_header", "None of the first records has the form 'name: value'.")
            chunk = [_with_known_fields(record, names) for record in chunk]
            layout = layout_of(names, profile, limits, file_name, target)
            good = [record for record in chunk if not record.reason]
            bad = [(record.line, shortened(record.raw), record.reason) for record in chunk if record.reason]
            cells = {"line_number": pl.Series([record.line for record in good], dtype=pl.Int64)}
            for name, index in layout.wanted.items():
                texts = [record.fields.get(names[index]) for record in good]
                cells[name] = pl.Series([None if text in profile.nulls else text for text in texts], dtype=pl.String)
            malformed = pl.DataFrame(bad, schema=MALFORMED.schema, orient="row") if bad else MALFORMED
            raw_text = partial(_raw_text, {record.line: record.raw for record in good})
            yield rows_chunk(pl.DataFrame(cells), malformed, raw_text, layout, profile)


READER = RecReader()


def _lines(blocks: Iterable[tuple[bytes, bool]], max_bytes: int) -> Iterator[bytes]:
    carry = b""
    for block, final in blocks:
        *lines, carry = (carry + block).split(b"\n")
        yield from (line.rstrip(b"\r") for line in lines)
        # Of a line that is too long only the beginning is kept: its record is rejected.
        carry = carry[: max_bytes + 1]
        if final:
            yield carry.rstrip(b"\r")


def _records(lines: Iterable[bytes], max_bytes: int) -> Iterator[Record]:
    collected: list[bytes] = []
    size, first = 0, 1
    for number, line in enumerate(lines, 1):
        if not line.strip():
            if collected:
                yield _record(first, collected, max_bytes)
            collected, size = [], 0
            continue
        if not collected:
            first = number
        if size <= max_bytes:
            collected.append(line)
        size += len(line)
    if collected:
        yield _record(first, collected, max_bytes)


def _record(first: int, lines: Sequence[bytes], max_bytes: int) -> Record:
    raw = b"\n".join(lines)
    if len(raw) > max_bytes:
        return Record(first, raw, {}, "row_too_long")
    if b"\0" in raw:
        return Record(first, raw, {}, "invalid_bytes")
    fields: dict[str, str] = {}
    for line in raw.decode().split("\n"):
        if line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            return Record(first, raw, {}, "no_field")
        if name.strip() in fields:
            return Record(first, raw, {}, "repeated_field")
        fields[name.strip()] = value.strip()
    return Record(first, raw, fields, "" if fields else "no_field")


def _with_known_fields(record: Record, names: Sequence[str]) -> Record:
    """Return the record, malformed if it has a field that the first one has not."""
    return record if record.fields.keys() <= set(names) else record._replace(fields={}, reason="unknown_field")


def _raw_text(written: Mapping[int, bytes], lines: Sequence[int]) -> list[str]:
    """Return the records that begin on these lines; see `ingest_project.readers.layout.RawText`."""
    return [shortened(written[line]) for line in lines]
