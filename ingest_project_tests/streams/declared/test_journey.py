"""From messages in any format to the rows of a declared stream, each offset exactly once."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import dagster as dg
import polars as pl
import pytest
from google.protobuf import descriptor_pb2, timestamp_pb2

from ingest_project.operations.redrive import REDRIVE
from ingest_project.platform.actions import ActionRequest, perform
from ingest_project.platform.capability import EVENT_TO_STORED
from ingest_project.platform.dagster.catalog import SqlTable
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.capability import Streams
from ingest_project.streams.declared import parts_of_stream
from ingest_project_tests.services.schema_registry import SchemaRegistry
from ingest_project_tests.streams.declared import messages
from ingest_project_tests.streams.declared.conftest import Declare
from ingest_project_tests.streams.declared.messages import framed
from ingest_project_tests.streams.declared.system import COLUMNS, DELTA, KEYED, NAME, DeclaredSystem, order

FIELD = descriptor_pb2.FieldDescriptorProto
HOUR = "2026-01-15-10:00"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CHECKS = ("no_gap_in_offsets", "no_duplicate_offsets", "contract_holds")
PLACED = datetime(2026, 1, 15, 10, 30, 45, tzinfo=UTC)
AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "order_id", "type": "string"},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "placed_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
RECORD = {"order_id": "o1", "amount": Decimal("1.50"), "placed_at": PLACED}


def checks(system: DeclaredSystem, *names: str) -> list[bool]:
    return system.passed(*(names or CHECKS))


def test_a_redriven_message_that_fails_again_is_a_dead_letter_with_its_count(declared: Declare) -> None:
    system = declared({**DELTA, "max_rejected_share": 1.0})
    system.put(b"no order", order())
    system.drive()
    request = ActionRequest(parameters={"topic": system.topic}, reason="fixed", who="test")
    assert len(perform(system.services, REDRIVE, request).done) == 1
    system.drive()
    first, again = system.dead_letters
    assert [one.header("redrive.count") for one in (first, again)] == [None, b"1"]
    assert (again.value, again.key, again.header("dlq.original-topic")) == (b"no order", b"one", system.topic.encode())


@pytest.mark.parametrize("sink", [DELTA, KEYED], ids=["delta", "sql"])
def test_a_message_of_a_declared_stream_is_found_by_its_position_its_trace_and_its_key_and_has_a_page(
    declared: Declare, sink: dict[str, Any]
) -> None:
    system = declared(sink)
    headers = (("traceparent", TRACEPARENT.encode()),)
    system.services.writer.send_all(system.topic, [ProducerRecord(order(), b"one", headers)])
    system.drive()
    (partition,) = system.partitions_with_messages
    texts = [TRACEPARENT, TRACEPARENT.split("-")[1], f"{system.topic}/{partition}/0", f"{system.topic}:{partition}:0"]
    view = system.item("o1", *texts)
    assert (view.state, view.facts["Stored in"]) == ("stored", NAME)
    assert ("order_id", "o1") in view.rows[NAME].page(0, 100).rows
    assert view.contents["message"].open() == order()


def test_avro_orders_become_rows_of_a_delta_table_and_other_messages_dead_letters(
    declared: Declare, registry: SchemaRegistry
) -> None:
    system = declared({**DELTA, "decoder": "avro", "max_rejected_share": 0.5})
    good = messages.avro(registry.url, json.dumps(AVRO), RECORD)
    negative = messages.avro(registry.url, json.dumps(AVRO), {**RECORD, "amount": Decimal(-1)})
    system.put(good, negative, None, framed(99, b"x"), good)
    assert all(run.success for run in system.drive())
    first, second = system.rows()
    assert (first["order_id"], first["amount"], first["placed_at"]) == ("o1", Decimal("1.50"), PLACED)
    assert (first["event_day"], first["kafka_offset"], second["kafka_offset"]) == ("2026-01-15", 0, 4)
    assert [letter.value for letter in system.dead_letters] == [negative, framed(99, b"x")]
    assert system.dead_letters[0].header("dlq.reason") == b"It breaks the contract: amount_out_of_range."
    assert system.outcome == {"events": 2, "dead_letters": 2}
    assert system.observed(EVENT_TO_STORED)[0] == 5
    assert system.metadata(system.asset, HOUR)["rows_added"] == 2
    assert checks(system) == [True, True, True]
    assert not checks(declared({**DELTA, "decoder": "avro", "max_rejected_share": 0.1}), "contract_holds")[0]


def test_a_schema_that_gets_a_field_goes_by_the_drift_policy(declared: Declare, registry: SchemaRegistry) -> None:
    newer = {**AVRO, "fields": [*AVRO["fields"], {"name": "colour", "type": "string", "default": ""}]}
    old = messages.avro(registry.url, json.dumps(AVRO), RECORD)
    new = messages.avro(registry.url, json.dumps(newer), {**RECORD, "colour": "red"})
    rescuing = declared({**DELTA, "decoder": "avro"})
    rescuing.put(old, new)
    rescuing.drive()
    assert [row["rescued_data"] for row in rescuing.rows()] == [None, '{"colour":"red"}']
    evolving = declared({**DELTA, "decoder": "avro", "drift": "evolve"})
    evolving.put(new, old)
    evolving.drive()
    assert [row["colour"] for row in evolving.rows()] == [None, None, "red", None]
    freezing = declared({**DELTA, "decoder": "avro", "drift": "freeze"})
    freezing.put(old, new)
    freezing.drive()
    assert len(freezing.rows()) == 5
    assert b"does not declare: colour" in (freezing.dead_letters[0].header("dlq.reason") or b"")
    assert checks(freezing, *CHECKS[:2]) == [True, True]


def test_a_struct_is_stored_and_gets_further_fields(declared: Declare) -> None:
    city, code = {"name": "city", "type": "text"}, {"name": "code", "type": "integer"}

    def with_fields(*fields: dict[str, str]) -> dict[str, Any]:
        return {**DELTA, "columns": [*COLUMNS, {"name": "to", "type": "struct", "fields": list(fields)}]}

    system = declared(with_fields(city))
    system.put(order(1, to={"city": "Bern", "code": 3000}), order(2), order(3, to={}), order(4, to="Bern"))
    assert all(run.success for run in system.drive())
    stored = [{"city": "Bern"}, None, {"city": None}]
    assert [row["to"] for row in system.rows()] == stored
    assert [row["rescued_data"] for row in system.rows()] == ['{"to":{"code":3000}}', None, None]
    assert [letter.value for letter in system.dead_letters] == [order(4, to="Bern")]
    system = declared(with_fields(city, code))
    system.put(order(5, to={"city": "Bern", "code": 3000}))
    assert all(run.success for run in system.drive())
    assert [row["to"] for row in system.rows()][3] == {"city": "Bern", "code": 3000}
    assert [row["to"] and row["to"]["city"] for row in system.rows()[:3]] == ["Bern", None, None]


def test_a_registry_that_is_away_fails_the_run_and_the_messages_are_stored_later(
    declared: Declare, registry: SchemaRegistry
) -> None:
    system = declared({**DELTA, "decoder": "avro"})
    system.put(messages.avro(registry.url, json.dumps(AVRO), RECORD))
    (request,) = system.requests(system.names.sensor)
    registry.status = 503
    assert not system.execute(system.names.job, request).success
    assert "schema registry" in system.reasons
    assert system.dead_letters == []
    registry.status = 0
    system.drive()
    assert len(system.rows()) == 1


def test_protobuf_is_stored_by_day_and_hour_and_compacted(declared: Declare, registry: SchemaRegistry) -> None:
    kind = messages.message_class(
        "Order",
        [("order_id", FIELD.TYPE_STRING, ""), ("placed_at", FIELD.TYPE_MESSAGE, ".google.protobuf.Timestamp")],
        timestamp_pb2.DESCRIPTOR.name,
    )
    columns = [column for column in COLUMNS if column["name"] in {"order_id", "placed_at"}]
    sink = {"partition_by": "hour", "commit_messages": 2}
    system = declared({"columns": columns, "event_time": "placed_at", "decoder": "protobuf", "sink": sink})
    found = []
    for number in range(6):
        found.append(kind(order_id=f"o{number}"))
        found[-1].placed_at.FromDatetime(PLACED.replace(hour=10 + number % 2))
    system.put(*(messages.protobuf(registry.url, one) for one in found))
    system.drive()
    rows = system.rows()
    assert [(row["order_id"], row["event_hour"]) for row in rows] == [(f"o{n}", str(10 + n % 2)) for n in range(6)]
    assert system.run("orders_maintenance").success
    assert system.rows() == rows
    assert checks(system, "event_time_plausible") == [True]


def test_json_with_a_schema_is_stored_by_key_and_the_newest_version_stays(
    declared: Declare, registry: SchemaRegistry
) -> None:
    required = [{**column, "required": True} for column in COLUMNS]
    system = declared(
        {**KEYED, "columns": required, "decoder": "json_schema", "sink": {"key": ["order_id"], "version": "version"}}
    )
    schema = {"title": "Order", "type": "object", "properties": {"order_id": {"type": "string"}}}
    number = registry.register("orders-value", schema, "JSON")
    versions = [(1, 5, "1.10"), (1, 4, "1.20"), (2, 1, "2.00"), (1, 5, "1.30")]
    system.put(*(framed(number, order(one, amount, version=version)) for one, version, amount in versions))
    system.drive()
    system.put(framed(number, order(1, "9.99", version=3)), framed(number, order(2, "2.50", version=2)))
    system.drive()
    assert {key: row["amount"] for key, row in system.table().items()} == {"o1": Decimal("1.30"), "o2": Decimal("2.50")}
    assert system.outcome == {"rows": 6, "rows_changed": 3}
    assert checks(system) == [True, True, True]


@pytest.mark.parametrize("policy", ["delete", "mark", "ignore"])
def test_tombstones_are_handled_by_the_declared_policy(declared: Declare, policy: str) -> None:
    system = declared({**KEYED, "sink": {"key": ["order_id"], "tombstones": policy}})
    # All in one partition, as the tests' producer hashes keys: the order of a key is what counts.
    system.put(order(1), order(2), None, order(3), None, order(3, "3.00"), None, keys=[
        *(b"o1", b"o2", b"o1", b"o3", b"o3", b"o3", b"o9")
    ])  # fmt: skip
    system.drive()
    rows = system.table()
    if policy == "ignore":
        assert set(rows) == {"o1", "o2", "o3"}
    elif policy == "delete":
        assert set(rows) == {"o2", "o3"}
    else:
        assert [key for key in sorted(rows) if rows[key]["deleted_at"]] == ["o1", "o9"]
        assert rows["o1"]["amount"] == Decimal("1.50")
    assert rows["o3"]["amount"] == Decimal("3.00")
    assert (system.outcome["rows"], system.outcome["tombstones"]) == (4, 3)
    system.put(order(1, "7.00"), keys=[b"o1"])
    system.drive()
    assert system.table()["o1"]["amount"] == Decimal("7.00")
    assert not system.table()["o1"].get("deleted_at")
    assert checks(system) == [True, True, True]


def test_a_tombstone_whose_key_cannot_be_read_is_a_dead_letter(declared: Declare) -> None:
    system = declared({**KEYED, "max_rejected_share": 1, "sink": {"key": ["order_id"], "key_decoder": "json"}})
    system.put(order(1), None, None, keys=[b'{"order_id": "o1"}', b"no JSON", b'{"order_id": "o1"}'])
    system.drive()
    assert system.table() == {}
    assert b"A tombstone whose key cannot be read" in (system.dead_letters[0].header("dlq.reason") or b"")


def test_the_key_of_a_tombstone_may_be_of_another_format_than_the_value(
    declared: Declare, registry: SchemaRegistry
) -> None:
    schema = {"type": "record", "name": "K", "fields": [{"name": "order_id", "type": "string"}]}
    key = framed(registry.register("k", schema), b"\x04o1")
    nested = [{**one, "path": "$.in.order_id"} if one["name"] == "order_id" else one for one in COLUMNS]
    sink = {"key": ["order_id"], "key_decoder": "avro"}
    system = declared({**KEYED, "columns": nested, "max_rejected_share": 1, "sink": sink})
    value = json.dumps({"in": {"order_id": "o1"}, "amount": 1, "placed_at": "2026-01-15T10:00:00Z"}).encode()
    system.put(value, None, keys=[key, key])
    system.drive()
    assert system.table() == {}
    assert (system.outcome["rows"], system.outcome["tombstones"], system.dead_letters) == (1, 1, [])


def test_a_value_that_the_database_refuses_is_a_dead_letter_and_the_others_are_stored(declared: Declare) -> None:
    system = declared({**KEYED, "max_rejected_share": 1})
    system.put(*(order(number) for number in range(20)), order(20, order_id="a\0b"), *(map(order, range(21, 40))))
    (request,) = system.requests(system.names.sensor)
    assert system.execute(system.names.job, request).success
    assert len(system.table()) == 39
    assert b"The database refuses it" in (system.dead_letters[0].header("dlq.reason") or b"")
    assert checks(system) == [True, True, True]


def test_new_fields_evolve_a_table_of_the_warehouse_and_no_older_value_stays(declared: Declare) -> None:
    system = declared({**KEYED, "drift": "evolve"})
    system.put(order(1), order(2, colour="red", **{"Odd Name": 1}))
    system.drive()
    system.put(order(2), order(1, size={"w": 1.50}))
    system.restart()
    system.drive()
    rows = system.table()
    assert (rows["o1"]["colour"], rows["o1"]["size"]) == (None, '{"w": 1.5}')
    assert (rows["o2"]["colour"], rows["o2"]["rescued_data"]) == (None, None)


def test_a_table_gets_columns_and_refuses_changes_that_would_lose_data(declared: Declare) -> None:
    system = declared(KEYED)
    system.put(order(1))
    system.drive()
    wider = declared({**KEYED, "columns": [*COLUMNS, {"name": "note", "type": "text"}]})
    wider.put(order(2, note="hello"))
    wider.drive()
    assert wider.table()["o2"]["note"] == "hello"
    changed = [{**column, "type": "text"} if column["name"] == "version" else column for column in COLUMNS]
    other = declared({**KEYED, "columns": changed})
    other.put(order(3))
    (request,) = other.requests(other.names.sensor)
    assert not other.execute(other.names.job, request).success
    assert "Column 'version'" in other.reasons
    assert "name a new table as sink.table" in other.reasons
    back = declared(KEYED)
    back.drive()
    assert set(back.table()) == {"o1", "o2", "o3"}


def test_a_model_class_is_the_contract(declared: Declare) -> None:
    model = "ingest_project_tests.streams.declared.models:Order"
    paths = [{"name": "customer", "type": "text", "path": "$.who.id"}]
    system = declared({"model": model, "columns": paths, "event_time": "placed_at", "max_rejected_share": 1})
    system.put(order(1, 4.5, who={"id": "c1"}), order(2, 5.0), order(3, 100.0))
    system.drive()
    assert [(row["order_id"], row["customer"], row["amount"]) for row in system.rows()] == [("o1", "c1", 4.5)]
    reasons = [letter.header("dlq.reason") for letter in system.dead_letters]
    assert reasons == [
        b"It breaks the contract: amount_not_a_whole_number, customer_missing.",
        b"It breaks the contract: amount_not_a_whole_number, amount_out_of_range, customer_missing.",
    ]


def test_an_hour_is_rebuilt_and_a_table_that_went_back_is_completed(declared: Declare) -> None:
    system = declared({**DELTA, "drift": "evolve"})
    system.put(*(order(number) for number in range(4)), order(4, colour="red"))
    system.drive()
    store = system.services.delta_stream(system.declaration).store
    before = store.opened()
    assert before is not None
    before.update({"order_id": "'spoilt'"})
    job = dg.define_asset_job("by_hand", selection=dg.AssetSelection.assets(system.asset).without_checks())
    rebuilt = dg.Definitions.merge(system.definitions, dg.Definitions(jobs=[job])).resolve_job_def("by_hand")
    assert rebuilt.execute_in_process(instance=system.instance, partition_key=HOUR).success
    assert [row["order_id"] for row in system.rows()] == [f"o{number}" for number in range(5)]
    assert [row["colour"] for row in system.rows()] == [*([None] * 4), "red"]
    table = store.opened()
    assert table is not None
    table.delete("kafka_offset >= 3")
    system.put(order(5))
    system.drive()
    assert [row["order_id"] for row in system.rows()] == [f"o{number}" for number in range(6)]
    assert checks(system, *CHECKS[:2]) == [True, True]


@pytest.mark.parametrize("attributes", [DELTA, KEYED], ids=["delta", "sql"])
def test_a_topic_that_was_created_again_is_another_stream(
    declared: Declare,
    kafka_server: Any,  # noqa: ANN401 - either broker
    attributes: dict[str, Any],
) -> None:
    system = declared(attributes)
    system.put(order(1), order(2))
    system.drive()
    kafka_server.delete_topic(system.topic)
    kafka_server.create_topic(system.topic, 2)
    system.restart()
    system.put(order(1, "2.00"), order(3))
    system.drive()
    if attributes is KEYED:
        assert {key: row["amount"] for key, row in system.table().items()} == {
            "o1": Decimal("2.00"),
            "o2": Decimal("1.50"),
            "o3": Decimal("1.50"),
        }
    else:
        assert sorted(row["order_id"] for row in system.rows()) == ["o1", "o1", "o2", "o3"]
    assert checks(system, *CHECKS[:2]) == [True, True]


@pytest.mark.parametrize("attributes", [DELTA, KEYED], ids=["delta", "sql"])
def test_status_metrics_traces_and_inputs_of_other_assets_know_a_declared_stream(
    declared: Declare, attributes: dict[str, Any]
) -> None:
    system, streams = declared(attributes), Streams()
    trace = (("trace-id", b"t-1"),)
    system.services.writer.send_all(system.topic, [ProducerRecord(order(1), b"one", trace)])
    system.drive()
    parts = parts_of_stream(system.declaration)
    stored = parts.stored[system.asset]
    partitions = None if isinstance(stored, SqlTable) else [HOUR]
    frame = stored.read(system.services, partitions)
    assert isinstance(frame, pl.DataFrame)
    assert frame["order_id"].to_list() == ["o1"]
    assert stored.metadata()["dagster/table_name"] == "orders"
    work = streams.read_work(system.services, detailed=True)
    stored_counts = work.facts["Stored"]
    assert isinstance(stored_counts, dict)
    assert stored_counts[system.topic]["events" if attributes is DELTA else "rows"] == 1
    with system.services.engine.connect() as connection:
        totals = {(one.name, *one.labels): one.value for one in streams.running_totals(connection)}
    assert totals["ingest_stream_messages", system.topic, "events" if attributes is DELTA else "rows"] == 1
    assert [moment.subject for moment in streams.trace(system.services, "t-1")] == ["row of orders"]
    topic = next(one for one in streams.topics(system.services) if one.topic == system.topic)
    assert (topic.sensor, topic.dead_letters) == ("orders_sensor", f"{system.topic}.dlq")
    assert set(streams.delta_tables(system.services)) >= ({"orders"} if attributes is DELTA else set())
    assert parts.external_assets is not None
    assert len(parts.external_assets(system.settings)) == 2
