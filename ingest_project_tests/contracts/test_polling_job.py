"""Messages of `polling-queue`."""

from __future__ import annotations

import json

import pytest

from ingest_project.contracts.decoding import encode
from ingest_project.contracts.files import decode_polling_job
from ingest_project.core.errors import UnreadableMessageError

JOB = {
    "job_id": "job_123",
    "source_config": {"source_type": "dummy", "path": "./dummy_data"},
    "file_pattern": "*.csv",
    "priority": "normal",
    "metadata": {},
}


def test_a_job_of_the_contract_is_read_and_written_back_the_same() -> None:
    job = decode_polling_job(json.dumps(JOB).encode())
    assert (job.job_id, job.source_type, job.path, job.file_pattern) == ("job_123", "dummy", "./dummy_data", "*.csv")
    assert decode_polling_job(encode(job)) == job


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"job_id": None}, "job_id"),
        ({"job_id": "  "}, "job_id"),
        ({"job_id": "x" * 201}, "job_id"),
        ({"source_config": "./dummy_data"}, "source_config"),
        ({"source_config": {"path": "x"}}, "source_type"),
        ({"source_config": {"source_type": 7}}, "source_type"),
        ({"priority": "urgent"}, "priority"),
        ({"metadata": []}, "metadata"),
        ({"source_config": {"source_type": "sftp", "password": "hunter2"}}, "password"),
    ],
)
def test_a_job_that_is_not_of_the_contract_says_which_field(change: dict[str, object], reason: str) -> None:
    with pytest.raises(UnreadableMessageError, match=reason) as caught:
        decode_polling_job(json.dumps({**JOB, **change}).encode())
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        None,
        b"not json",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{}",
        b"null",
        b"5",
        b'{"job_id": "a"',
        b'"' + b"x" * 5_000_000 + b'"',
    ],
)
def test_anything_else_is_unreadable_with_a_short_reason(raw: bytes | None) -> None:
    with pytest.raises(UnreadableMessageError) as caught:
        decode_polling_job(raw)
    assert 0 < len(str(caught.value)) < 300
