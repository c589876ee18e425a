"""The partitions of polling: one for each request to look in a source."""

from __future__ import annotations

import hashlib
import re

import dagster as dg

POLLING_JOBS = "polling_jobs"
polling_jobs_partitions = dg.DynamicPartitionsDefinition(name=POLLING_JOBS)

DISCOVERED_FILES = dg.AssetKey("discovered_files")
LONGEST_NAME = 80


def job_key(job_id: str, position: tuple[str, int, int, str]) -> str:
    """The partition key of one request: the job's id, readable, and a short hash of the message that asked.

    Args:
        job_id: chosen by the sender; a job sent again is another request and has another key.
        position: topic, partition, offset and generation of the message.
    """
    readable = re.sub(r"[^\w.\-]+", "_", job_id)[:LONGEST_NAME]
    return f"{readable}~{hashlib.sha256(repr((job_id, *position)).encode()).hexdigest()[:10]}"
