"""Contract of every reader: rows as text with line numbers, missing and unknown columns, reasons for damage."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers import Target
from ingest_project.readers.layout import ReadLimits, RowsChunk
from ingest_project.readers.profiles import ReaderProfile
from ingest_project.readers.reading import Reader

Rows = Sequence[Mapping[str, str]]
NAMES = ("name", "amount", "note")
ROWS: Rows = (
    {"name": "a", "amount": "1.5", "note": "first"},
    {"name": "b c", "amount": "-20", "note": "grüße € 日本"},
    {"name": "d", "amount": "0.25", "note": "third"},
)
MANY = 30_000
DAMAGED = 60


def target(*columns: str, required: Sequence[str] = (), keep_unknown: bool = False) -> Target:
    """Return a target with these columns, which a file has under the same names."""
    return Target(columns, frozenset(required), keep_unknown)


class ReaderContract:
    """Override the fixtures `reader` and `write`."""

    damaged_files = DAMAGED
    """How many damaged files to try; fewer where each takes long."""

    @pytest.fixture
    def reader(self) -> Reader:
        """Return the reader."""
        raise NotImplementedError("Override the fixture `reader`.")

    @pytest.fixture
    def write(self) -> Callable[[Path, Rows], None]:
        """Return a function that writes a file with one row per mapping of column names to texts."""
        raise NotImplementedError("Override the fixture `write`.")

    @pytest.fixture
    def profile(self) -> ReaderProfile:
        """Return the profile for such a file, which finds columns by name."""
        return ReaderProfile.model_validate({"name": "contract", "dataset": "contract"})

    @pytest.fixture
    def chunks_of(self, reader: Reader, profile: ReaderProfile, tmp_path: Path) -> Callable[[Target], list[RowsChunk]]:
        """Return a function that reads the file `tmp_path / "file"`."""
        return lambda wanted: list(reader.read(tmp_path / "file", profile, ReadLimits(), "file", wanted))

    def test_rows_come_as_text_in_order_under_increasing_line_numbers(
        self, write: Callable[[Path, Rows], None], chunks_of: Callable[[Target], list[RowsChunk]], tmp_path: Path
    ) -> None:
        write(tmp_path / "file", ROWS)
        rows = pl.concat(chunk.rows for chunk in chunks_of(target(*NAMES)))
        assert rows.select(NAMES).to_dicts() == list(ROWS)
        assert rows.schema["line_number"] == pl.Int64
        numbers = rows["line_number"].to_list()
        assert numbers == sorted(set(numbers))
        assert numbers[0] >= 1

    def test_reading_again_gives_the_same_and_leaves_the_file_as_it_was(
        self, write: Callable[[Path, Rows], None], chunks_of: Callable[[Target], list[RowsChunk]], tmp_path: Path
    ) -> None:
        write(tmp_path / "file", ROWS)
        content = (tmp_path / "file").read_bytes()
        first, second = (chunks_of(target(*NAMES))[0].rows for _ in range(2))
        assert first.equals(second)
        assert (tmp_path / "file").read_bytes() == content

    def test_the_text_of_any_row_can_be_shown(
        self, write: Callable[[Path, Rows], None], chunks_of: Callable[[Target], list[RowsChunk]], tmp_path: Path
    ) -> None:
        write(tmp_path / "file", ROWS)
        (chunk,) = chunks_of(target(*NAMES))
        numbers = chunk.rows["line_number"].to_list()
        backwards = chunk.raw_text(numbers[::-1])
        assert backwards[::-1] == chunk.raw_text(numbers)
        for row, text in zip(ROWS, backwards[::-1], strict=True):
            assert row["name"] in text

    def test_a_column_that_the_file_lacks_is_null_and_reported(
        self, write: Callable[[Path, Rows], None], chunks_of: Callable[[Target], list[RowsChunk]], tmp_path: Path
    ) -> None:
        write(tmp_path / "file", ROWS)
        (chunk,) = chunks_of(target("name", "absent", required=["name"]))
        assert chunk.rows["absent"].to_list() == [None] * len(ROWS)
        assert chunk.missing_columns == ("absent",)

    def test_a_required_column_that_the_file_lacks_rejects_it(
        self, write: Callable[[Path, Rows], None], chunks_of: Callable[[Target], list[RowsChunk]], tmp_path: Path
    ) -> None:
        write(tmp_path / "file", ROWS)
        with pytest.raises(FileRejectedError) as caught:
            chunks_of(target("name", "absent", required=["absent"]))
        assert caught.value.rule == "missing_column"
        assert "absent" in caught.value.detail

    def test_an_unknown_column_is_reported_and_kept_as_json(
        self, write: Callable[[Path, Rows], None], chunks_of: Callable[[Target], list[RowsChunk]], tmp_path: Path
    ) -> None:
        write(tmp_path / "file", ROWS)
        (chunk,) = chunks_of(target("name", "amount", keep_unknown=True))
        assert chunk.unknown_columns == ("note",)
        kept = [json.loads(text) for text in chunk.rows["rescued_data"]]
        assert kept == [{"note": row["note"]} for row in ROWS]
        (chunk,) = chunks_of(target("name", "amount"))
        assert "rescued_data" not in chunk.rows.columns

    def test_every_row_of_a_long_file_comes_once(
        self, write: Callable[[Path, Rows], None], chunks_of: Callable[[Target], list[RowsChunk]], tmp_path: Path
    ) -> None:
        write(tmp_path / "file", [{"name": f"n{number}", "amount": str(number)} for number in range(MANY)])
        rows = pl.concat(chunk.rows for chunk in chunks_of(target("name", "amount")))
        assert rows["amount"].to_list() == [str(number) for number in range(MANY)]
        assert rows["line_number"].is_sorted()
        assert rows["line_number"].n_unique() == MANY

    def test_an_empty_file_is_rejected(self, chunks_of: Callable[[Target], list[RowsChunk]], tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(FileRejectedError):
            chunks_of(target(*NAMES))

    def test_damage_is_a_reason_and_never_another_error(
        self, write: Callable[[Path, Rows], None], chunks_of: Callable[[Target], list[RowsChunk]], tmp_path: Path
    ) -> None:
        write(tmp_path / "file", ROWS)
        content = (tmp_path / "file").read_bytes()
        chosen = random.Random(1)  # noqa: S311 - the same damage in every run
        for number in range(self.damaged_files):
            damaged = bytearray(content)
            for _ in range(number % 4):
                damaged[chosen.randrange(len(damaged))] = chosen.randrange(256)
            cut = len(damaged) if number % 2 else chosen.randrange(len(damaged))
            (tmp_path / "file").write_bytes(damaged[:cut])
            with suppress(FileRejectedError):
                chunks_of(target(*NAMES))
