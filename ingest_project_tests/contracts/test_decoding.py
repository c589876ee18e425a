"""A trace id comes from our header or W3C's, and from nothing else."""

from __future__ import annotations

import pytest

from ingest_project.contracts import trace_id_in

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
