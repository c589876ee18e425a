"""EnrichedEvent: strict types, unknown fields kept, and one reason for each refused message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.contracts import MAX_MESSAGE_BYTES
from ingest_project.contracts.enriched_event import EnrichedEvent, decode_enriched_event
from ingest_project.core.errors import UnreadableMessageError
from ingest_project_tests.streams.user_activity.events import encoded, event

NAMES = EnrichedEvent.__struct_fields__
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text("abcé", max_size=5), inside, max_size=3),
    max_leaves=8,
)  # fmt: skip


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in event().items() if key != name}


def refused(raw: bytes | None) -> str:
    with pytest.raises(UnreadableMessageError) as caught:
        decode_enriched_event(raw)
    return str(caught.value)


def test_the_contracts_example_is_accepted_unchanged() -> None:
    found, rescued = decode_enriched_event(encoded(event()))
    assert rescued is None
    assert (found.event_id, found.user_id, found.timestamp) == ("e1", "user-123", "2026-01-15T10:30:45Z")
    assert found.processing_info
    assert found.processing_info.processing_ms == 5
    assert json.loads(bytes(found.event_data)) == event()["event_data"]


@pytest.mark.parametrize("name", ["event_id", "event_type", "timestamp"])
def test_a_required_field_that_is_missing_or_null_is_named(name: str) -> None:
    assert f"{name} is missing" in refused(encoded(without(name)))
    assert f"$.{name}" in refused(encoded(event() | {name: None}))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"event_id", "event_type", "timestamp"}])
def test_an_optional_field_may_be_missing_or_null(name: str) -> None:
    for message in (without(name), event() | {name: None}):
        found, rescued = decode_enriched_event(encoded(message))
        assert rescued is None
        assert name == "event_data" or not getattr(found, name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "event_data"])
@pytest.mark.parametrize("wrong", [5, True, ["a"]])
def test_a_wrong_type_is_named(name: str, wrong: object) -> None:
    assert f"$.{name}" in refused(encoded(event() | {name: wrong}))


def test_unknown_fields_are_kept_wherever_they_are() -> None:
    message = event(colour="red", client_info={"language": "en", "device": {"os": "x"}}, more=[1, 2.50])
    found, rescued = decode_enriched_event(encoded(message))
    assert json.loads(rescued or "") == {"colour": "red", "more": [1, 2.5], "client_info": {"device": {"os": "x"}}}
    assert found.client_info
    assert found.client_info.language == "en"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (event(event_id=""), "event_id must have"),
        (event(event_id=" "), "event_id must have"),
        (event(event_id="x" * 513), "event_id must have"),
        (event(event_type=" "), "event_type must be"),
        (event(event_type="a\nb"), "event_type must be"),
        (event(event_type="x" * 201), "event_type must be"),
        ([], "the message must be an object"),
        ("text", "the message must be an object"),
    ],
)
def test_a_message_that_cannot_be_an_event_is_refused(message: object, reason: str) -> None:
    assert reason in refused(encoded(message))


@pytest.mark.parametrize(
    "raw", [None, b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":' * 100_000, b" " * (MAX_MESSAGE_BYTES + 1), b"NaN"]
)
def test_invalid_json_is_refused_in_one_sentence(raw: bytes | None) -> None:
    assert refused(raw).endswith(".")


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_refused(raw: bytes) -> None:
    refused(raw)


@given(st.dictionaries(st.sampled_from([*NAMES, "x", "y"]), JSON, max_size=14))
def test_any_object_is_an_event_or_refused_and_nothing_of_it_is_lost(message: dict[str, Any]) -> None:
    try:
        found, rescued = decode_enriched_event(encoded(message))
    except UnreadableMessageError:
        return
    unknown = {name: value for name, value in message.items() if name not in NAMES}
    kept = json.loads(rescued or "{}")
    assert {name: kept[name] for name in unknown} == unknown
    assert all(getattr(found, name) == message[name] for name in ("event_id", "event_type", "timestamp"))


@given(JSON)
def test_the_order_and_number_of_extra_fields_change_nothing_else(extra: object) -> None:
    plain, _ = decode_enriched_event(encoded(event()))
    more, rescued = decode_enriched_event(encoded({"z": extra, **event(), "a": extra}))
    assert json.loads(rescued or "") == {"a": extra, "z": extra}
    assert all(getattr(plain, name) == getattr(more, name) for name in NAMES if name != "event_data")
    assert json.loads(bytes(more.event_data)) == json.loads(bytes(plain.event_data))
