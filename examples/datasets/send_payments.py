"""Send the example payments in Avro, as a payment service would: `python -m examples.datasets.send_payments`.

Kafka and the schema registry are those of the settings (KAFKA_BOOTSTRAP_SERVERS, INGEST_SCHEMA_REGISTRY_URL).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from ingest_project.core.settings import load_settings

FOLDER = Path(__file__).parent
SCHEMA = (FOLDER / "payment.avsc").read_text(encoding="utf-8")
TOPIC = "payments"


def payments() -> Iterator[dict[str, Any]]:
    """Yield the example payments, with times and amounts in their types."""
    for line in (FOLDER / "data" / "payments.jsonl").read_text(encoding="utf-8").splitlines():
        payment = json.loads(line)
        paid_at = datetime.fromisoformat(payment["paid_at"])
        yield {**payment, "paid_at": paid_at, "amount": Decimal(payment["amount"])}


def in_avro(
    records: Iterable[dict[str, Any]], registry_url: str, topic: str = TOPIC, schema: str = SCHEMA
) -> list[bytes]:
    """Return records as the bytes of messages; their schema is registered."""
    with SchemaRegistryClient({"url": registry_url}) as registry:
        serialize = AvroSerializer(registry, schema)
        return [serialize(record, SerializationContext(topic, MessageField.VALUE)) for record in records]


def main() -> None:
    """Send them all, in order."""
    settings = load_settings().settings
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    for value in in_avro(payments(), str(settings.schema_registry.url)):
        producer.produce(TOPIC, value)
    producer.flush()


if __name__ == "__main__":
    main()
