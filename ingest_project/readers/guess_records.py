"""Read the records of JSON and Parquet files as rows of cells: their fields, nested ones by their paths."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.guess_text import MAX_ROWS, Grid, Row
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.profiles import ReaderProfile
from ingest_project.readers.reading import read_chunks
from ingest_project.readers.target import RESCUED, Target

MAX_FIELDS = 500
# No column is wanted, so that every field is kept as an unknown one.
EVERYTHING = Target(columns=(), required=frozenset(), keep_unknown=True)


def read_records(path: Path, file_type: str, limits: ReadLimits) -> Grid:
    """Return the records of a file below a row of the paths of all their fields.

    Raises:
        FileRejectedError: it cannot be read, or has no records.
    """
    records = list(islice(_records(path, file_type, limits), MAX_ROWS))
    names = list(dict.fromkeys(name for _, fields in records for name in fields))[:MAX_FIELDS]
    if not names:
        raise FileRejectedError("no_rows", "The file has no record with a field.")
    rows = [Row(line, [fields.get(name, "") for name in names]) for line, fields in records]
    return Grid([Row(0, names), *rows], [], None, f"{len(records):,} records", labels=tuple(_labels(names)))


def _labels(names: Sequence[str]) -> Iterator[str]:
    """Yield the last part of each path, or all of it where another path ends alike."""
    last = [name.rpartition(".")[2] for name in names]
    for name, part in zip(names, last, strict=True):
        yield part if last.count(part) == 1 else name


def _records(path: Path, file_type: str, limits: ReadLimits) -> Iterator[tuple[int, dict[str, str]]]:
    profile = ReaderProfile(name="guess", dataset="guess")
    with closing(read_chunks(path, file_type, profile, limits, path.name, EVERYTHING)) as chunks:  # type: ignore[type-var]
        for chunk in chunks:
            for line, text in chunk.rows.select("line_number", RESCUED).iter_rows():
                yield line, dict(_fields(json.loads(text or "{}")))


def _fields(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each field; a list is one field."""
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _fields(inner, f"{prefix}{name}.")
        elif inner is not None:
            yield prefix + name, inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
