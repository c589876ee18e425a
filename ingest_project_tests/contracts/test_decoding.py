"""Rules for every message: the trace id comes from our header or W3C's, and no object has a name twice."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from ingest_project.contracts import require_single_names, trace_id_in
from ingest_project.contracts.attachments import decode_attachment_event
from ingest_project.contracts.files import decode_file_event, decode_polling_job
from ingest_project.contracts.storage_events import decode_storage_notification
from ingest_project.core.errors import UnreadableMessageError

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((("trace-id", b"abc"),), "abc"),
        ((("Trace-Id", b" abc "), ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode())), "abc"),
        ((("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode()),), TRACE),
        ((("traceparent", f"cc-{TRACE}-00f067aa0ba902b7-01-what-comes-later".encode()),), TRACE),
        ((("traceparent", f"00-{'0' * 32}-00f067aa0ba902b7-01".encode()),), None),
        ((("traceparent", b"nonsense"),), None),
        ((("trace-id", b"\x00\xff"),), None),
        ((("trace-id", b"x" * 201),), None),
        ((("trace-id", None),), None),
        ((), None),
    ],
)
def test_the_trace_of_a_message_is_the_one_its_headers_name(
    headers: tuple[tuple[str, bytes | None], ...], expected: str | None
) -> None:
    assert trace_id_in(headers) == expected


@pytest.mark.parametrize(
    ("decode", "raw", "name"),
    [
        (decode_polling_job, b'{"job_id": "a", "job_id": "b", "source_config": {"source_type": "dummy"}}', "job_id"),
        (
            decode_polling_job,
            b'{"job_id": "a", "source_config": {"source_type": "local", "path": "a", "p\\u0061th": "b"}}',
            "source_config.path",
        ),
        (
            decode_file_event,
            b'{"file_path": "a.csv", "file_name": "a.csv", "metadata": {"n": [{"a": 1, "a": 2}]}}',
            "a",
        ),
        (
            decode_attachment_event,
            (
                b'{"trace_id": "t", "event_type": "e", "domain": "claims", "occurred_at": "2026-01-15T10:30:45Z",'
                b' "attachments": [], "payload": {"a": 1, "b": 2, "a": null}}'
            ),
            "payload.a",
        ),
        (decode_storage_notification, b'{"Records": [{"eventName": "ObjectCreated:Put", "s3": 1, "s3": 2}]}', "s3"),
    ],
)
def test_a_name_that_an_object_has_twice_refuses_the_message(
    decode: Callable[[bytes], object], raw: bytes, name: str
) -> None:
    with pytest.raises(UnreadableMessageError, match=re.escape(f"{name} occurs 2 times")):
        decode(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a:": 1, "a:": ":"}',
        b'{"a\\u003a": 1, "a": 1, "a": 2}',
        b'{"a": "\\u003a", "a": "\\u003A"}',
        b'[{"a": {}}, {"b": [{"": 1, "": 2}]}]',
        b'{"a": 1, "\\u0061": 2}',
    ],
)
def test_neither_colons_nor_escapes_hide_a_name_that_occurs_twice(raw: bytes) -> None:
    with pytest.raises(UnreadableMessageError, match="occurs 2 times"):
        require_single_names(raw)


@pytest.mark.parametrize(
    "raw", [b'{"a:": ":", "b": "::\\u003a"}', b'{"a": {"a": {"a": 1}}}', b'{"a": 1' + b"0" * 5_000 + b"}", b"[1]"]
)
def test_the_same_name_in_several_objects_and_colons_in_texts_are_no_reason(raw: bytes) -> None:
    require_single_names(raw)
