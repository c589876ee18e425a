"""Every decoder turns any bytes into a message or refuses them with one clear reason."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest_project.contracts import MAX_MESSAGE_BYTES, decode
from ingest_project.contracts.attachments import (
    CachedDownload,
    DownloadResult,
    decode_attachment_event,
    decode_download_task,
)
from ingest_project.contracts.enriched_event import decode_enriched_event
from ingest_project.contracts.files import decode_file_event, decode_polling_job
from ingest_project.core.errors import UnreadableMessageError
from ingest_project_tests.streams.crm.messages import CrmRow, row_of, rows_of

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "json"
BOUNDED_SECONDS = 10.0
LONGEST_REASON = 1_000
# What a field that was left out, or a rule of the contract, adds.
OUR_OWN = frozenset({"", "*", "local", "normal", "opportunity", "project"})
BATCH = 500
MEDDLED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Contract(NamedTuple):
    """A message and what reads it."""

    name: str
    decode: Callable[[bytes | None], Any]
    good: dict[str, Any]


def crm_row(raw: bytes | None) -> list[object]:
    """Return the values of the row of a CRM message, numbers as numbers."""
    return values_of(row_of(raw))


def values_of(found: CrmRow | str) -> list[object]:
    if isinstance(found, str):
        raise UnreadableMessageError(found)
    numbers = {name: Decimal(found[1][name]) for name in ("amount", "probability", "budget") if found[1].get(name)}
    own = {name: value for name, value in found[1].items() if not name.startswith("kafka_")}
    return list((own | numbers).values())


_META = {"source": "S", "last_modified": "2024-03-24T20:40:35Z", "tags": ["x"], "notes": "n"}
_CRM = {"name": "n", "account_id": "a", "owner_id": "o", "meta_data": _META}
_DOWNLOAD = {"trace_id": "t", "domain": "claims", "attachment_url": "https://h/a.pdf", "destination_path": "d/a.pdf"}
_WHEN = {"occurred_at": "2026-01-15T10:30:45Z", "event_type": "e", "attempt": 1, "checksum": None}
_CACHED = {"expected_size": 5, "local_path": "/c/a", "size_bytes": 5, "sha256": "0f", "content_type": "a/b"}
_RESULT = {"status": "success", "http_status": 200, "error_class": None, "error": None, "size_bytes": 5}
_RESULT |= {"sha256": "0f", "onelake_path": "d/a.pdf", "attempt": 1, "completed_at": "2026-01-15T10:30:45Z"}
CONTRACTS = (
    Contract(
        "file event",
        decode_file_event,
        {
            "event_id": "e", "job_id": "j", "source_type": "local", "file_path": "/in/a.csv", "file_name": "a.csv",
            "file_type": "csv", "size_bytes": 52, "modified_at": "2026-01-15T10:30:45Z", "etag": "x",
            "discovered_at": "2026-01-15T10:31:00+01:00", "trace_id": "t", "metadata": {"format": "skab", "n": [1]},
            "source_config": {"path": "/in"},
        },
    ),
    Contract("short file event", decode_file_event, {"file_path": "/in/a.csv", "file_name": "a.csv"}),
    Contract(
        "polling job",
        decode_polling_job,
        {
            "job_id": "j", "source_config": {"source_type": "local", "path": "/in", "credentials": "c"},
            "file_pattern": "*.csv", "priority": "high", "metadata": {"format": "f", "trace_id": "t"}, "trace_id": "t",
        },
    ),
    Contract(
        "attachment event",
        decode_attachment_event,
        {
            "trace_id": "t", "domain": "claims", "event_type": "e", "occurred_at": "2026-01-15T10:30:45Z",
            "attachments": ["https://h/a.pdf", {"url": "https://h/b.jpg", "file_name": "b.jpg", "size_bytes": 3}],
            "payload": {"a": {"b": [1, 2.5, None, True]}},
        },
    ),
    Contract("download task", decode_download_task, {**_DOWNLOAD, **_WHEN, "expected_size": 5}),
    Contract("cached download", partial(decode, message_type=CachedDownload), {**_DOWNLOAD, **_WHEN, **_CACHED}),
    Contract(
        "download result",
        partial(decode, message_type=DownloadResult),
        {"trace_id": "t", "attachment_url": "https://h/a.pdf", **_RESULT},
    ),
    Contract(
        "enriched event",
        decode_enriched_event,
        {
            "event_id": "i", "event_type": "page_view", "timestamp": "2024-01-15T10:30:45Z", "user_id": "u",
            "event_data": {"a": {"b": 1}}, "client_info": {"language": "en"}, "service_info": {"environment": "d"},
            "processing_info": {"received_at": "2024-01-15T10:30:45Z", "processing_ms": 5}, "unknown": [1, {"x": "y"}],
        },
    ),
    Contract(
        "opportunity",
        crm_row,
        {
            "event_id": "opp_1", "stage": "s", "amount": 50000.25, "probability": 75,
            "expected_close_date": "2024-06-30", **_CRM,
        },
    ),
    Contract(
        "project",
        crm_row,
        {
            "event_id": "proj_1", "status": "s", "start_date": "2024-03-01", "end_date": None, "budget": 1500,
            **_CRM, "other": {"kept": "as it is"},
        },
    ),
)  # fmt: skip

NASTY_TEXTS = (
    "", " ", "\x00", "\ud800", "\udfff\ud800", "\u202e", "\ufeff", "a" * 3_000, "é" * 1_500, "../../etc", "http://[",
    "https://h:99999999/", "https://[::1", "//", "file:///x", "a/" * 1_000, "*" * 500, "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00", "2024-02-30T00:00:00Z", "0000-00-00", "2024-06-30T25:00:00Z", "NaN", "-0", "1e999",
)  # fmt: skip
NASTY_JSON = (
    "9" * 5_000, "-" + "9" * 5_000, str(2**63), str(-(2**63) - 1), str(2**64), "1e400", "-1e400", "1e-400", "0.1e+1",
    "NaN", "Infinity", "-Infinity", "[" * 2_000 + "]" * 2_000, '{"a":' * 2_000 + "1" + "}" * 2_000, "[" * 40 + "]" * 40,
    "01", "+1", ".5", "'x'", "undefined", '"\\ud800"', '"\\u0000"', '{"\\u0000": 1}', '"\\x"', "",
)  # fmt: skip

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(), max_size=40),
    st.sampled_from(NASTY_TEXTS),
    st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.isoformat()),
    st.recursive(st.none() | st.text(max_size=5), lambda of: st.lists(of, max_size=3), max_leaves=8),
    st.dictionaries(st.text(max_size=8), st.none() | st.integers(), max_size=3),
)
SPLICE = "\x01splice\x01"


@st.composite
def meddled(draw: st.DrawFn, contract: Contract) -> bytes:
    """A good message of which some fields are something else, left out, or not even JSON."""
    message = copy.deepcopy(contract.good)
    spliced: list[str] = []
    for _ in range(draw(st.integers(0, 3))):
        place = message
        name = draw(st.sampled_from(sorted(place)) if place else st.just("x"))
        if isinstance(place.get(name), dict) and place[name] and draw(st.booleans()):
            place, name = place[name], draw(st.sampled_from(sorted(place[name])))
        way = draw(st.sampled_from(("value", "value", "gone", "splice", "more")))
        if way == "gone":
            place.pop(name, None)
        elif way == "splice":
            place[name] = SPLICE
            spliced.append(draw(st.sampled_from(NASTY_JSON)))
        else:
            place[draw(st.text(max_size=10)) if way == "more" else name] = draw(values)
    text = json.dumps(message, ensure_ascii=draw(st.booleans()))
    for one in spliced:
        text = text.replace(json.dumps(SPLICE), one, 1)
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_the_message_of_the_contract_is_read(contract: Contract) -> None:
    require_nothing_invented(contract.decode(json.dumps(contract.good).encode()), json.dumps(contract.good).encode())


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
@MEDDLED
@given(data=st.data())
def test_a_mutated_message_is_read_unchanged_or_refused_with_one_reason(
    contract: Contract, data: st.DataObject
) -> None:
    read_or_refuse(contract, data.draw(meddled(contract)))


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
@MEDDLED
@given(raw=st.binary(max_size=200) | st.none())
def test_any_bytes_are_refused_with_one_reason(contract: Contract, raw: bytes | None) -> None:
    read_or_refuse(contract, raw)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_the_shared_inputs_are_read_or_refused_also_inside_a_message(contract: Contract) -> None:
    files = [path for path in sorted(DATA.rglob("*")) if path.is_file()] if DATA.exists() else []
    if not files:
        pytest.skip("the shared JSON data is not next to this repository")
    read = [path.read_bytes() for path in files]
    # Many files have a line in common.
    inputs = [*dict.fromkeys(raw for content in read for raw in (content, *content.splitlines()[:50]))]
    around = [json.dumps(contract.good | {name: SPLICE}).encode() for name in contract.good]
    short = [raw for raw in inputs if len(raw) < 2_000]
    inside = [text.replace(json.dumps(SPLICE).encode(), raw) for raw in short for text in around]
    if contract.decode is not crm_row:
        for raw in (*inputs, *inside):
            read_or_refuse(contract, raw)
        return
    # A batch of its own takes milliseconds. That a message's row is the same alone is tested with the rows.
    for start in range(0, len(raws := [*inputs, *inside]), BATCH):
        batch = raws[start : start + BATCH]
        for raw, found in zip(batch, rows_of(batch), strict=True):
            require_read_or_refused(partial(values_of, found), raw)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_the_largest_message_is_refused_or_read_in_bounded_time(contract: Contract) -> None:
    full = MAX_MESSAGE_BYTES - 1_000
    fillings = [b"[" * full, b'{"a":' * (full // 5), b'"' * full, b"9" * full, b"\\" * full, b'"\\u0000' * (full // 7)]
    fillings += [
        b'"' + filling * (full // len(filling)) + b'"' for filling in (b"\\\\", b"\\u0000", b"a/", "é".encode())
    ]
    fillings += [b"[" + b'"a",' * (full // 4) + b"1]", b"{" + b'"a":1,' * (full // 6) + b'"b":1}']
    began = time.process_time()
    for filling in fillings:
        read_or_refuse(contract, filling, look=False)
        for name in sorted(contract.good)[:1]:
            start, end = json.dumps(contract.good | {name: SPLICE}).encode().split(json.dumps(SPLICE).encode())
            read_or_refuse(contract, (start + filling + end)[: MAX_MESSAGE_BYTES + 5], look=False)
    assert time.process_time() - began < BOUNDED_SECONDS * 2


OPTIONAL = {
    "file event": ("event_id", "job_id", "source_type", "file_type", "size_bytes", "modified_at", "etag",
                   "discovered_at", "trace_id", "metadata", "source_config"),
    "polling job": ("file_pattern", "priority", "metadata", "trace_id"),
    "attachment event": ("event_type", "occurred_at", "attachments", "payload"),
    "download task": ("destination_path", "attempt", "event_type", "occurred_at", "expected_size", "checksum"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("contract", "names"), [(one, OPTIONAL[one.name]) for one in CONTRACTS if one.name in OPTIONAL]
)
def test_null_means_the_same_as_a_field_that_is_left_out(contract: Contract, names: tuple[str, ...]) -> None:
    for name in names:
        without = {field: value for field, value in contract.good.items() if field != name}
        null = contract.decode(json.dumps(contract.good | {name: None}).encode())
        assert null == contract.decode(json.dumps(without).encode()), name


def test_null_in_a_source_means_the_same_as_a_name_that_is_left_out() -> None:
    job = decode_polling_job(b'{"job_id": "j", "source_config": {"source_type": "s3", "path": null, "port": null}}')
    assert (job.source_config, job.path) == ({"source_type": "s3"}, "")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("file event", {"modified_at": "0001-01-01T00:00:00+14:00"}, "modified_at lies outside the years"),
        ("file event", {"discovered_at": "9999-12-31T23:59:59-14:00"}, "discovered_at lies outside the years"),
        ("file event", {"trace_id": "é" * 600}, "trace_id is longer than 1024 bytes"),
        ("file event", {"etag": "a\x00"}, "etag contains a NUL"),
        ("file event", {"metadata": {"a": "b\x00"}}, "metadata contains a NUL"),
        ("file event", {"metadata": {"a": "x" * 70_000}}, "at most 65536 are kept"),
        ("file event", {"metadata": {"format": ["a"]}}, "metadata.format"),
        ("file event", {"file_path": "é" * 3_000}, "file_path is longer than 4096 bytes"),
        ("polling job", {"source_config": {"source_type": "local", "path": "a/" * 1_000_00}}, "source_config has"),
        ("polling job", {"source_config": {"source_type": "local", "path": "a/" * 3_000}}, "path is longer than 4096"),
        ("polling job", {"file_pattern": "*" * 600}, "file_pattern is longer than 512"),
        ("polling job", {"metadata": {"trace_id": {}}}, "metadata.trace_id"),
        ("polling job", {"job_id": "a\x00"}, "job_id contains a NUL"),
    ],
)
def test_values_beyond_a_limit_are_refused_with_the_field_and_the_limit(
    name: str, change: dict[str, Any], reason: str
) -> None:
    (contract,) = (one for one in CONTRACTS if one.name == name)
    with pytest.raises(UnreadableMessageError, match=reason):
        contract.decode(json.dumps(contract.good | change).encode())


def read_or_refuse(contract: Contract, raw: bytes | None, *, look: bool = True) -> None:
    """Decode; nothing but our own exception may come of it, and no value that the sender did not write."""
    require_read_or_refused(partial(contract.decode, raw), raw, look=look)


def require_read_or_refused(decoded: Callable[[], Any], raw: bytes | None, *, look: bool = True) -> None:
    try:
        message = decoded()
    except UnreadableMessageError as refusal:
        if not 0 < len(str(refusal)) < LONGEST_REASON:
            pytest.fail(f"The reason has {len(str(refusal))} characters: {str(refusal)[:200]}")
        return
    if look:
        require_nothing_invented(message, raw or b"")


def require_nothing_invented(message: object, raw: bytes) -> None:
    """Every text, number and time of a message is one that its JSON holds."""
    given_values = list(
        leaves(json.loads(raw.decode("utf-8-sig", "replace"), parse_float=as_number, parse_int=as_number))
    )
    texts = {one for one in given_values if isinstance(one, str)}
    numbers = [one for one in given_values if isinstance(one, Decimal)]
    moments = [moment for moment in map(as_moment, texts) if moment]
    for one in leaves(message):
        if isinstance(one, datetime):
            # Digits beyond the microsecond are rounded.
            assert any(abs(one - moment) <= timedelta(microseconds=1) for moment in moments), one
        elif isinstance(one, date):
            assert one.isoformat() in texts
        elif isinstance(one, Decimal):
            assert any(one == number for number in numbers), one
        elif isinstance(one, int | float) and not isinstance(one, bool):
            assert one == 1 or any(float(one) == float(number) for number in numbers), one
        elif isinstance(one, str) and one not in OUR_OWN:
            # The fields of a CRM message that are JSON as it came, its digest, and NUL, which no database takes.
            is_json = one[:1] in {"{", "["} or len(one) == 64
            assert is_json or one in texts or one in {text.replace("\x00", "\ufffd") for text in texts}, one


def leaves(value: object) -> Iterator[object]:
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from leaves(getattr(value, name))
    elif isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, msgspec.Raw):
        if bytes(value):
            yield from leaves(
                json.loads(bytes(value).decode("utf-8", "replace"), parse_float=as_number, parse_int=as_number)
            )
    elif isinstance(value, StrEnum):
        yield value.value
    else:
        yield value


def as_number(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of a hundred digits
        return text


def as_moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
