"""Frames as file ingest makes them, small."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import polars as pl
import sqlalchemy as sa

from ingest_project.file_ingest.tables import files
from ingest_project.platform.database import open_engine, writing

START = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)


def readings(
    file_key: str, values: Sequence[float], device: str = "device-1", kind: str = "temperature"
) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "timestamp": [START + timedelta(seconds=number) for number in range(len(values))],
            "device_id": [device] * len(values),
            "sensor_type": [kind] * len(values),
            "value": [float(value) for value in values],
            "unit": ["C"] * len(values),
            "file_key": [file_key] * len(values),
            "line_number": list(range(2, len(values) + 2)),
        },
        schema_overrides={"timestamp": pl.Datetime("us", "UTC")},
    )


def metrics(rows: pl.DataFrame) -> pl.DataFrame:
    value = pl.col("value")
    return rows.group_by("file_key", "device_id", "sensor_type").agg(
        min=value.min(), max=value.max(), mean=value.mean(), count=pl.len(), stddev=value.std()
    )


def refused(file_key: str, texts: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "file_key": [file_key] * len(texts),
            "line_number": list(range(100, 100 + len(texts))),
            "raw_text": list(texts),
            "reasons": [["value_not_finite", "id_missing"]] * len(texts),
        }
    )


def finished(
    file_key: str, state: str = "ingested", accepted: int = 0, duplicate_of: str | None = None
) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "file_key": [file_key],
            "state": [state],
            "reason": [None],
            "error_class": [None],
            "run_id": ["run-1"],
            "sha256": ["ab" * 32],
            "landed_bytes": [5_213],
            "profile": ["canonical"],
            "duplicate_of": [duplicate_of],
            "replaced_by": [None],
            "rows_read": [accepted],
            "rows_accepted": [accepted],
            "rows_quarantined": [0],
            "rule_counts": ['{"value_not_finite": 1}'],
            "drifted": [None],
        },
        schema_overrides=dict.fromkeys(("reason", "error_class", "duplicate_of", "replaced_by"), pl.String),
    )


def claims(*claimed: tuple[str, str]) -> pl.DataFrame:
    """File key and content of each."""
    return pl.DataFrame([{"file_key": key, "sha256": content, "meaning": "canonical"} for key, content in claimed])


def in_ledger(database_url: str, *file_keys: str) -> None:
    """Enter files as if a run had taken them."""
    now = datetime.now(UTC)
    row = {
        **dict.fromkeys(("location", "file_path", "file_name", "event_id"), "x"),
        "location_key": "x", "version_at": now, "announced_at": now,
        "source_type": "local", "metadata": {}, "source_config": {}, "profile": "canonical",
        "kafka_topic": "t", "kafka_partition": 0, "kafka_offset": 0, "kafka_topic_id": "",
        "state": "ingesting", "attempts": 1, "next_attempt_at": now, "created_at": now, "updated_at": now,
    }  # fmt: skip
    engine = open_engine(database_url)
    with writing(engine) as connection:
        connection.execute(sa.insert(files), [{**row, "file_key": key} for key in file_keys])
    engine.dispose()


def states(database_url: str) -> dict[str, str]:
    """State of every file in the queue."""
    engine = open_engine(database_url)
    with engine.connect() as connection:
        found = {row[0]: row[1] for row in connection.execute(sa.select(files.c.file_key, files.c.state))}
    engine.dispose()
    return found
