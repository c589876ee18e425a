"""Convert a file's bytes to rows of text, in chunks of bounded memory.

`read_chunks` reads one file at a time, then `cast` converts the rows of many files at once, before they are validated.
A chunk keeps the text of its rows, so that the few rejected rows can be shown as they were written. Another package
adds a file type by an entry point in the group `ingest_project.readers`; its name is the extension, its value a
`Reader`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import polars as pl

from ingest_project.contracts.files import COMPRESSED_TYPES, SHIPPED_TYPES
from ingest_project.core import plugins
from ingest_project.core.errors import FileRejectedError
from ingest_project.readers import READINGS, Target
from ingest_project.readers.formats.containers import Contained, files_inside, in_member
from ingest_project.readers.layout import ReadLimits, RowsChunk
from ingest_project.readers.profiles import ReaderProfile

# In an archive, each further file's line numbers begin after another ten thousand million: 20000000007 is line 7 of the
# third file.
MEMBER_LINES = 10**10


class Reader(Protocol):
    """Reads files of one type."""

    def read(
        self, path: Path, profile: ReaderProfile, limits: ReadLimits, file_name: str, target: Target = READINGS
    ) -> Iterator[RowsChunk]:
        """Yield the rows of one file; see `read_chunks`."""


_DELIMITED = "ingest_project.readers.formats.csv_reader:READER"
_JSON = "ingest_project.readers.formats.json_reader:READER"
READERS: plugins.Plugins[Reader] = plugins.Plugins(
    plugins.READERS,
    {
        **dict.fromkeys(("csv", "dat", "psv", "tsv", "txt"), _DELIMITED),
        **dict.fromkeys(("json", "jsonl", "ndjson"), _JSON),
        "parquet": "ingest_project.readers.formats.parquet_reader:READER",
        "xls": "ingest_project.readers.formats.excel_reader:XLS",
        "xlsx": "ingest_project.readers.formats.excel_reader:XLSX",
    },
    requires="read",
)


def read_chunks(  # noqa: PLR0913, PLR0917 - all readers take the same
    path: Path,
    file_type: str,
    profile: ReaderProfile,
    limits: ReadLimits,
    file_name: str | None = None,
    target: Target = READINGS,
) -> Iterator[RowsChunk]:
    """Read one file.

    Args:
        path: path of its bytes, which do not change meanwhile.
        file_type: as `contracts.files.file_type_of` returns it; the content must match. What is compressed is read
            under any name, except for the shipped dataset, which takes no compressed files.
        profile: its layout.
        limits: limits of sizes, counts and time.
        file_name: its own name or location, when `path` has another.
        target: the columns wanted of it.

    Yields:
        chunks in the order of the file; a file of up to `limits.chunk_bytes` usually is one chunk. The files of an
        archive follow each other, see `MEMBER_LINES`.

    Raises:
        FileRejectedError: it breaks the contract as a whole. Rules: `empty_file`, `no_rows`, `encoding`,
            `unreadable_container`, `unreadable_json`, `unreadable_header`, `missing_header`, `missing_column`,
            `duplicate_column`, `missing_sheet`, `file_name`.
        LimitExceededError: it is larger than a limit.
    """
    found = False
    name = file_name or path.name
    is_container = file_type in COMPRESSED_TYPES or "." in file_type or file_type == "zip"
    # A plug-in's format may be compressed by its own rules.
    unpack = is_container or (target != READINGS and file_type in SHIPPED_TYPES)
    with closing(files_inside(path, file_type, name, limits, profile.members)) as inside:
        files = inside if unpack else [Contained(path, file_type, name)]
        for number, file in enumerate(files):
            for chunk in _read_file(file, profile, limits, target):
                found = found or chunk.rows.height > 0 or chunk.malformed.height > 0
                yield _in_archive(chunk, file, number) if file.member else chunk
    if not found:
        raise FileRejectedError("no_rows", "The file has no rows, or a header and no rows.")


def _read_file(file: Contained, profile: ReaderProfile, limits: ReadLimits, target: Target) -> Iterator[RowsChunk]:
    reader = READERS.named(file.file_type, "file type")
    try:
        yield from reader.read(file.path, profile, limits, file.file_name, target)
    except FileRejectedError as error:
        raise in_member(error, file.member) from error


def _in_archive(chunk: RowsChunk, file: Contained, number: int) -> RowsChunk:
    first = number * MEMBER_LINES
    line = pl.col("line_number")
    malformed = chunk.malformed.with_columns(
        line + first, pl.format("{}, line {}: {}", pl.lit(file.member), line, "raw_text").alias("raw_text")
    )
    rows = chunk.rows.with_columns(line + first)

    def raw_text(numbers: Sequence[int]) -> list[str]:
        own = [number - first for number in numbers]
        texts = zip(own, chunk.raw_text(own), strict=True)
        return [f"{file.member}, line {number}: {text}" for number, text in texts]

    return replace(chunk, rows=rows, malformed=malformed, raw_text=raw_text, left_out=file.left_out)
