"""Files for the readers' tests, and the rows that a reader makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl

from ingest_project.readers.casting import cast
from ingest_project.readers.layout import ReadLimits, RowsChunk
from ingest_project.readers.profiles import ReaderProfile, load_profiles
from ingest_project.readers.reading import read_chunks

HEADER = "timestamp,device_id,sensor_type,value,unit\n"
CANONICAL = load_profiles()["canonical"]


class Outcome(NamedTuple):
    """Everything that was read of one file."""

    rows: pl.DataFrame
    malformed: list[tuple[int, str, str]]
    chunks: list[RowsChunk]


def read(
    path: Path,
    profile: ReaderProfile = CANONICAL,
    file_type: str = "csv",
    limits: ReadLimits | None = None,
    file_name: str | None = None,
) -> Outcome:
    """Read a file to its end."""
    chunks = list(read_chunks(path, file_type, profile, limits or ReadLimits(), file_name))
    malformed = [record for chunk in chunks for record in chunk.malformed.rows()]
    return Outcome(pl.concat([chunk.rows for chunk in chunks]), malformed, chunks)


def read_text(
    folder: Path, content: str | bytes, profile: ReaderProfile = CANONICAL, limits: ReadLimits | None = None
) -> Outcome:
    """Read a csv file with this content."""
    path = folder / "sample.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read(path, profile, limits=limits)


def columns_profile(*names: str, **settings: object) -> ReaderProfile:
    """A profile that takes up to five columns, by their names, as text into the columns of a reading, in that order."""
    targets = ("timestamp", "device_id", "sensor_type", "value", "unit")
    return ReaderProfile.model_validate(
        {
            "name": "columns",
            "columns": dict(zip(names, targets, strict=False)),
            "optional": targets,
            "nulls": [],
            **settings,
        }
    )


def casted(outcome: Outcome, profile: ReaderProfile = CANONICAL) -> pl.DataFrame:
    """The rows with moments and numbers."""
    return cast(outcome.rows, profile)
