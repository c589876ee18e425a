"""Parquet to rows, by a confined process that may crash (`parquet_worker`)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa

from ingest_project.core.errors import FileRejectedError
from ingest_project.platform.confined import Confinement
from ingest_project.readers import READINGS, Target
from ingest_project.readers.casting import KIND_OF
from ingest_project.readers.cells import DATE, ERROR, EXACT_INTEGERS, INEXACT, NESTED, NUMBER, TEXT, json_of
from ingest_project.readers.formats import parquet_worker
from ingest_project.readers.formats.csv_reader import UNSEEN_ENDS
from ingest_project.readers.formats.csv_text import kind_of
from ingest_project.readers.formats.parquet_worker import FLOAT, NO_TEXT
from ingest_project.readers.layout import MALFORMED, ReadLimits, RowsChunk, layout_of, rows_chunk, shortened
from ingest_project.readers.matching import Layout
from ingest_project.readers.profiles import ReaderProfile

HEAD_BYTES = 512
# Kinds of columns that may contain bytes that are not text, or times outside the calendar.
MAY_BE_UNREADABLE = (TEXT, DATE, NESTED)
MAGIC, ENCRYPTED_MAGIC = b"PAR1", b"PARE"
CONFINEMENT = Confinement(
    parquet_worker,
    "Parquet file",
    {
        "memory": "INGEST_MAX_PARQUET_MEMORY_BYTES",
        "seconds": "INGEST_MAX_PARQUET_SECONDS",
        "columns": "INGEST_MAX_COLUMNS",
        "expanded": "INGEST_MAX_EXPANDED_BYTES",
    },
)


class ParquetReader:
    """Reads Parquet files; see `reading.Reader`.

    Line numbers are row numbers, the first is 1; raw text is the row as JSON. A struct's field is a column of its own
    where the profile names it, as in `payload.temperature`; other nested columns are JSON.
    """

    def read(
        self, path: Path, profile: ReaderProfile, limits: ReadLimits, file_name: str, target: Target = READINGS
    ) -> Iterator[RowsChunk]:
        """Read one file."""
        _check_outside(path)
        with tempfile.TemporaryDirectory(prefix="parquet-") as folder:
            rows = Path(folder, "rows.arrow")
            _convert(path, profile, limits, rows)
            with pa.OSFile(str(rows)) as file, pa.ipc.open_stream(file) as stream:
                yield from _read_rows(stream, profile, limits, file_name, target)


READER = ParquetReader()


def _check_outside(path: Path) -> None:
    with path.open("rb") as file:
        beginning = file.read(HEAD_BYTES)
    start, kind = beginning[: len(MAGIC)], kind_of(beginning)
    if not start:
        raise FileRejectedError("empty_file", "The file has no bytes.")
    if start == ENCRYPTED_MAGIC:
        raise FileRejectedError("unreadable_container", "The Parquet file is encrypted.")
    if start != MAGIC:
        raise FileRejectedError(
            "unreadable_container", f"The file is not a Parquet file{f', but {kind}' if kind else ''}."
        )


def _convert(path: Path, profile: ReaderProfile, limits: ReadLimits, rows: Path) -> None:
    paths = [name for name in profile.columns_of_file if "." in name]
    CONFINEMENT.convert(
        rows,
        {"file": str(path.resolve()), "paths": paths, "max_columns": limits.max_columns},
        memory_bytes=limits.max_parquet_memory_bytes,
        seconds=limits.max_parquet_seconds,
        output_bytes=limits.max_expanded_bytes,
    )


def _read_rows(
    stream: pa.RecordBatchStreamReader, profile: ReaderProfile, limits: ReadLimits, file_name: str, target: Target
) -> Iterator[RowsChunk]:
    names: list[str] = json.loads(stream.schema.metadata[b"names"])
    kinds = stream.schema.metadata[b"kinds"].decode()
    layout = layout_of(names, profile, limits, file_name, target)
    first = 1
    for batch in stream:
        texts = pl.DataFrame(pl.from_arrow(batch))
        yield _chunk(texts, first, names, kinds, layout, profile, limits)
        first += texts.height


def _chunk(  # noqa: PLR0913, PLR0917 - all of it describes the one file
    texts: pl.DataFrame,
    first: int,
    names: Sequence[str],
    kinds: str,
    layout: Layout,
    profile: ReaderProfile,
    limits: ReadLimits,
) -> RowsChunk:
    numbered = texts.with_row_index("line_number", first).with_columns(pl.col("line_number").cast(pl.Int64))
    raw_text = partial(_rows_as_json, texts, first, names)
    size = pl.sum_horizontal(pl.col(texts.columns).str.len_bytes())
    long = numbered.filter(size > limits.max_row_bytes)["line_number"].to_list()
    malformed = [(number, raw_text([number])[0], "row_too_long") for number in long]
    cells = numbered.filter(~pl.col("line_number").is_in(long)).select(
        "line_number",
        *(_texts(str(index), kinds[index], profile).alias(name) for name, index in layout.wanted.items()),
        *(_kind(str(index), kinds[index]).alias(KIND_OF(name)) for name, index in layout.wanted.items()),
    )
    bad = pl.DataFrame(malformed, schema=MALFORMED.schema, orient="row") if malformed else MALFORMED
    return rows_chunk(cells, bad, raw_text, layout, profile)


def _texts(column: str, kind: str, profile: ReaderProfile) -> pl.Expr:
    texts = _shown(pl.col(column)) if kind in MAY_BE_UNREADABLE else pl.col(column)
    texts = texts.str.strip_chars(UNSEEN_ENDS) if kind == TEXT else texts
    return pl.when(~texts.is_in(["", *profile.nulls])).then(texts)


def _kind(column: str, kind: str) -> pl.Expr:
    """Return the kind of each cell; one with bytes that are no text is unreadable as any type."""
    if kind == FLOAT:
        number = pl.col(column).cast(pl.Float64, strict=False)
        lost = (number.abs() >= EXACT_INTEGERS) & number.is_finite()
        return pl.when(lost).then(pl.lit(INEXACT)).otherwise(pl.lit(NUMBER))
    if kind not in MAY_BE_UNREADABLE:
        return pl.lit(kind)
    return pl.when(pl.col(column).str.starts_with(NO_TEXT)).then(pl.lit(ERROR)).otherwise(pl.lit(kind))


def _shown(texts: pl.Expr) -> pl.Expr:
    return pl.when(texts.str.starts_with(NO_TEXT)).then(texts.str.strip_prefix("\0")).otherwise(texts)


def _rows_as_json(texts: pl.DataFrame, first: int, names: Sequence[str], numbers: Sequence[int]) -> list[str]:
    shown = texts.select(_shown(pl.all()))
    rows = (shown.row(number - first) for number in numbers)
    return [shortened(json_of(dict(zip(names, row, strict=True))).encode()) for row in rows]
