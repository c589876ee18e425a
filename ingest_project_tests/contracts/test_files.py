"""Messages of `file-event-queue`, `file_events` and `polling-queue`, and the partition keys made of them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.contracts import encode
from ingest_project.contracts.files import (
    decode_file_event,
    decode_polling_job,
    file_key,
    file_type_of,
    is_readable,
    type_inside,
    version_of,
)
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.items import digest_of

JOB = {
    "job_id": "job_123",
    "source_config": {"source_type": "dummy", "path": "./dummy_data"},
    "file_pattern": "*.csv",
    "priority": "normal",
    "metadata": {},
}


def test_the_short_form_means_a_local_file() -> None:
    event = decode_file_event(b'{"file_path": "/in/a.csv", "file_name": "a.csv"}')
    assert (event.source_type, event.kind, event.size_bytes) == ("local", "csv", None)


def test_the_full_form_is_read_and_written_back_the_same() -> None:
    raw = {
        "event_id": "e1", "job_id": "job_123", "source_type": "dummy", "file_path": "./dummy_data/a.CSV",
        "file_name": "a.CSV", "file_type": "csv", "size_bytes": 5213, "modified_at": "2026-01-15T10:30:45Z",
        "etag": None, "discovered_at": "2026-01-15T10:31:00Z", "trace_id": "t", "metadata": {"format": "skab"},
    }  # fmt: skip
    event = decode_file_event(json.dumps(raw).encode())
    assert event.kind == "csv"
    assert event.modified_at == datetime(2026, 1, 15, 10, 30, 45, tzinfo=UTC)
    assert decode_file_event(encode(event)) == event


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file_path": ""}, "file_path"),
        ({"file_path": None}, "file_path"),
        ({"file_path": "/in/a\u0000.csv"}, "NUL"),
        ({"file_path": "/" + "a" * 5_000}, "longer"),
        ({"size_bytes": -1}, "size_bytes"),
        ({"size_bytes": 2**63}, "size_bytes"),
        ({"size_bytes": "12"}, "size_bytes"),
        ({"modified_at": "yesterday"}, "modified_at"),
    ],
)
def test_an_event_that_is_not_of_the_contract_says_which_field(change: dict[str, object], reason: str) -> None:
    with pytest.raises(UnreadableMessageError, match=reason):
        decode_file_event(json.dumps({"file_path": "/in/a.csv", "file_name": "a.csv", **change}).encode())


@pytest.mark.parametrize(
    ("path", "name", "kept"),
    [
        ("https://example.com/a.csv?sig=secret", "a.csv?sig=secret", "a.csv"),
        ("https://example.com/what%3F.csv", "what?.csv", "what?.csv"),
        ("s3://bucket/a?b.csv", "a?b.csv", "a?b.csv"),
    ],
)
def test_the_query_of_an_address_is_no_part_of_the_name(path: str, name: str, kept: str) -> None:
    event = decode_file_event(json.dumps({"file_path": path, "file_name": name}).encode())
    assert (event.file_name, event.file_path) == (kept, path)


def test_the_same_version_has_the_same_key_and_another_version_has_another() -> None:
    first = version_of(None, 10, datetime(2026, 1, 1, tzinfo=UTC))
    later = version_of(None, 10, datetime(2026, 1, 2, tzinfo=UTC))
    key = file_key("local:/in/a.csv", "a.csv", first, "canonical")
    assert key == file_key("local:/in/a.csv", "a.csv", first, "canonical")
    others = [
        file_key("local:/in/a.csv", "a.csv", later, "canonical"),
        file_key("local:/out/a.csv", "a.csv", first, "canonical"),
        file_key("local:/in/a.csv", "a.csv", first, "european"),
        file_key("local:/in/a.csv", "b.csv", first, "canonical"),
    ]
    assert len({key, *others}) == 5


def test_a_key_has_128_bits_and_no_two_lists_of_parts_run_together() -> None:
    digest = file_key("l", "a.csv", "v", "p").rpartition("~")[2]
    assert re.fullmatch(r"[a-z2-7]{26}", digest)
    assert digest_of("a", "b\nc") != digest_of("a\nb", "c")
    assert digest_of("a", "b") != digest_of("ab") != digest_of(["a", "b"])
    assert digest_of("1") != digest_of(1)
    assert digest_of("\ud800") != digest_of("\ud801")


@given(name=st.text(max_size=300), location=st.text(max_size=50))
def test_a_key_is_short_and_readable_whatever_the_file_is_called(name: str, location: str) -> None:
    key = file_key(location, name, "size=1 modified=unknown", "canonical")
    assert len(key.encode()) <= 107
    assert not set(key) & set(" /\\,'\"\n\t\x00%?#&")
    assert "..." not in key, "Dagster takes that for a range"
    assert key[0] not in "-.~"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"),
        ("A.XLSX", "xlsx"),
        ("a", ""),
        (".csv", ""),
        ("a.csv.zip", "zip"),
        ("a.", ""),
        ("a.CSV.Gz", "csv.gz"),
        ("a.jsonl.zst", "jsonl.zst"),
        ("a.gz", "gz"),
        ("a.tar.gz", "gz"),
        (".csv.gz", "gz"),
        ("a.csv" + ".gz" * 5_000, "gz"),
    ],
)
def test_a_file_type_is_the_ending_in_lower_case_with_a_compression_around_it(name: str, kind: str) -> None:
    assert file_type_of(name) == kind


def test_a_file_type_is_readable_if_a_reader_reads_what_is_inside() -> None:
    assert is_readable("csv.gz")
    assert is_readable("gz")
    assert is_readable("parquet")
    assert not is_readable("pdf")
    assert not is_readable("pdf.gz")
    assert not is_readable("")
    assert (type_inside("csv.gz"), type_inside("csv"), type_inside("gz")) == ("csv", "csv", "")


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
        ({"source_config": {"source_type": "http", "url": "https://example.com/"}}, "source_config.path"),
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
