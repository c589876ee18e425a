"""Any bytes on the topics of attachments are a message or unreadable, and Dagster accepts each key."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec
import pytest
from dagster import DagsterInstance
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.contracts.attachments import (
    AttachmentEvent,
    DownloadTask,
    attachment_key,
    decode_attachment_event,
    decode_download_task,
)
from ingest_project.core.errors import UnreadableMessageError
from ingest_project_tests.fuzz import examples

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
TIMES = st.sampled_from(["2026-01-01T00:00:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "x", 7, None])
TASKS = st.fixed_dictionaries(
    {"trace_id": st.text(max_size=250), "domain": st.text(max_size=10), "attachment_url": st.text(max_size=80)},
    optional={"attempt": st.integers(), "occurred_at": TIMES, "expected_size": st.integers(), "checksum": JSON},
)
EVENTS = st.fixed_dictionaries(
    {"trace_id": st.text(max_size=250), "domain": st.text(max_size=10)},
    optional={"attachments": JSON | st.lists(st.text()), "payload": JSON, "occurred_at": TIMES, "event_type": JSON},
)

_numbers = itertools.count()


@pytest.fixture(scope="module")
def instance() -> Iterator[DagsterInstance]:
    """Dagster's records, in memory."""
    with DagsterInstance.ephemeral() as opened:
        yield opened


AWKWARD = ["http://h/a...pdf", "http://h/%00", "http://[", "a\x0bb", "http://h/" + "." * 80]


@settings(deadline=None)
@given(st.binary(max_size=200) | (JSON | TASKS | EVENTS).map(msgspec.json.encode))
def test_anything_is_a_message_or_unreadable(raw: bytes) -> None:
    for decode, kind in ((decode_download_task, DownloadTask), (decode_attachment_event, AttachmentEvent)):
        try:
            message = decode(raw)
        except UnreadableMessageError:
            continue
        assert isinstance(message, kind)


@pytest.mark.parametrize(
    "change",
    [
        {"trace_id": " "},
        {"trace_id": "t\n"},
        {"domain": "d" * 201},
        {"attachment_url": ""},
        {"attachment_url": "x" * 9_000},
        {"attempt": 0},
        {"expected_size": -1},
        {"destination_path": "x" * 3_000},
        {"occurred_at": "yesterday"},
    ],
)
def test_an_invalid_task_is_unreadable_and_names_the_field(change: dict[str, object]) -> None:
    task = {"trace_id": "t", "domain": "d", "attachment_url": "http://h/a"}
    assert decode_download_task(msgspec.json.encode(task))
    with pytest.raises(UnreadableMessageError, match=next(iter(change))):
        decode_download_task(msgspec.json.encode(task | change))


def test_an_event_with_too_many_attachments_is_unreadable() -> None:
    event = {"trace_id": "t", "domain": "d", "attachments": ["u"] * 10_001}
    with pytest.raises(UnreadableMessageError, match="more than 10000 attachments"):
        decode_attachment_event(msgspec.json.encode(event))


@settings(deadline=None, max_examples=examples(25))
@given(urls=st.lists(st.text(max_size=40) | st.sampled_from(AWKWARD), unique=True))
def test_every_address_has_a_key_that_dagster_accepts(instance: DagsterInstance, urls: list[str]) -> None:
    keys = [attachment_key("trace", url) for url in urls]
    partitions = f"attachments {next(_numbers)}"
    instance.add_dynamic_partitions(partitions, keys)
    assert set(instance.get_dynamic_partitions(partitions)) == set(keys)
    assert len(set(keys)) == len(set(urls))


def test_the_key_is_readable_stable_and_shows_nothing_of_the_query() -> None:
    key = attachment_key("trace", "https://h/x/our%20photo.jpg?secret=1")
    assert key == attachment_key("trace", "https://h/x/our%20photo.jpg?secret=1")
    assert key.startswith("our_photo.jpg~")
    assert "secret" not in key
    assert key != attachment_key("other", "https://h/x/our%20photo.jpg?secret=1")
