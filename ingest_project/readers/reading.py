"""Convert a file's bytes to rows of text, in chunks of bounded memory.

`read_chunks` reads one file at a time, then `cast` converts the rows of many files at once, before they are validated.
A chunk keeps the text of its rows, so that the few rejected rows can be shown as they were written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.casting import cast
from ingest_project.readers.csv_reader import CsvReader
from ingest_project.readers.excel_reader import ExcelReader
from ingest_project.readers.layout import READINGS, ReadLimits, RowsChunk, Target
from ingest_project.readers.profiles import ReaderProfile

__all__ = ["Reader", "cast", "read_chunks"]


class Reader(Protocol):
    """Reads files of one type."""

    def read(
        self, path: Path, profile: ReaderProfile, limits: ReadLimits, file_name: str, target: Target = READINGS
    ) -> Iterator[RowsChunk]:
        """Yield the rows of one file; see `read_chunks`."""


READERS: Mapping[str, Reader] = {"csv": CsvReader(), "xlsx": ExcelReader("xlsx"), "xls": ExcelReader("xls")}


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
        path: of its bytes, which do not change meanwhile.
        file_type: one of `READERS`; the content must match.
        profile: its layout.
        limits: of sizes, counts and time.
        file_name: its own name or location, when `path` has another.
        target: the columns wanted of it.

    Yields:
        chunks in the order of the file; a file of up to `limits.chunk_bytes` usually is one chunk.

    Raises:
        FileRejectedError: it breaks the contract as a whole. Rules: `empty_file`, `no_rows`, `encoding`,
            `unreadable_container`, `unreadable_header`, `missing_header`, `missing_column`,
            `duplicate_column`, `missing_sheet`, `file_name`.
        LimitExceededError: it is larger than a limit.
    """
    found = False
    for chunk in READERS[file_type].read(path, profile, limits, file_name or path.name, target):
        found = found or chunk.rows.height > 0 or chunk.malformed.height > 0
        yield chunk
    if not found:
        raise FileRejectedError("no_rows", "The file has a header and no rows.")
