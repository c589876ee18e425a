"""Every decoder keeps values exactly, and refuses what is not of its format, message by message."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from google.protobuf import descriptor_pb2, struct_pb2, timestamp_pb2, wrappers_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.contracts.columns import StreamColumn
from ingest_project.core.errors import SchemaRegistryUnavailableError, SettingsError, TransientError
from ingest_project.core.settings import SchemaRegistrySettings, Settings
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams import protobuf
from ingest_project.streams.contract import Contract
from ingest_project.streams.declaration import StreamDeclaration
from ingest_project.streams.registry import registry_of
from ingest_project.streams.values import array_of
from ingest_project_tests.fuzz import examples
from ingest_project_tests.services.http_exchange import Answer
from ingest_project_tests.services.memory import with_peak_memory
from ingest_project_tests.services.schema_registry import BASIC_USER, TOKEN, SchemaRegistry
from ingest_project_tests.streams.declared import messages
from ingest_project_tests.streams.declared.messages import TOPIC, framed, received

# In UTC, no time of these is beyond the calendar.
YEARS = datetime(2, 1, 1), datetime(9998, 1, 1)  # noqa: DTZ001 - Hypothesis adds the zone
MOMENTS = st.datetimes(*YEARS) | st.datetimes(*YEARS, timezones=st.just(UTC) | st.timezones())
FIELD = descriptor_pb2.FieldDescriptorProto
COLUMNS: list[dict[str, Any]] = [
    {"name": "order_id", "type": "text", "required": True},
    {"name": "amount", "type": "decimal(12,2)", "required": True, "min": 0},
    {"name": "placed_at", "type": "timestamp", "required": True},
    {"name": "status", "type": "text", "allowed": ["OPEN", "PAID"]},
    {"name": "quantity", "type": "integer"},
    {"name": "weight", "type": "number"},
    {"name": "gift", "type": "boolean"},
    {"name": "due", "type": "date"},
    {"name": "city", "type": "text", "path": "$.customer.address.city"},
    {"name": "tags", "type": "json"},
]
AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {"name": "order_id", "type": "string"},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "placed_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "status", "type": {"type": "enum", "name": "Status", "symbols": ["OPEN", "PAID", "LOST"]}},
        {"name": "quantity", "type": ["null", "long"], "default": None},
        {"name": "weight", "type": ["null", "double", "string"], "default": None},
        {"name": "gift", "type": ["null", "boolean"], "default": None},
        {"name": "due", "type": ["null", {"type": "int", "logicalType": "date"}], "default": None},
        {
            "name": "customer",
            "default": None,
            "type": [
                "null",
                {
                    "type": "record",
                    "name": "Customer",
                    "fields": [
                        {
                            "name": "address",
                            "type": {
                                "type": "record",
                                "name": "Address",
                                "fields": [{"name": "city", "type": "string"}, {"name": "zip", "type": "string"}],
                            },
                        }
                    ],
                },
            ],
        },
        {"name": "tags", "type": ["null", {"type": "array", "items": "string"}], "default": None},
    ],
}
RECORD: dict[str, Any] = {
    "order_id": "o1",
    "amount": Decimal("9999999999.99"),
    "placed_at": datetime(2026, 1, 15, 10, 30, 45, 123_456, tzinfo=UTC),
    "status": "PAID",
    "quantity": 2**62,
    "weight": 1.25,
    "gift": False,
    "due": date(2026, 2, 28),
    "customer": {"address": {"city": "Bern", "zip": "3000"}},
    "tags": ["a", "é"],
}
ROW = {
    **{name: value for name, value in RECORD.items() if name not in {"customer", "tags"}},
    "city": "Bern",
    "tags": '["a","é"]',
    "rescued_data": '{"customer":{"address":{"zip":"3000"}}}',
}


def settings_of(registry: SchemaRegistry, **more: object) -> Settings:
    return Settings(schema_registry=SchemaRegistrySettings(url=registry.url, timeout_seconds=2, **more))


def contract(decoder: str, settings: Settings | None = None, **more: object) -> Contract:
    values: dict[str, Any] = {"name": "orders", "topic": TOPIC, "columns": COLUMNS, **more}
    return Contract(StreamDeclaration.model_validate({**values, "decoder": decoder}), settings or Settings())


def decoded(made: Contract, *found: ConsumerRecord) -> tuple[list[dict[str, Any]], dict[int, str]]:
    rows = made.rows_of(found)
    assert sorted([*(one.offset for one in rows.messages), *(one.offset for one, _ in rows.refused)]) == [
        one.offset for one in found
    ]
    return rows.table.to_pylist(), {message.offset: str(error) for message, error in rows.refused}


def as_json(record: dict[str, Any]) -> bytes:
    """As a producer writes it: the amount as a number with all its digits."""
    texts = {name: str(value) if isinstance(value, date | datetime) else value for name, value in record.items()}
    return json.dumps(texts, default=float, ensure_ascii=False).encode()


def test_avro_keeps_logical_types_unions_enums_and_nested_records_exactly(registry: SchemaRegistry) -> None:
    payload = messages.avro(registry.url, json.dumps(AVRO), RECORD)
    least = messages.avro(registry.url, json.dumps(AVRO), {**RECORD, "customer": None, "weight": None, "tags": None})
    (row, other), refused = decoded(contract("avro", settings_of(registry)), *received(payload, least))
    assert refused == {}
    assert row == ROW
    assert (other["city"], other["weight"], other["tags"], other["rescued_data"]) == (None, None, None, None)


def test_json_keeps_the_digits_of_decimals_and_refuses_other_types(registry: SchemaRegistry) -> None:
    del registry
    good = as_json({**RECORD, "placed_at": "2026-01-15T10:30:45.123456Z"})
    amount = b'"amount": 9999999999.99'
    assert amount in good
    bad = {
        b'"amount": "9999999999.99"': None,
        b'"amount": 1e2': None,
        b'"amount": 0.001': "amount_too_many_decimals",
        b'"amount": -1': "amount_out_of_range",
        b'"amount": 1e999999999': "amount_out_of_range",
        b'"amount": "NaN"': "amount_not_a_decimal",
        b'"amount": null': "amount_missing",
        b'"amount": true': "amount_not_a_decimal",
        b'"amount": "1_000"': "amount_not_a_decimal",
        b'"amount": " 1 "': "amount_not_a_decimal",
        '"amount": "\u0661"'.encode(): "amount_not_a_decimal",
        b'"amount": 1, "amount": 2': "amount occurs 2 times",
    }
    cases = [good, *(good.replace(amount, one) for one in bad), b"[]", b"{", b"\xff", b"", good + b"x"]
    rows, refused = decoded(contract("json"), *received(*cases))
    assert rows[0] == ROW | {"tags": '["a", "é"]'}, "JSON stays as it was sent"
    assert [row["amount"] for row in rows[1:]] == [Decimal("9999999999.99"), Decimal("100.00")]
    for offset, reason in enumerate(bad.values(), 1):
        assert (offset not in refused) if reason is None else reason in refused[offset]
    assert refused.keys() >= set(range(len(bad) + 1, len(cases)))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("quantity", 2**63, "quantity_out_of_range"),
        ("quantity", 1.5, "quantity_not_an_integer"),
        ("quantity", 2.0**53, "quantity_not_an_integer"),
        ("quantity", 5.0, None),
        ("quantity", "many", "$.quantity must be a whole number, is text"),
        ("weight", 2**53 + 1, None),
        ("placed_at", "2026-02-30T00:00:00Z", "placed_at_not_a_timestamp"),
        ("placed_at", "0001-01-01T00:00:00+14:00", "placed_at_not_a_timestamp"),
        ("placed_at", 1_768_473_045, "$.placed_at"),
        ("due", "2026-02-30", "due_not_a_date"),
        ("due", "2026-02-28T00:00:00Z", "due_not_a_date"),
        ("status", "LOST", "status_not_allowed"),
        ("order_id", None, "order_id_missing"),
        ("customer", {"address": {"city": 5}}, "$.customer.address.city"),
        ("customer", [], "$.customer"),
        ("customer", {"address": None}, None),
    ],
)
def test_a_value_that_is_not_of_its_column_refuses_its_message_alone(field: str, value: object, reason: str) -> None:
    base = {**RECORD, "placed_at": "2026-01-15T10:30:45Z"}
    found = received(as_json(base), as_json({**base, field: value}), as_json(base))
    rows, refused = decoded(contract("json"), *found)
    assert len(rows) == (3 if reason is None else 2)
    if reason is not None:
        assert list(refused) == [1]
        assert reason in refused[1]


def test_a_number_too_close_to_zero_for_a_float_is_refused_and_never_zero() -> None:
    good = as_json({**RECORD, "placed_at": "2026-01-15T10:30:45Z", "weight": 0.5})
    numbers = (b"1e-400", b"-0.00001E-0320", b"0." + b"0" * 400 + b"1", b"0e-400", b"-0." + b"0" * 400, b"5e-324")
    rows, refused = decoded(contract("json"), *received(*(good.replace(b"0.5", one) for one in numbers)))
    assert list(refused) == [0, 1, 2]
    assert "1e-400 is too close to zero" in refused[0]
    assert [row["weight"] for row in rows] == [0.0, 0.0, 5e-324]
    quantity = as_json({**RECORD, "placed_at": "2026-01-15T10:30:45Z", "quantity": 0.5}).replace(b"0.5", b"1e-400")
    assert "1e-400 is too close to zero" in decoded(contract("json"), *received(quantity))[1][0]
    column = StreamColumn(name="weight", type="number")
    assert array_of(column, [Decimal("1e-400"), Decimal(0)])[1].keys() == {0}


@settings(deadline=None, max_examples=examples(50))
@given(st.lists(st.none() | MOMENTS, max_size=6))
def test_times_of_any_zone_are_the_moments_that_each_of_them_is(moments: list[datetime | None]) -> None:
    utc = [one and (one.astimezone(UTC) if one.tzinfo else one.replace(tzinfo=UTC)) for one in moments]
    column = StreamColumn(name="at", type="timestamp")
    found, unreadable = array_of(column, moments)
    assert found.to_pylist() == utc
    assert unreadable == {}


def test_texts_of_numbers_and_times_are_written_as_in_files() -> None:
    columns = [{"name": "n", "type": "decimal(12,3)"}, {"name": "at", "type": "timestamp"}]
    numbers = {".5": "0.5", "+1": "1", "1e3": "1000", "5.": "5", "1E-3": "0.001", "-0.0": "0"}
    times = {
        "2026-01-15T10:30": "2026-01-15T10:30:00",
        "2026-01-15 10:30Z": "2026-01-15T10:30:00",
        "2026-01-15T10:30+05": "2026-01-15T05:30:00",
        "2026-01-15T10:30:00.5-0545": "2026-01-15T16:15:00.5",
        "2026-01-15T10:30:00-05": "2026-01-15T15:30:00",
    }
    found = [{"n": one} for one in numbers] + [{"at": one} for one in times]
    bad = [{"n": one} for one in (".", "1e", "1_0", " 1", "1,5")]
    bad += [{"at": one} for one in ("2026-01-15", "2026-01-15T10", "10:30", "2026-01-15T10:3", "2026-01-15T10:30+5")]
    payloads = [json.dumps(one).encode() for one in (*found, *bad)]
    rows, refused = decoded(contract("json", columns=columns), *received(*payloads))
    assert [row["n"] for row in rows[: len(numbers)]] == [Decimal(one) for one in numbers.values()]
    assert [row["at"] for row in rows[len(numbers) :]] == [
        datetime.fromisoformat(one).replace(tzinfo=UTC) for one in times.values()
    ]
    assert sorted(refused) == list(range(len(found), len(payloads)))


def test_times_as_numbers_are_read_where_a_column_says_what_they_count() -> None:
    columns = [{"name": "at", "type": "timestamp", "epoch": "milliseconds"}]
    rows, refused = decoded(contract("json", columns=columns), *received(b'{"at": 1768473045123}', b'{"at": "soon"}'))
    assert rows[0]["at"] == datetime(2026, 1, 15, 10, 30, 45, 123_000, tzinfo=UTC)
    assert "at_not_a_timestamp" in refused[1]


EPOCHS = [
    ("seconds", "1690000000.123", "2023-07-22T04:26:40.123000"),
    ("seconds", '"1690000000.123"', "2023-07-22T04:26:40.123000"),
    ("seconds", "1690000000", "2023-07-22T04:26:40"),
    ("seconds", "1690000000.1234567", "2023-07-22T04:26:40.123456"),
    ("seconds", "-0.0000001", "1969-12-31T23:59:59.999999"),
    ("seconds", "1.690000000123e9", "2023-07-22T04:26:40.123000"),
    ("seconds", "253402300799.999999", "9999-12-31T23:59:59.999999"),
    ("milliseconds", "1690000000123.456", "2023-07-22T04:26:40.123456"),
    ("milliseconds", '"-1"', "1969-12-31T23:59:59.999000"),
    ("microseconds", "1690000000123456.9", "2023-07-22T04:26:40.123456"),
    ("nanoseconds", "1690000000123456789", "2023-07-22T04:26:40.123456"),
    ("nanoseconds", '"1690000000123456789.5"', "2023-07-22T04:26:40.123456"),
    ("nanoseconds", "-1", "1969-12-31T23:59:59.999999"),
    *(("seconds", bad, None) for bad in ("253402300800", "1e400", "1e99999999", '"NaN"', '"1_0"', "true", "[]", '""')),
    *(("seconds", bad, None) for bad in ('"2023-07-22"', '"\u0661\u0666"', '" 1"', "-62135596801", "9" * 400)),
]


@pytest.mark.parametrize("around", [[], [b'{"at": 0}'], [b'{"at": 1e0}']], ids=["alone", "whole", "odd"])
def test_a_time_as_a_number_is_exact_in_any_unit_and_refused_otherwise(around: list[bytes]) -> None:
    for epoch, written, expected in EPOCHS:
        made = contract("json", columns=[{"name": "at", "type": "timestamp", "epoch": epoch}])
        rows, refused = decoded(made, *received(b'{"at": %s}' % written.encode(), *around))
        if expected is None:
            assert "at_not_a_timestamp" in refused[0], written
        else:
            assert rows[0]["at"] == datetime.fromisoformat(f"{expected}+00:00"), (epoch, written)


def test_a_name_that_occurs_twice_refuses_the_message_at_any_depth() -> None:
    columns = [{"name": "id", "type": "text"}, {"name": "n", "type": "integer", "path": "$.in.id"}]
    columns += [{"name": "more", "type": "json"}]
    good = [
        b'{"id": "a", "in": {"id": 1}}',
        b'{"id": null, "in": null, "more": {"id": 1, "more": {"id": 2}}}',
        b'{"id": "\\"id\\": 1", "other": 1, "in": {"id": 1, "more": 2}}',
        b'{"other": {"id": 1}, "in": {}}',
        b"{}",
        b'{"id": "caf\\u00e9 \\u0041"}',
    ]
    bad = [
        b'{"id": "a", "id": "b", "in": {"id": 1}}',
        b'{"id": "a", "in": {"id": 1, "id": 2}}',
        b'{"in": {"id": 1}, "in": {"id": 2}}',
        b'{"id": "a", "\\u0069d": "b"}',
        b'{"id": "a", "id" : "a", "unknown": 1}',
        b'{"id": null, "id": "b", "more": 1}',
        b'{"id": "a", "other": 1, "other": 2, "in": {"id": 1}}',
        b'{"id": "a", "in": {"id": 1, "odd": 1, "odd": 2}}',
        b'{"id": null, "in": null, "more": {"id": 1, "id": 2}}',
        b'{"more": [[{"a": 1}, {"a": 1, "b": 1, "a": 2}]]}',
        b'{"other": {"id": 1, "in": {"a": 1, "\\u0061": 2}}}',
    ]
    rows, refused = decoded(contract("json", columns=columns), *received(*good, *bad))
    assert len(rows) == len(good), refused
    assert all("occurs 2 times" in refused[len(good) + number] for number in range(len(bad)))


CUSTOMER: list[dict[str, Any]] = [
    {"name": "order_id", "type": "text", "required": True},
    {
        "name": "buyer",
        "type": "struct",
        "path": "$.customer",
        "fields": [
            {"name": "age", "type": "integer", "min": 0},
            {"name": "since", "type": "timestamp", "epoch": "seconds"},
            {
                "name": "home",
                "type": "struct",
                "path": "$.address",
                "required": True,
                "fields": [
                    {"name": "city", "type": "text", "required": True},
                    {"name": "rent", "type": "decimal(8,2)"},
                    {"name": "more", "type": "json"},
                ],
            },
        ],
    },
]
HOME = {"city": "Bern", "rent": Decimal("12.30"), "more": '{"a": 1.50}'}


def test_a_struct_has_typed_fields_and_is_null_where_the_message_has_none() -> None:
    whole = b'{"age": 7, "since": 1.5, "address": {"city": "Bern", "rent": 12.30, "more": {"a": 1.50}}}'
    given = {
        whole: {"age": 7, "since": datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC), "home": HOME},
        b"null": None,
        b'{"address": {"city": "Bern"}}': {
            "age": None,
            "since": None,
            "home": {"city": "Bern", "rent": None, "more": None},
        },
    }
    bad = {
        whole.replace(b"Bern", b"\xff"): "Not UTF-8",
        b"{}": "buyer.home_missing",
        b'{"address": null}': "buyer.home_missing",
        b'{"address": {}}': "buyer.home.city_missing",
        whole.replace(b"12.30", b"1e9"): "buyer.home.rent_out_of_range",
        whole.replace(b"1.5,", b'"soon",'): "buyer.since_not_a_timestamp",
        whole.replace(b"7", b"-7"): "buyer.age_out_of_range",
        whole.replace(b"7", b'"x"'): "$.customer.age must be a whole number",
        b'{"address": [{"city": "Bern"}]}': "$.customer.address must be an object",
        b"[]": "$.customer must be an object",
        b'"text"': "$.customer must be an object",
        whole.replace(b'"city"', b'"city": "a", "city"'): "customer.address.city occurs 2 times",
        whole.replace(b'"a": 1.50', b'"a": 1, "a": 2'): "occurs 2 times",
        b'{"address": ' * 5_000 + b"1" + b"}" * 5_000: "",
    }
    absent, rescued = (
        b'{"order_id": "o"}',
        b'{"order_id": "o", "customer": {"x": 1, "address": {"city": "B", "zip": 3}}}',
    )
    payloads = [b'{"order_id": "o", "customer": %s}' % one for one in (*given, *bad)]
    rows, refused = decoded(contract("json", columns=CUSTOMER), *received(*payloads, absent, rescued))
    assert [row["buyer"] for row in rows[: len(given)]] == list(given.values())
    assert (rows[-2]["buyer"], rows[-2]["rescued_data"]) == (None, None)
    assert rows[-1]["rescued_data"] == '{"customer":{"x":1,"address":{"zip":3}}}'
    assert sorted(refused) == list(range(len(given), len(payloads)))
    for offset, reason in enumerate(bad.values(), len(given)):
        assert reason in refused[offset]
    frozen = contract("json", columns=CUSTOMER, drift="freeze")
    assert "customer" in decoded(frozen, *received(absent, rescued))[1][1]


def test_avro_and_protobuf_fill_structs_and_tell_a_missing_one_from_an_empty_one(registry: SchemaRegistry) -> None:
    address = {"name": "address", "type": "struct", "fields": [{"name": "city", "type": "text"}]}
    customer = {"name": "customer", "type": "struct", "fields": [address]}
    schema = json.dumps(AVRO)
    records = [RECORD, {**RECORD, "customer": None}]
    avro = contract("avro", settings_of(registry), columns=[customer])
    rows, refused = decoded(avro, *received(*(messages.avro(registry.url, schema, one) for one in records)))
    assert ([row["customer"] for row in rows], refused) == ([{"address": {"city": "Bern"}}, None], {})
    assert '"customer":{"address":{"zip":"3000"}}' in rows[0]["rescued_data"]
    as_text = contract("avro", settings_of(registry), columns=[{**customer, "path": "$.order_id"}])
    assert "order_id must be a record" in decoded(as_text, *received(messages.avro(registry.url, schema, RECORD)))[1][0]
    order = messages.message_class(
        "Parcel", [("address", FIELD.TYPE_MESSAGE, ".shop.Address")], messages={"Address": ["city", "zip"]}
    )
    sent = [order(address={"city": "Bern", "zip": "3000"}), order(address={}), order()]
    protobuf = contract("protobuf", settings_of(registry), columns=[address])
    payloads = [messages.protobuf(registry.url, one) for one in sent]
    rows, refused = decoded(protobuf, *received(*payloads, payloads[0] + b"\x0a\x00"))
    assert [row["address"] for row in rows] == [{"city": "Bern"}, {"city": ""}, None]
    assert list(refused) == [3], "the message is there twice"


def test_a_text_message_is_stored_whole_as_utf_8() -> None:
    made = contract("text", columns=[{"name": "line", "type": "text", "pattern": "[^x]*"}])
    rows, refused = decoded(made, *received("hé\0".encode(), b"\xff", b"", b"x"))
    assert [row["line"] for row in rows] == ["hé\0"]
    assert "Not UTF-8" in refused[1]
    assert "line_pattern" in refused[3]


def test_protobuf_needs_no_generated_classes(registry: SchemaRegistry) -> None:
    order = messages.message_class(
        "Order",
        [
            ("order_id", FIELD.TYPE_STRING, ""),
            ("placed_at", FIELD.TYPE_MESSAGE, ".google.protobuf.Timestamp"),
            ("status", FIELD.TYPE_ENUM, ".shop.Status"),
            ("quantity", FIELD.TYPE_UINT64, ""),
            ("weight", FIELD.TYPE_MESSAGE, ".google.protobuf.DoubleValue"),
            ("gift", FIELD.TYPE_BOOL, ""),
            ("tags", FIELD.TYPE_STRING, ""),
            ("raw", FIELD.TYPE_BYTES, ""),
        ],
        timestamp_pb2.DESCRIPTOR.name,
        wrappers_pb2.DESCRIPTOR.name,
        optional=("gift",),
        repeated=("tags",),
        enum=("OPEN", "PAID"),
    )
    columns = [column for column in COLUMNS if column["name"] not in {"amount", "due", "city"}]
    made = contract("protobuf", settings_of(registry), columns=[*columns, {"name": "raw", "type": "text"}])
    message = order(order_id="o1", status=1, quantity=7, tags=["a"], raw=b"\xff")
    message.placed_at.FromDatetime(RECORD["placed_at"])
    message.weight.value = 1.5
    bare = order(order_id="o2")
    bare.placed_at.seconds = 1
    huge = order(order_id="o3", quantity=2**64 - 1)
    huge.placed_at.seconds = 1
    unknown = order(order_id="o4", status=9)
    unknown.placed_at.seconds = 1
    payloads = [messages.protobuf(registry.url, one) for one in (message, bare, huge, unknown)]
    cut, longer = payloads[0][:-1], payloads[0] + b"\xa8\x06\x01"
    rows, refused = decoded(made, *received(*payloads, cut, longer))
    assert rows[0] == {
        "order_id": "o1",
        "placed_at": RECORD["placed_at"],
        "status": "PAID",
        "quantity": 7,
        "weight": 1.5,
        "gift": None,
        "tags": '["a"]',
        "raw": "/w==",
        "rescued_data": None,
    }
    assert (rows[1]["weight"], rows[1]["quantity"], rows[1]["status"]) == (None, 0, "OPEN")
    assert "quantity_out_of_range" in refused[2]
    assert "status is 9" in refused[3]
    assert "Not of its Protobuf schema" in refused[4]
    assert "fields that Order does not have" in refused[5]


def test_entries_of_protobuf_have_one_order_in_every_process(registry: SchemaRegistry) -> None:
    made = messages.message_class(
        "Open", [("v", FIELD.TYPE_MESSAGE, ".google.protobuf.Struct")], struct_pb2.DESCRIPTOR.name
    )
    message = made()
    message.v.update({name: {"z": 1.5, "y": [{"b": 1, "a": None}]} for name in "hgfedcba"})
    columns = [{"name": "v", "type": "json"}]
    payload = messages.protobuf(registry.url, message)
    rows, refused = decoded(contract("protobuf", settings_of(registry), columns=columns), *received(payload))
    inner = '{"y":[{"a":null,"b":1.0}],"z":1.5}'
    assert (rows[0]["v"], refused) == ("{" + ",".join(f'"{name}":{inner}' for name in "abcdefgh") + "}", {})


def test_a_struct_of_protobuf_at_the_top_has_its_own_fields(registry: SchemaRegistry) -> None:
    message = struct_pb2.Struct()
    message.update({"v": "a", "u": [1.5]})
    made = contract("protobuf", settings_of(registry), columns=[{"name": "v", "type": "text"}])
    rows, refused = decoded(made, *received(messages.protobuf(registry.url, message)))
    assert (rows, refused) == ([{"v": "a", "rescued_data": '{"u":[1.5]}'}], {})


def test_json_schema_validates_and_keeps_digits(registry: SchemaRegistry) -> None:
    schema = {
        "type": "object",
        "title": "Order",
        "properties": {"order_id": {"type": "string", "maxLength": 3}, "amount": {"type": "number"}},
        "required": ["order_id"],
    }
    columns = [{"name": "order_id", "type": "text"}, {"name": "amount", "type": "decimal(30,10)"}]
    made = contract("json_schema", settings_of(registry), columns=columns)
    number = registry.register(f"{TOPIC}-value", schema, "JSON")
    digits = framed(number, b'{"order_id": "o1", "amount": 12345678901234567890.0123456789}')
    long, missing, broken = (framed(number, raw) for raw in (b'{"order_id": "long"}', b'{"amount": 1}', b"{"))
    rows, refused = decoded(made, *received(digits, long, missing, broken, b"{}"))
    assert [row["amount"] for row in rows] == [Decimal("12345678901234567890.0123456789")]
    assert '$.order_id "long" is longer than 3 characters' in refused[1]
    assert "order_id" in refused[2]
    assert "Not JSON" in refused[3]
    assert "names no schema" in refused[4]


def test_a_json_schema_that_cannot_be_applied_blames_its_messages_alone(registry: SchemaRegistry) -> None:
    address = {"type": "object", "required": ["city"]}
    registry.register("address", address, "JSON")
    refers = {"properties": {"a": {"$ref": "address.json"}}, "additionalProperties": False}
    references = [{"name": "address.json", "subject": "address", "version": 1}]
    number = registry.register("order", refers, "JSON", references)
    broken: list[object] = [
        {"$ref": "#/nothing"},
        {"$ref": f"{registry.url}/never-fetched.json"},
        {"properties": {"a": {"minimum": "a"}}},
        {"properties": {"a": {"type": "strng"}}},
        {"$schema": "http://json-schema.org/draft-03/schema#"},
        "nonsense",
    ]
    numbers = [registry.register(f"broken-{at}", schema, "JSON") for at, schema in enumerate(broken)]
    raw = [b'{"a": {"city": "x"}}', b'{"a": {}}', b'{"b": 1}', b'{"a": {"city": 1e400}}', b'{"a": {"city": "\\ud800"}}']
    payloads = [framed(number, one) for one in raw] + [framed(one, b'{"a": 1}') for one in numbers]
    made = contract("json_schema", settings_of(registry), columns=[{"name": "a", "type": "json"}])
    rows, refused = decoded(made, *received(*payloads))
    assert [row["a"] for row in rows] == ['{"city": "x"}']
    assert '$.a "city" is a required property' in refused[1]
    assert "'b' was unexpected" in refused[2]
    assert "too large to be read" in refused[3]
    assert "half of a surrogate pair" in refused[4]
    assert all("cannot be used" in refused[at] or "nested too deeply" in refused[at] for at in range(5, 11))
    assert registry.requests["GET /never-fetched.json"] == 0


DOUBLING = {f"d{depth}": {"allOf": [{"$ref": f"#/$defs/d{depth + 1}"}] * 2} for depth in range(40)}
RISKY, ALMOST = "^(a+)+$", "a" * 40 + "!"
UNEVALUATED = {"unevaluatedProperties": False}


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        ({"pattern": RISKY}, ALMOST, "does not match"),
        ({"patternProperties": {RISKY: {"type": "integer"}, "a!$": False}}, {ALMOST: 1}, "False schema does not allow"),
        ({"patternProperties": {RISKY: True}, "additionalProperties": False}, {ALMOST: 1}, "was unexpected"),
        ({"patternProperties": {RISKY: True}, **UNEVALUATED}, {ALMOST: 1}, "Unevaluated properties are not allowed"),
        ({"pattern": "(?=a)"}, "a", "is not a"),
        ({"uniqueItems": True}, [*([{}, number] for number in range(10_000)), [{}, 7.0]], "non-unique elements"),
        ({"$defs": {**DOUBLING, "d40": {}}, "$ref": "#/$defs/d0"}, 1, "it has more than 100,000 parts"),
        ({"anyOf": [{"type": "string"}] * 1000}, [1] * 50_000, "too large to say where"),
        ({"anyOf": [{"items": {"type": "string"}}] * 200}, [1] * 50_000, "too large to say where"),
        (UNEVALUATED, {f"{name}": 1 for name in range(9_999)}, "Unevaluated properties are not allowed"),
        (
            {"allOf": [{"items": True}] * 1000, "unevaluatedItems": False, "maxItems": 9},
            [1] * 9_999,
            "too large to say where",
        ),
    ],
)
def test_the_check_by_a_json_schema_takes_bounded_time_and_memory(
    registry: SchemaRegistry, schema: dict[str, Any], value: object, reason: str
) -> None:
    made = contract("json_schema", settings_of(registry), columns=[{"name": "v", "type": "json"}])
    defs = {"$defs": schema.pop("$defs", {}), "properties": {"v": schema}}
    message = framed(registry.register("a", defs, "JSON"), json.dumps({"v": value}).encode())
    began = time.process_time()
    (_, refused), grown = with_peak_memory(lambda: decoded(made, *received(message)))
    assert reason in refused[0]
    assert len(refused[0]) < 500
    assert time.process_time() - began < 2
    assert grown < 100 * 1024**2


def test_what_json_schema_calls_unique_is_kept(registry: SchemaRegistry) -> None:
    made = contract("json_schema", settings_of(registry), columns=[{"name": "v", "type": "json"}])
    schema = registry.register("a", {"properties": {"v": {"uniqueItems": True}}}, "JSON")
    kept = ['[1,true,"1",[1],{"a":1},{"a":true},null,"null"]', "[0,false,[],{}]", '[{"a":1,"b":2},{"a":2,"b":1}]']
    refused = ["[1,1.0]", "[[1,{}],[1.0,{}]]", '[{"a":1,"b":2},{"b":2,"a":1}]', "[0,-0.0]", "[1e2,100]"]
    found = received(*(framed(schema, f'{{"v":{text}}}'.encode()) for text in [*kept, *refused]))
    assert list(decoded(made, *found)[1]) == list(range(len(kept), len(found)))


def test_impossible_ids_and_frames_are_refused_at_once(registry: SchemaRegistry) -> None:
    odd = [struct.pack(">bi", 0, -1) + b"x", b"\0\0\0\0\1" + b"\xff" * 900_000, b"\0\0"]
    rows, refused = decoded(contract("protobuf", settings_of(registry)), *received(*odd))
    assert (rows, len(refused), sum(registry.requests.values())) == ([], 3, 0)
    assert "which has 31 bits" in refused[0] or "too few bytes" in refused[0]
    assert "too few bytes" in refused[1]


def test_protobuf_of_the_second_version_must_have_its_required_fields(registry: SchemaRegistry) -> None:
    file = descriptor_pb2.FileDescriptorProto(name="p.proto", package="p", syntax="proto2")
    message = file.message_type.add(name="P")
    message.field.add(name="a", number=1, type=FIELD.TYPE_STRING, label=FIELD.LABEL_REQUIRED)
    message.field.add(name="b", number=2, type=FIELD.TYPE_INT32, label=FIELD.LABEL_OPTIONAL)
    number = registry.register("p", base64.b64encode(file.SerializeToString()).decode(), "PROTOBUF")
    made = contract("protobuf", settings_of(registry), columns=[{"name": "a", "type": "text"}])
    rows, refused = decoded(made, *received(framed(number, b"\0\x0a\x01x"), framed(number, b"\0\x10\x05")))
    assert [row["a"] for row in rows] == ["x"]
    assert "it lacks a" in refused[1]


AVRO_PAYLOAD = messages.encoded_avro(AVRO, RECORD)


def test_numbers_that_json_has_not_keep_their_names_inside_of_json(registry: SchemaRegistry) -> None:
    doubles = {"type": "array", "items": ["null", "double"]}
    schema = {"type": "record", "name": "R", "fields": [{"name": name, "type": doubles} for name in ("v", "u")]}
    record = {name: [1.5, None, math.nan, math.inf, -math.inf] for name in ("v", "u")}
    made = contract("avro", settings_of(registry), columns=[{"name": "v", "type": "json"}])
    ((row,), _) = decoded(made, *received(messages.avro(registry.url, json.dumps(schema), record)))
    assert json.loads(row["v"]) == [1.5, None, "NaN", "Infinity", "-Infinity"]
    assert json.loads(row["rescued_data"]) == {"u": [1.5, None, "NaN", "Infinity", "-Infinity"]}


@pytest.mark.parametrize("decoder", ["avro", "protobuf", "json_schema"])
def test_bytes_that_are_not_of_a_schema_are_refused_alone(registry: SchemaRegistry, decoder: str) -> None:
    registry.register("s-value", AVRO)
    odd = [b"", b"\x00", b"\x07abcdef", framed(99, b"\0"), b"{}", b"\x00" * 40, framed(1, b"\x00" * 3)]
    rows, refused = decoded(contract(decoder, settings_of(registry)), *received(*odd))
    assert rows == []
    assert len(refused) == len(odd)
    assert "The schema registry has no schema 99" in refused[3]
    assert registry.requests["GET /schemas/ids/99"] == 1


def test_avro_bytes_must_be_of_their_schema_to_the_last_one(registry: SchemaRegistry) -> None:
    number = registry.register("s-value", AVRO)
    cut, longer, good = AVRO_PAYLOAD[:-1], AVRO_PAYLOAD + b"\0", AVRO_PAYLOAD
    found = received(*(framed(number, raw) for raw in (cut, longer, good)))
    rows, refused = decoded(contract("avro", settings_of(registry)), *found)
    assert rows == [ROW]
    assert "it ends too early" in refused[0]
    assert "1 bytes are left over" in refused[1]
    assert registry.requests[f"GET /schemas/ids/{number}"] == 1


ODD_AVRO: list[tuple[Any, bytes, str]] = [
    ("boolean", b"\x02", "a boolean is 2, neither 0 nor 1"),
    ({"type": "map", "values": "int"}, b"\x04\x02a\x02\x02a\x04\x00", "a map has the key 'a' twice"),
    (["null", "long"], b"\x01\x08", "-1 is no index of a union of 2 types"),
    (["null", "long"], b"\x04\x08", "2 is no index of a union"),
    ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, b"\x01", "-1 is no index of an enum of 2 symbols"),
    ("int", b"\xff\xff\xff\xff\x1f", "more than the 32 bits of an int"),
    ("long", b"\xff" * 9 + b"\x7f", "more than 64 bits"),
    ("long", b"\xff" * 12 + b"\x01", "more than 64 bits"),
    ("string", b"\x01abc", "a length is negative"),
    ("string", b"\x08abc", "it ends too early"),
    (["null", "string"], b"\x84\x00\x02a", "2 is no index of a union of 2 types"),
    ("string", b"\x02\xff", "a text is not UTF-8"),
    ("double", b"\x00" * 7, "it ends too early"),
    ({"type": "array", "items": "int"}, b"\x03\x63\x02\x04\x00", "has another length than it says"),
    ({"type": "int", "logicalType": "time-millis"}, b"\x01", "a time of day"),
    ({"type": "int", "logicalType": "date"}, b"\xfe\xff\xff\xff\x0f", "out of range"),
    ({"type": "long", "logicalType": "timestamp-micros"}, b"\xfe" + b"\xff" * 8 + b"\x01", "out of range"),
    ({"type": "string", "logicalType": "uuid"}, b"\x40" + b"12345678" * 4, "is no UUID"),
]


def test_avro_that_its_schema_does_not_allow_is_refused_with_a_plain_reason(registry: SchemaRegistry) -> None:
    def numbered(at: int, kind: object) -> int:
        record = {"type": "record", "name": "R", "fields": [{"name": "v", "type": kind}]}
        return registry.register(f"odd-{at}", record)

    found = [framed(numbered(at, kind), raw) for at, (kind, raw, _) in enumerate(ODD_AVRO)]
    made = contract("avro", settings_of(registry), columns=[{"name": "v", "type": "json"}])
    rows, refused = decoded(made, *received(*found))
    assert rows == []
    for at, (_, _, reason) in enumerate(ODD_AVRO):
        assert reason in refused[at], (ODD_AVRO[at], refused[at])


def test_avro_is_read_as_other_writers_may_write_it(registry: SchemaRegistry) -> None:
    kind = {"type": "record", "name": "Pair", "fields": [{"name": "l", "type": "long"}, {"name": "f", "type": "float"}]}
    fields: list[dict[str, Any]] = [
        {"name": "several_blocks", "type": {"type": "array", "items": "int"}},
        {"name": "sizes", "type": {"type": "map", "values": ["null", kind]}},
        {"name": "again", "type": ["Pair", "null"]},
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "raw_id", "type": {"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}},
        {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-millis"}},
        {"name": "at", "type": {"type": "int", "logicalType": "time-millis"}},
        {"name": "padded", "type": ["null", "string"]},
        {"name": "long", "type": ["null", "string"]},
    ]
    number = registry.register("s", {"type": "record", "name": "R", "fields": fields})
    least = b"\xff" * 9 + b"\x01"
    payload = b"\x03\x04\x02\x04\x02\x06\x00" + b"\x02\x02a\x02" + least + b"\x00\x00\xc0\x3f\x00" + b"\x02"
    payload += b"\x48" + b"ABCDEF01-0000-0000-0000-000000000000" + b"\xab" * 16 + b"\x01" + b"\x00"
    payload += b"\x82\x00\x84\x00ab" + b"\x02\x80\x01" + b"c" * 64
    columns = [{"name": one["name"], "type": "json"} for one in fields]
    rows, refused = decoded(
        contract("avro", settings_of(registry), columns=columns), *received(framed(number, payload))
    )
    assert refused == {}
    assert {name: json.loads(rows[0][name] or "null") for name in rows[0] if name != "rescued_data"} == {
        "several_blocks": [1, 2, 3],
        "sizes": {"a": {"l": -(2**63), "f": 1.5}},
        "again": None,
        "id": "abcdef01-0000-0000-0000-000000000000",
        "raw_id": "abababab-abab-abab-abab-abababababab",
        "local": "1969-12-31T23:59:59.999000",
        "at": "00:00:00",
        "padded": "ab",
        "long": "c" * 64,
    }


def test_protobuf_that_sets_a_field_twice_or_beyond_its_bits_is_refused(registry: SchemaRegistry) -> None:
    file = descriptor_pb2.FileDescriptorProto(name="p.proto", package="p", syntax="proto3")
    message = file.message_type.add(name="P")
    message.oneof_decl.add(name="one")
    entry = message.nested_type.add(name="SizesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=FIELD.TYPE_STRING, label=FIELD.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=FIELD.TYPE_INT32, label=FIELD.LABEL_OPTIONAL)
    inner = message.nested_type.add(name="Inner")
    inner.field.add(name="n", number=1, type=FIELD.TYPE_UINT32, label=FIELD.LABEL_OPTIONAL)
    for number, (name, kind, label) in enumerate(
        [
            ("i", FIELD.TYPE_INT32, FIELD.LABEL_OPTIONAL),
            ("a", FIELD.TYPE_STRING, FIELD.LABEL_OPTIONAL),
            ("b", FIELD.TYPE_BOOL, FIELD.LABEL_OPTIONAL),
            ("sizes", FIELD.TYPE_MESSAGE, FIELD.LABEL_REPEATED),
            ("inner", FIELD.TYPE_MESSAGE, FIELD.LABEL_OPTIONAL),
            ("many", FIELD.TYPE_SINT32, FIELD.LABEL_REPEATED),
        ],
        1,
    ):
        added = message.field.add(name=name, number=number, type=kind, label=label)
        if name in {"a", "b"}:
            added.oneof_index = 0
        if kind == FIELD.TYPE_MESSAGE:
            added.type_name = ".p.P.SizesEntry" if name == "sizes" else ".p.P.Inner"
    schema = registry.register("p", base64.b64encode(file.SerializeToString()).decode(), "PROTOBUF")
    columns = [{"name": name, "type": "json"} for name in ("i", "a", "b", "sizes", "inner", "many")]
    good = [
        b"\x08\x00" + b"\x32\x02\x01\x02" + b"\x30\x03",  # a default that is written, numbers in two ways
        b"\x22\x05\x0a\x01b\x10\x01" + b"\x22\x05\x0a\x01a\x10\x02",  # keys in another order
        b"\x08" + b"\xff" * 9 + b"\x01",  # -1
    ]
    bad = {
        "it sets i twice": b"\x08\x01\x08\x02",
        "it sets both a and b": b"\x12\x01x\x18\x01",
        "it sets inner twice": b"\x2a\x02\x08\x01\x2a\x00",
        "it sets n twice": b"\x2a\x04\x08\x01\x08\x02",
        "sizes has a key twice": b"\x22\x05\x0a\x01a\x10\x01\x22\x05\x0a\x01a\x10\x02",
        "i has more than 32 bits": b"\x08\x81\x80\x80\x80\x10",
        "n has more than 32 bits": b"\x2a\x0b\x08" + b"\xff" * 9 + b"\x01",
        "value has more than 32 bits": b"\x22\x09\x0a\x01a\x10\x81\x80\x80\x80\x10",
        "many has more than 32 bits": b"\x32\x06\x01\x81\x80\x80\x80\x10",
    }
    found = [framed(schema, b"\0" + raw) for raw in (*good, *bad.values())]
    rows, refused = decoded(contract("protobuf", settings_of(registry), columns=columns), *received(*found))
    assert [[json.loads(row[name]) for name in ("i", "sizes", "many")] for row in rows] == [
        [0, {}, [-1, 1, -2]],
        [0, {"b": 1, "a": 2}, []],
        [-1, {}, []],
    ]
    assert rows[1]["sizes"] == '{"a":2,"b":1}'
    for at, reason in enumerate(bad, 3):
        assert reason in refused[at], (reason, refused.get(at))


def test_protobuf_messages_that_become_far_more_fields_than_bytes_are_refused(
    registry: SchemaRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 300_000)
    file = descriptor_pb2.FileDescriptorProto(name="p.proto", package="p", syntax="proto3")
    message = file.message_type.add(name="P")
    item = message.nested_type.add(name="Item")
    for number in range(1, 51):
        item.field.add(name=f"f{number}", number=number, type=FIELD.TYPE_INT32, label=FIELD.LABEL_OPTIONAL)
    kind = {"type": FIELD.TYPE_MESSAGE, "label": FIELD.LABEL_REPEATED, "type_name": ".p.P.Item"}
    message.field.add(name="items", number=1, **kind)
    schema = registry.register("p", base64.b64encode(file.SerializeToString()).decode(), "PROTOBUF")
    made = contract("protobuf", settings_of(registry), columns=[{"name": "items", "type": "json"}])
    few, many = (framed(schema, b"\0" + b"\x0a\0" * count) for count in (5_000, 500_000))
    rows, grown = with_peak_memory(lambda: made.rows_of(received(*[few] * 6, many)))
    assert len(json.loads(rows.table["items"][0].as_py())) == 5_000
    ((_, reason),) = rows.refused
    assert "with the fields that it leaves out, it has more than 300,000" in str(reason)
    assert grown < 220 * 1024**2


def test_a_32_bit_float_keeps_its_own_digits(registry: SchemaRegistry) -> None:
    file = descriptor_pb2.FileDescriptorProto(name="f.proto", package="f", syntax="proto3")
    message = file.message_type.add(name="F")
    message.field.add(name="v", number=1, type=FIELD.TYPE_FLOAT, label=FIELD.LABEL_OPTIONAL)
    schemas = {
        "protobuf": (base64.b64encode(file.SerializeToString()).decode(), "PROTOBUF", b"\0\x0d"),
        "avro": ({"type": "record", "name": "F", "fields": [{"name": "v", "type": "float"}]}, "AVRO", b""),
    }
    numbers = [0.1, 21.7, -3.4028235e38, 1e-45, 16777216.0, 100000002004087734272.0]
    for decoder, (schema, kind, head) in schemas.items():
        number = registry.register(decoder, schema, kind)
        made = contract(decoder, settings_of(registry), columns=[{"name": "v", "type": "number"}])
        rows, _ = decoded(made, *received(*(framed(number, head + struct.pack("<f", one)) for one in numbers)))
        assert [row["v"] for row in rows] == [
            0.1,
            21.7,
            float(-340282346638528859811704183484516925440),
            1e-45,
            *numbers[4:],
        ]


def test_avro_that_would_take_unbounded_memory_or_time_is_refused(registry: SchemaRegistry) -> None:
    itself = {"type": "record", "name": "N", "fields": [{"name": "n", "type": ["null", "N"]}]}
    nothing = {"type": "record", "name": "L", "fields": [{"name": "l", "type": {"type": "array", "items": "null"}}]}
    deep = framed(registry.register("a", itself), b"\x02" * 900_000)
    many = framed(registry.register("b", nothing), b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f\x00")
    digits = {**RECORD, "amount": b"\x7f" * 500_000}
    plain = [{"name": "amount", "type": "bytes"} if one["name"] == "amount" else one for one in AVRO["fields"]]
    long = framed(registry.register("c", AVRO), messages.encoded_avro({**AVRO, "fields": plain}, digits))
    began = time.process_time()
    twice: Any = "null"
    for depth in range(40):
        fields = [{"name": "a", "type": twice}, {"name": "b", "type": f"R{depth - 1}" if depth else "null"}]
        twice = {"type": "record", "name": f"R{depth}", "fields": fields}
    doubling = framed(registry.register("d", twice), b"")
    wide = {"type": "record", "name": "W", "fields": [{"name": f"f{one}", "type": "null"} for one in range(100)]}
    items = {"type": "array", "items": ["null", wide]}
    list_ = {"type": "record", "name": "L", "fields": [{"name": "l", "type": items}]}
    sparse = framed(registry.register("e", list_), b"\xc0\x9a\x0c" + b"\x02" * 100_000 + b"\x00")
    found = received(deep, many, long, doubling, sparse)
    rows, refused = decoded(contract("avro", settings_of(registry)), *found)
    assert time.process_time() - began < 5
    assert rows == []
    assert "contains itself" in refused[0]
    assert "list or map of values without bytes" in refused[1]
    assert "at most 16 are read" in refused[2]
    assert "record of more than 10,000 values without bytes" in refused[3]
    assert "list or map of values without bytes" in refused[4]


def test_a_decimal_beyond_its_precision_is_not_rounded(registry: SchemaRegistry) -> None:
    schema = {
        "type": "record",
        "name": "R",
        "fields": [{"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 3, "scale": 2}}],
    }
    payload = framed(registry.register("s", schema), b"\x06\x12\xd6\x87")
    made = contract("avro", settings_of(registry), columns=[{"name": "amount", "type": "decimal(12,2)"}])
    rows, _ = decoded(made, *received(payload))
    assert rows[0]["amount"] == Decimal("12345.67")
    whole = {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9}}
    payload = framed(registry.register("w", {**schema, "fields": [whole]}), b"\x02\x05")
    made = contract("avro", settings_of(registry), columns=[{"name": "amount", "type": "integer"}])
    assert decoded(made, *received(payload))[0][0]["amount"] == 5


def test_schemas_that_refer_to_others_and_ids_in_headers_are_read(registry: SchemaRegistry) -> None:
    address = {"type": "record", "name": "shop.Address", "fields": [{"name": "city", "type": "string"}]}
    registry.register("address", address)
    order = {"type": "record", "name": "shop.Order", "fields": [{"name": "address", "type": "shop.Address"}]}
    reference = {"name": "shop.Address", "subject": "address", "version": 1}
    number = registry.register("order", order, references=[reference])
    with SchemaRegistryClient({"url": registry.url}) as client:
        guid = client.get_version("order", 1).guid
    header = (("__value_schema_id", b"\x01" + bytes.fromhex((guid or "").replace("-", ""))),)
    made = contract("avro", settings_of(registry), columns=[{"name": "city", "type": "text", "path": "$.address.city"}])
    rows, refused = decoded(made, *received(framed(number, b"\x08Bern")))
    assert (rows[0]["city"], refused) == ("Bern", {})
    rows, refused = decoded(made, *received(b"\x08Bern", headers=header))
    assert (rows[0]["city"], refused) == ("Bern", {})


def test_a_registry_that_is_away_or_refuses_blames_no_message(registry: SchemaRegistry) -> None:
    number = registry.register("s-value", AVRO)
    made, found = contract("avro", settings_of(registry)), received(framed(number, AVRO_PAYLOAD))
    for status in (500, 503, 401, 429):
        registry.status = status
        with pytest.raises(TransientError, match=f"HTTP status code {status}"):
            made.rows_of(found)
    registry.status = 0
    registry.answer = Answer(404, {"Content-Type": "text/html"}, b"<h1>default backend</h1>")
    with pytest.raises(TransientError, match="HTTP status code 404"):
        made.rows_of(found)
    registry.answer = None
    assert decoded(made, *found)[0] == [ROW]
    with SchemaRegistry() as gone:
        away = settings_of(gone)
    with pytest.raises(SchemaRegistryUnavailableError, match="cannot be used"):
        contract("avro", away).rows_of(found)


def test_credentials_are_sent_and_never_without_tls_unless_allowed() -> None:
    user, _, password = BASIC_USER.partition(":")
    for kind, login in (("basic", {"username": user, "password": password}), ("bearer", {"token": TOKEN})):
        with SchemaRegistry(kind) as registry:
            number = registry.register("s-value", AVRO)
            found = received(framed(number, AVRO_PAYLOAD))
            with pytest.raises(SettingsError, match="without TLS"):
                contract("avro", settings_of(registry, **login))
            assert decoded(contract("avro", settings_of(registry, plain_http=True, **login)), *found)[0] == [ROW]
            with pytest.raises(TransientError, match="Unauthorized"):
                contract("avro", settings_of(registry)).rows_of(found)


def test_a_registry_that_is_not_set_or_denied_is_said_to_be_so() -> None:
    with pytest.raises(SettingsError, match="INGEST_SCHEMA_REGISTRY_URL is not set"):
        registry_of(Settings())
    with SchemaRegistry() as registry:
        denied = settings_of(registry).model_copy(
            update={"downloads": Settings().downloads.model_copy(update={"denied_hosts": ["127.0.0.1"]})}
        )
        with pytest.raises(Exception, match=re.escape("denied hosts")):
            registry_of(denied)


def test_an_undeclared_field_is_rescued_added_or_refused_by_the_drift_policy() -> None:
    columns = [{"name": "a", "type": "integer"}, {"name": "b", "type": "text", "path": "$.in.b"}]
    raw = [b'{"a": 1}', b'{"a": 2, "new": "x", "Odd Name": [1], "in": {"b": "t", "c": 1.50}}', b'{"new": {"y": 2}}']
    rescued, _ = decoded(contract("json", columns=columns), *received(*raw))
    assert [row["rescued_data"] for row in rescued] == [
        None,
        '{"Odd Name":[1],"new":"x","in":{"c":1.50}}',
        '{"new":{"y": 2}}',
    ]
    evolved, _ = decoded(contract("json", columns=columns, drift="evolve"), *received(*raw))
    assert [row["new"] for row in evolved] == [None, "x", '{"y": 2}']
    assert evolved[1]["odd_name"] == "[1]"
    assert evolved[1]["rescued_data"] == '{"in":{"c":1.50}}'
    frozen, refused = decoded(contract("json", columns=columns, drift="freeze"), *received(*raw))
    assert [row["a"] for row in frozen] == [1]
    assert refused[1].startswith("It has fields that the stream does not declare: Odd Name, new, in")
