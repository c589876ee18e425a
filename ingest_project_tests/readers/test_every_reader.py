"""The shipped readers pass the contract suite."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pyarrow as pa
import pytest
from pyarrow import parquet

from ingest_project.readers.reading import READERS, Reader
from ingest_project.testing.readers import ReaderContract, Rows


def write_delimited(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def write_lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_array(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(list(rows), ensure_ascii=False, indent=1), encoding="utf-8")


def write_parquet(path: Path, rows: Rows) -> None:
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)


def write_workbook(path: Path, rows: Rows) -> None:
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append([*rows[0]])
    for row in rows:
        sheet.append([*row.values()])
    book.save(path)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "tsv": write_delimited,
    "txt": write_delimited,
    "jsonl": write_lines,
    "json": write_array,
    "parquet": write_parquet,
    "xlsx": write_workbook,
}


class TestEveryReader(ReaderContract):
    """Readers in this process."""

    # Text is read as tsv is.
    @pytest.fixture(params=["tsv", pytest.param("txt", marks=pytest.mark.long), "jsonl", "json"])
    def file_type(self, request: pytest.FixtureRequest) -> str:
        """A type of file."""
        return str(request.param)

    @pytest.fixture
    def reader(self, file_type: str) -> Reader:
        """Return its reader."""
        return READERS[file_type]

    @pytest.fixture
    def write(self, file_type: str) -> Callable[[Path, Rows], None]:
        """Return how to write it."""
        return WRITERS[file_type]


class TestEveryConfinedReader(TestEveryReader):
    """Readers in a process of their own, which takes a second for each file."""

    damaged_files = 4

    @pytest.fixture(params=["parquet", "xlsx"])
    def file_type(self, request: pytest.FixtureRequest) -> str:
        """A type of file."""
        return str(request.param)
