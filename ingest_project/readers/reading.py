"""A file's bytes to canonical readings as text, in chunks of bounded memory.

This is the first step of file ingest: `read_chunks` one file at a time, then `cast` the rows of many files at once,
then validation. A chunk keeps the text its rows came from, so that the few bad rows can be shown as they were written.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.casting import cast
from ingest_project.readers.chunks import ReadingsChunk, ReadLimits, dialect_of, layout_of, readings_chunk
from ingest_project.readers.csv.header import HeaderSearch, find_header
from ingest_project.readers.csv.table import split_blocks, text_blocks
from ingest_project.readers.layout import known_names
from ingest_project.readers.profiles import ReaderProfile

__all__ = ["cast", "read_chunks"]


def read_chunks(
    path: Path, file_type: str, profile: ReaderProfile, limits: ReadLimits, file_name: str | None = None
) -> Iterator[ReadingsChunk]:
    """Read one file.

    Args:
        path: where its bytes are; they do not change meanwhile.
        file_type: `csv`, `xlsx` or `xls`; what is inside must match.
        profile: its layout.
        limits: what it may cost.
        file_name: its own name, when `path` has another.

    Yields:
        chunks in the order of the file; a file of up to `limits.chunk_bytes` usually is one chunk.

    Raises:
        FileRejectedError: it breaks the contract as a whole. Rules: `empty_file`, `no_rows`, `encoding`,
            `unreadable_container`, `unreadable_header`, `missing_header`, `missing_column`,
            `duplicate_column`, `missing_sheet`, `file_name`.
        LimitExceededError: it is larger than a limit.
    """
    name = file_name or path.name
    if file_type == "csv":
        chunks = _read_text(text_blocks(path, profile.encoding, limits.chunk_bytes), profile, limits, name)
    else:
        from ingest_project.readers.excel.reader import read_workbook  # noqa: PLC0415 - most runs meet no workbook

        chunks = read_workbook(path, file_type, profile, limits, name)
    found = False
    for chunk in chunks:
        found = found or chunk.rows.height > 0 or chunk.malformed.height > 0
        yield chunk
    if not found:
        raise FileRejectedError("no_rows", "The file has a header and no readings.")


def _read_text(
    blocks: Iterator[tuple[bytes, bool]], profile: ReaderProfile, limits: ReadLimits, file_name: str
) -> Iterator[ReadingsChunk]:
    header, text, final = find_header(
        blocks, HeaderSearch(profile.delimiter, known_names(profile), profile.skip_lines, limits.max_row_bytes)
    )
    header = header.without_spare_columns() if profile.header else header.as_first_record()
    layout = layout_of(header, profile, limits, file_name)
    dialect = dialect_of(header, layout, profile, limits)
    rest = chain([(text[header.start :], final)], blocks)
    for table in split_blocks(rest, dialect, header.line_number):
        yield readings_chunk(table, layout, profile)
