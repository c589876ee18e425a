"""The partitions of polling: one for each request to look in a source."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from ingest_project.core.keys import key_of

POLLING_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=48), warn_window=timedelta(hours=30))


POLLING_JOBS = "polling_jobs"
polling_jobs_partitions = dg.DynamicPartitionsDefinition(name=POLLING_JOBS)

DISCOVERED_FILES = dg.AssetKey("discovered_files")
FILE_SOURCES = dg.AssetKey("file_sources")


def job_key(job_id: str, position: tuple[str, int, int, str]) -> str:
    """The partition key of one request: the job's id, readable, and a hash of the message that asked.

    Args:
        job_id: chosen by the sender; a job sent again is another request and has another key.
        position: topic, partition, offset and generation of the message.
    """
    return key_of(job_id, job_id, *position, keep_end=False)
