"""Each declared example from its messages to stored rows, and once more after a kill half-way."""

from __future__ import annotations

import json
import signal
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterInstance
from dagster._serdes import serialize_value

from examples.datasets.send_payments import SCHEMA, in_avro, payments
from ingest_project.platform.kafka.dead_letters import letter_of
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint, SavedCursors, bury_the_dead
from ingest_project_tests.examples.system import ExampleSystem
from ingest_project_tests.journeys.system import POLLING

WAY = "ingest_project_tests.examples.system:ExampleSystem.drive"
ASSETS = ("raw_files", "validated", "quarantined_files", "metrics")
STATES = {"BGO_2026-01-15.csv": "ingested", "OSL_2026-01-15.csv": "ingested", "TRD_2026-01-15.csv": "quarantined"}
ORDER_STATES = {"orders-2026-01-15.jsonl": "ingested", "orders-2026-01-16.jsonl": "ingested"}


def send_weather(system: ExampleSystem) -> None:
    system.send_files(*sorted((system.folder / "weather").iterdir()))


def require_weather(system: ExampleSystem) -> None:
    assert system.states() == STATES
    found = system.delta_rows("weather", "station", "observed_at", "day", "temperature", "rain", "rescued_data")
    day = date(2026, 1, 15)
    assert found == [
        ("BGO", datetime(2026, 1, 15, 7, tzinfo=UTC), day, 4.2, 1.4, None),
        ("BGO", datetime(2026, 1, 15, 8, tzinfo=UTC), day, 4.4, 2.2, None),
        ("BGO", datetime(2026, 1, 15, 9, tzinfo=UTC), day, 4.9, 0.8, None),
        ("OSL", datetime(2026, 1, 15, 7, tzinfo=UTC), day, -3.4, 0.0, None),
        ("OSL", datetime(2026, 1, 15, 8, tzinfo=UTC), day, -3.1, 0.2, None),
        ("OSL", datetime(2026, 1, 15, 10, tzinfo=UTC), day, -2.2, 0.0, '{"Operator":"Kari"}'),
        ("OSL", datetime(2026, 1, 15, 12, tzinfo=UTC), day, -1.7, 0.0, None),
    ]
    assert system.quarantine("OSL_2026-01-15.csv") == [
        (4, ["dew_point_not_above_temperature"]),
        (6, ["humidity_out_of_range"]),
    ]
    metrics = 'SELECT station, measure, "min", "max", "count" FROM weather_metrics ORDER BY 1, 2'
    assert system.rows(metrics) == [
        ("BGO", "rain", 0.8, 2.2, 3),
        ("BGO", "temperature", 4.2, 4.9, 3),
        ("OSL", "rain", 0.0, 0.2, 4),
        ("OSL", "temperature", -3.4, -1.7, 4),
    ]
    require_partitions(system, "weather")
    oslo, bergen, refused = (
        system.evaluations(system.file(f"{station}_2026-01-15.csv").file_key) for station in ("OSL", "BGO", "TRD")
    )
    assert (oslo["file_accepted"], oslo["contract_holds"], oslo["schema_unchanged"]) == (True, False, False)
    assert (bergen["file_accepted"], bergen["contract_holds"], bergen.get("schema_unchanged", True)) == (
        True,
        True,
        True,
    )
    assert refused["file_accepted"] is False
    assert "Date" in (system.file("TRD_2026-01-15.csv").reason or "")


def send_orders(system: ExampleSystem) -> None:
    for name in ORDER_STATES:
        system.send_files(system.folder / "orders" / name)


def require_orders(system: ExampleSystem) -> None:
    assert system.states() == ORDER_STATES
    found = system.rows("SELECT order_id, status, currency, amount, ship_by::text, lines, rescued_data FROM orders")
    assert sorted(found) == [
        ("ord-000101", "paid", "EUR", Decimal("129.90"), "2026-01-19", [{"sku": "A-1", "quantity": 2}], None),
        ("ord-000102", "placed", "NOK", Decimal("4999.00"), None, None, None),
        ("ord-000103", "paid", "EUR", Decimal("0.10"), None, None, {"coupon": "WINTER"}),
        ("ord-000106", "shipped", "EUR", Decimal("75.25"), None, None, None),
        ("ord-000107", "cancelled", "NOK", Decimal("310.00"), None, None, None),
    ]
    assert system.quarantine("orders-2026-01-15.jsonl") == [
        (4, ["status_not_allowed"]),
        (5, ["amount_too_many_decimals"]),
    ]
    assert system.rows('SELECT currency, "min", "max", "count" FROM orders_metrics ORDER BY 1, 2') == [
        ("EUR", 0.1, 129.9, 2),
        ("EUR", 75.25, 75.25, 1),
        ("NOK", 310.0, 310.0, 1),
        ("NOK", 4999.0, 4999.0, 1),
    ]
    require_partitions(system, "orders")


