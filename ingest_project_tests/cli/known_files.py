"""Work queues and a warehouse that know a few files, as sensors and runs would have left them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import polars as pl

from ingest_project.contracts.files import FileEvent, PollingJob
from ingest_project.file_ingest.file_queue import FileArrival
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project.platform.work_queue.queue import KafkaPosition
from ingest_project.polling.job_queue import JobArrival

ARRIVED = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
TOPIC = "file-event-queue"
SHA256 = "ab" * 32
FINISHED_SCHEMA = {
    "drifted": pl.Boolean,
    **dict.fromkeys(("file_key", "state", "reason", "error_class", "run_id", "sha256"), pl.String),
    **dict.fromkeys(("profile", "duplicate_of", "replaced_by"), pl.String),
    **dict.fromkeys(("landed_bytes", "rows_read", "rows_accepted", "rows_quarantined"), pl.Int64),
    "rule_counts": pl.String,
}


def arrive(services: SystemResources, *file_keys: str) -> None:
    """Files are announced and wait."""
    arrivals = [
        FileArrival(
            file_key=key,
            location=f"local:/data/in/{key.partition('~')[0]}",
            event=FileEvent(
                file_path=f"/data/in/{key.partition('~')[0]}",
                file_name=key.partition("~")[0],
                size_bytes=5_213,
                job_id="job_123",
                trace_id=f"trace-of-{key}",
            ),
            profile="canonical",
            kafka_position=KafkaPosition(TOPIC, 2, 41, "g", ARRIVED),
        )
        for key in file_keys
    ]
    services.files.record(arrivals, ARRIVED)


def arrive_from(services: SystemResources, file_name: str, **folders: str) -> None:
    """Files of one name are announced, each in a folder for the dataset of its keyword; a run refuses all."""
    keys = {dataset: f"{file_name}~{dataset}" for dataset in folders}
    arrivals = [
        FileArrival(
            keys[dataset],
            f"local:{folder}/{file_name}",
            FileEvent(file_path=f"{folder}/{file_name}", file_name=file_name),
            "canonical",
            KafkaPosition(TOPIC, 2, 41, "g", ARRIVED),
            dataset=dataset,
        )
        for dataset, folder in folders.items()
    ]
    services.files.record(arrivals, ARRIVED)
    for key in keys.values():
        finish(services, key, FileState.QUARANTINED, reason="no")


def take(services: SystemResources, *file_keys: str) -> None:
    """A run has them in its hands."""
    now = datetime.now(UTC)
    services.files.claim("batch-1", file_keys, now)
    services.files.begin(file_keys, "run-1", now)


def finish(  # noqa: PLR0913 - one for each thing that may be wrong with a file
    services: SystemResources,
    file_key: str,
    state: FileState,
    *,
    reason: str | None = None,
    rules: Mapping[str, int] | None = None,
    refused: Mapping[int, str] | None = None,
    reported: bool = True,
) -> None:
    """A run has stored it: two readings and the refused rows, by line number.

    Args:
        services: where to.
        file_key: of a file that has arrived.
        state: where it ends.
        reason: why, where it was not simply ingested.
        rules: broken rule to number of rows.
        refused: line number to raw text.
        reported: whether Dagster shows it.
    """
    take(services, file_key)
    refused = refused or {}
    accepted = 2 if state is FileState.INGESTED else 0
    with services.warehouse.transaction() as transaction:
        transaction.replace_files([file_key])
        if accepted:
            transaction.append_rows(_readings(file_key))
            transaction.put_metrics(_metrics(file_key))
        if refused:
            transaction.append_quarantined(_refused(file_key, refused))
        transaction.finish_files(_outcome(file_key, state, reason, rules or {}, (accepted, len(refused))))
    if reported:
        services.files.mark_reported([file_key], datetime.now(UTC))


def job_arrives(services: SystemResources, job_key: str) -> None:
    """A polling job is pending."""
    job = PollingJob(job_id=job_key, source_config={"source_type": "dummy", "path": "./dummy_data"})
    kafka_position = KafkaPosition("polling-queue", 0, 0, "g", ARRIVED)
    services.polling_jobs.record([JobArrival(job_key, job, kafka_position)], ARRIVED)


def _outcome(
    file_key: str, state: FileState, reason: str | None, rules: Mapping[str, int], rows: tuple[int, int]
) -> pl.DataFrame:
    """Return a file's outcome as a run stores it; `rows` are the numbers of accepted and of refused ones."""
    accepted, refused = rows
    outcome = {
        **dict.fromkeys(FINISHED_SCHEMA),
        "file_key": file_key,
        "state": state.value,
        "reason": reason,
        "error_class": "FileRejectedError" if reason else None,
        "run_id": "run-1",
        "sha256": SHA256,
        "landed_bytes": 5_213,
        "profile": "canonical",
        "rows_read": accepted + refused,
        "rows_accepted": accepted,
        "rows_quarantined": refused,
        "rule_counts": json.dumps(dict(rules)),
    }
    return pl.DataFrame([outcome], schema=FINISHED_SCHEMA)


def _readings(file_key: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "timestamp": [ARRIVED, ARRIVED + timedelta(seconds=1)],
            "device_id": ["device-1"] * 2,
            "sensor_type": ["temperature"] * 2,
            "value": [20.0, 22.0],
            "unit": ["C"] * 2,
            "file_key": [file_key] * 2,
            "line_number": [2, 3],
        },
        schema_overrides={"timestamp": pl.Datetime("us", "UTC")},
    )


def _metrics(file_key: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "file_key": [file_key],
            "device_id": ["device-1"],
            "sensor_type": ["temperature"],
            "min": [20.0],
            "max": [22.0],
            "mean": [21.0],
            "count": [2],
            "stddev": [2.0**0.5],
        }
    )


def _refused(file_key: str, refused: Mapping[int, str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "file_key": [file_key] * len(refused),
            "line_number": list(refused),
            "raw_text": list(refused.values()),
            "reasons": [["value_out_of_range"]] * len(refused),
        }
    )
