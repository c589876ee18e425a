"""The columns each table takes, in order and type, and the one character no text column may hold."""

from __future__ import annotations

import polars as pl
import polars.selectors as cs

Schema = dict[str, "pl.DataType | type[pl.DataType]"]

READINGS: Schema = {
    "timestamp": pl.Datetime("us", "UTC"),
    "device_id": pl.String,
    "sensor_type": pl.String,
    "value": pl.Float64,
    "unit": pl.String,
    "file_key": pl.String,
    "line_number": pl.Int64,
}
QUARANTINED: Schema = {
    "file_key": pl.String,
    "line_number": pl.Int64,
    "raw_text": pl.String,
    "reasons": pl.List(pl.String),
}
METRICS: Schema = {
    "file_key": pl.String,
    "device_id": pl.String,
    "sensor_type": pl.String,
    "min": pl.Float64,
    "max": pl.Float64,
    "mean": pl.Float64,
    "count": pl.Int64,
    "stddev": pl.Float64,
}
CLAIMS: Schema = {"file_key": pl.String, "sha256": pl.String, "meaning": pl.String}
# Of versions that were not known until they were read.
VERSIONS: Schema = {
    "file_key": pl.String,
    "size_bytes": pl.Int64,
    "modified_at": pl.Datetime("us", "UTC"),
    "etag": pl.String,
    "version_at": pl.Datetime("us", "UTC"),
}
FINISHED: Schema = {
    "file_key": pl.String,
    "state": pl.String,
    "reason": pl.String,
    "error_class": pl.String,
    "run_id": pl.String,
    "sha256": pl.String,
    "landed_bytes": pl.Int64,
    "profile": pl.String,
    "duplicate_of": pl.String,
    "replaced_by": pl.String,
    "rows_read": pl.Int64,
    "rows_accepted": pl.Int64,
    "rows_quarantined": pl.Int64,
    "rule_counts": pl.String,
}

NUL = "\x00"
REPLACEMENT = "\ufffd"


def fitted(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """The frame with exactly these columns, in this order and type, and no NUL in any text.

    PostgreSQL cannot store NUL; to let SQLite keep it would make the two differ.

    Raises:
        polars.exceptions.PolarsError: a column is missing or cannot be of its type.
    """
    # Casting a column to the type it has costs nothing; a column of nulls alone has no type before.
    columns = frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    return _without_nul(columns)


def _without_nul(frame: pl.DataFrame) -> pl.DataFrame:
    found = frame.select(cs.string().str.contains(NUL, literal=True).any())
    dirty = [column.name for column in found.iter_columns() if column.item()]
    lists = [name for name, dtype in frame.schema.items() if dtype == pl.List(pl.String)]
    if not dirty and not lists:
        return frame
    return frame.with_columns(
        pl.col(dirty).str.replace_all(NUL, REPLACEMENT, literal=True),
        pl.col(lists).list.eval(pl.element().str.replace_all(NUL, REPLACEMENT, literal=True)),
    )