def require_partitions(system: ExampleSystem, dataset: str) -> None:
    """Every asset of the dataset has a materialization for every file, and the shipped dataset has none."""
    keys = {record.file_key for record in system.files().values()}
    assert set(system.instance.get_dynamic_partitions(f"{dataset}_files")) == keys
    for name in ASSETS:
        assert system.instance.get_materialized_partitions(dg.AssetKey([dataset, name])) == keys
    assert system.instance.get_dynamic_partitions("files") == []


def send_payments(system: ExampleSystem) -> None:
    url, topic = str(system.settings.schema_registry.url), system.payments.topic
    schema = json.loads(SCHEMA)
    newer = {**schema, "fields": [*schema["fields"], {"name": "channel", "type": "string", "default": "web"}]}
    last = {**next(payments()), "payment_id": "pay-7", "channel": "app"}
    system.put(*in_avro(payments(), url, topic), b"not Avro", *in_avro([last], url, topic, json.dumps(newer)))


def require_payments(system: ExampleSystem) -> None:
    columns = ("payment_id", "order_id", "amount", "event_day", "event_hour", "rescued_data", "kafka_offset")
    assert system.delta_rows("payments", *columns) == [
        ("pay-1", "ord-000101", Decimal("129.90"), "2026-01-15", "08", None, 0),
        ("pay-2", "ord-000103", Decimal("0.10"), "2026-01-15", "09", None, 1),
        ("pay-5", "ord-000106", Decimal("75.25"), "2026-01-16", "07", None, 4),
        ("pay-7", "ord-000101", Decimal("129.90"), "2026-01-15", "08", '{"channel":"app"}', 7),
    ]
    letters = system.on_topic(system.payments.dlq)
    reasons = [letter_of(letter).reason or "" for letter in letters]
    expected = ("order_id_pattern", "method_not_allowed", "amount_out_of_range", "It names no schema")
    assert [said in reason for reason, said in zip(reasons, expected, strict=True)] == [True] * 4, reasons
    (position,) = system.positions.all()
    assert (position.next_offset, position.reason) == (8, None)
    hours = {"2026-01-15-08:00", "2026-01-15-09:00", "2026-01-16-07:00"}
    assert system.instance.get_materialized_partitions(dg.AssetKey("payments")) == hours
    assert [system.check(name).passed for name in ("no_gap_in_offsets", "no_duplicate_offsets")] == [True, True]


EXAMPLES = {
    "weather": (send_weather, require_weather),
    "orders": (send_orders, require_orders),
    "payments": (send_payments, require_payments),
}
QUEUE = "ingest_project.file_ingest.file_queue:FileQueue"
# The first of each example belongs to the ordinary run.
KILL_POINTS = [
    ("weather", KillPoint("rows in Delta, before the commit", "ingest_project.file_ingest.load:store_at_once")),
    ("weather", KillPoint("files begun", f"{QUEUE}.begin")),
    ("orders", KillPoint("files finished, before the commit", "ingest_project.file_ingest.load:store_at_once")),
    ("payments", KillPoint("commit made", "ingest_project.platform.delta.table:DeltaStore.append")),
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_from_its_messages_to_stored_rows(name: str, examples: ExampleSystem) -> None:
    send, require = EXAMPLES[name]
    send(examples)
    examples.drive()
    require(examples)


def test_an_order_that_another_file_has_is_not_stored_twice(examples: ExampleSystem) -> None:
    send_orders(examples)
    examples.drive()
    examples.send_files(examples.folder / "orders" / "orders-resent.jsonl")
    examples.drive()
    resent = examples.file("orders-resent.jsonl")
    assert resent.state.value == "quarantined"
    assert "stored already" in (resent.reason or "")
    assert examples.rows("SELECT count(*), count(DISTINCT order_id) FROM orders") == [(5, 5)]


def test_files_that_a_polling_job_finds_belong_to_the_dataset_that_names_the_job(examples: ExampleSystem) -> None:
    (examples.folder / "orders").rename(examples.folder / "inbox")
    examples.send_job(examples.folder / "inbox", "orders-2026-*.jsonl", job_id="orders-1")
    for request in examples.requests(POLLING):
        assert examples.execute("polling_batch", request).success
    examples.drive()
    require_orders(examples)


@pytest.mark.parametrize(("name", "point"), KILL_POINTS, ids=[f"{name}: {point.step}" for name, point in KILL_POINTS])
def test_an_example_that_is_killed_half_way_stores_everything_once_when_it_runs_again(  # noqa: PLR0913, PLR0917 - fixtures
    name: str,
    point: KillPoint,
    examples: ExampleSystem,
    deadly_process: DeadlyProcess,
    environ: dict[str, str],
    instance: DagsterInstance,
    tmp_path: Path,
) -> None:
    send, require = EXAMPLES[name]
    send(examples)
    exit_code = deadly_process.drive(point, examples.folder, serialize_value(instance.get_ref()), environ, WAY)
    assert exit_code == -signal.SIGKILL, "it did not reach the step where it should have died"
    bury_the_dead(instance)

    examples.cursors = SavedCursors(tmp_path)
    examples.drive()
    require(examples)
