"""Events from Eventhouse and from Event Hubs, each stored once."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance
from dagster._serdes import serialize_value
from pydantic import SecretStr

from ingest_project.attachments.sensors import is_due
from ingest_project.attachments.tables import AttachmentState, eventhouse_positions
from ingest_project.core.settings import load_settings
from ingest_project.platform.database import reading
from ingest_project.platform.kafka import EventHub, event_hub
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project_tests.attachments.system import AttachmentSystem, attachment_environment
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint, SavedCursors
from ingest_project_tests.journeys.system import changed
from ingest_project_tests.services.http_server import HttpServer
from ingest_project_tests.services.kafka import CONNECTION_STRING, KafkaServer, Server
from ingest_project_tests.services.kusto_server import KustoServer

pytestmark = pytest.mark.long

TABLE = "ClaimDocuments"
ROWS = 25
QUERY = f"domain: claims\ndatabase: events\ntable: {TABLE}\nkey: [EventId]\npage_rows: 10\n"
WAY = "ingest_project_tests.attachments.system:AttachmentSystem.look_at_eventhouse"
POSITIONS = "ingest_project.attachments.eventhouse.polling:EventhousePositions"
KILL_POINTS = [
    KillPoint("page intended", "ingest_project.platform.kafka.publisher:MessageOutbox.record_intent"),
    KillPoint("page sent", "ingest_project.platform.kafka.producer:TopicWriter.send_all"),
    KillPoint("page marked as sent", "ingest_project.platform.kafka.publisher:MessageOutbox.mark_sent"),
    KillPoint("position saved", f"{POSITIONS}.advance"),
    KillPoint("second page sent", "ingest_project.platform.kafka.producer:TopicWriter.send_all", 2),
]


@pytest.fixture
def eventhouse(kusto_server: KustoServer, http_server: HttpServer, tmp_path: Path) -> dict[str, str]:
    """Rows in a table, and the settings that lead to them."""
    columns = {"EventId": "string", "trace_id": "string", "event_type": "string", "occurred_at": "datetime"}
    kusto_server.database.create_table(TABLE, columns | {"attachments": "dynamic", "payload": "dynamic"})
    kusto_server.database.ingest(TABLE, *(_row(number, http_server) for number in range(ROWS)))
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / "claims.yaml").write_text(QUERY)
    return {
        "EVENT_SOURCE": "eventhouse",
        "INGEST_EVENTHOUSE_ADDRESS": kusto_server.address,
        "INGEST_EVENTHOUSE_AUTHENTICATION": "none",
        "INGEST_EVENTHOUSE_TRUSTED_HOSTS": "127.0.0.1",
        "INGEST_EVENTHOUSE_QUERIES": str(tmp_path / "queries"),
    }


def positions(system: AttachmentSystem) -> Sequence[sa.Row[Any]]:
    with reading(system.services.engine) as connection:
        return connection.execute(sa.select(eventhouse_positions)).all()


def _row(number: int, http_server: HttpServer) -> dict[str, Any]:
    return {
        "EventId": f"event-{number}",
        "trace_id": f"trace-{number}",
        "event_type": "claim.documents.received",
        "occurred_at": "2026-03-01T10:00:00Z",
        "attachments": [http_server.url(f"/files/{number}.pdf?size=100")],
        "payload": {"number": number},
    }


@pytest.fixture
def system(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, eventhouse: dict[str, str], tmp_path: Path
) -> Iterator[AttachmentSystem]:
    """The product, polling Eventhouse."""
    (tmp_path / "in").mkdir()
    environ = attachment_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path) | eventhouse
    system = AttachmentSystem(load_settings(environ, tmp_path).settings, instance, tmp_path / "in")
    yield system
    system.close()


def published(system: AttachmentSystem) -> list[str]:
    """The trace ids on `events.raw`."""
    messages = system.on_topic(system.settings.topics.events_raw)
    return sorted(json.loads(message.value or b"")["trace_id"] for message in messages)


def every_trace() -> list[str]:
    return sorted(f"trace-{number}" for number in range(ROWS))


def test_rows_of_eventhouse_are_stored_and_read_once(system: AttachmentSystem) -> None:
    system.look_at_eventhouse()
    system.drive_attachments()
    system.cursors.pop("eventhouse_sensor", None)
    system.look_at_eventhouse()

    assert published(system) == every_trace()
    assert system.services.attachments.counts_by_state()[AttachmentState.STORED] == ROWS
    (position,) = positions(system)
    assert (position.domain, position.events, position.refused, position.reason) == ("claims", ROWS, 0, None)


def test_one_bad_row_is_a_dead_letter_and_the_others_are_published(
    system: AttachmentSystem, kusto_server: KustoServer, http_server: HttpServer
) -> None:
    # Random: what compresses well is small enough for the broker.
    large = {"EventId": "large", "trace_id": "large", "attachments": ["https://h/" + secrets.token_hex(6_000_000)]}
    kusto_server.database.ingest(TABLE, _row(99, http_server) | large)
    for _ in range(2):
        system.look_at_eventhouse()
        system.cursors.pop("eventhouse_sensor", None)

    assert published(system) == every_trace()
    (kept,) = system.quarantined()
    assert "a message has at most" in kept["reason"], "no topic takes a dead letter that large"
    (position,) = positions(system)
    assert (position.events, position.refused, position.reason) == (ROWS, 1, None)


def test_a_misspelt_query_file_stops_its_own_domain_alone(system: AttachmentSystem, tmp_path: Path) -> None:
    (tmp_path / "queries" / "broken.yaml").write_text("domian: orders\n")
    system.look_at_eventhouse()
    assert published(system) == every_trace()


def test_a_last_look_in_the_future_does_not_keep_the_next_one_waiting() -> None:
    now = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
    assert not is_due(str(now.timestamp() - 5), now, 30)
    assert is_due(str(now.timestamp() - 31), now, 30)
    assert is_due(str(now.timestamp() + 10_000), now, 30), "the clock was set back"


def test_an_unreadable_domain_records_the_reason_and_continues_later(
    system: AttachmentSystem, kusto_server: KustoServer
) -> None:
    address = system.settings.eventhouse.address
    system.settings = changed(system.settings, "eventhouse", address="http://127.0.0.1:1")
    system.restart()
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        system.look_at_eventhouse()
    assert positions(system)[0].reason
    system.settings = changed(system.settings, "eventhouse", address=address)
    system.restart()
    system.look_at_eventhouse()
    assert published(system) == every_trace()
    assert kusto_server.requests


@pytest.mark.parametrize("point", KILL_POINTS, ids=lambda point: point.step)
def test_killed_while_a_page_is_published_each_event_is_published_once(
    point: KillPoint, system: AttachmentSystem, eventhouse: dict[str, str], kafka_server: Server, tmp_path: Path
) -> None:
    url = system.settings.warehouse.database_url.get_secret_value()
    environ = attachment_environment(kafka_server.bootstrap_servers, url, tmp_path) | eventhouse
    environ |= {name: os.environ[name] for name in ("DAGSTER_POSTGRES_URL",)}
    environ["KAFKA_TOPIC_EVENTS_RAW"] = system.settings.topics.events_raw
    process = DeadlyProcess()
    try:
        exit_code = process.drive(point, tmp_path / "in", serialize_value(system.instance.get_ref()), environ, WAY)
    finally:
        process.close()
    assert exit_code == -signal.SIGKILL
    system.cursors = SavedCursors(tmp_path)
    system.look_at_eventhouse()
    assert published(system) == every_trace()


def test_an_event_hub_replaces_the_topic(
    attachment_system: AttachmentSystem, kafka_server: Server, http_server: HttpServer
) -> None:
    if not isinstance(kafka_server, KafkaServer):
        pytest.skip("the embedded broker has no SASL")
    system = attachment_system
    system.settings = changed(system.settings, "attachments", event_source="eventhub")
    system.restart()
    hub = event_hub(
        system.settings.kafka,
        connection_string=SecretStr(CONNECTION_STRING),
        topic=f"{system.settings.kafka.group_id}.hub",
    )
    # The tests' broker instead of Azure's.
    broker = {"bootstrap_servers": kafka_server.sasl_bootstrap_servers, "security_protocol": "SASL_PLAINTEXT"}
    system.services.event_hub = EventHub(hub.settings.model_copy(update=broker), hub.topic)
    event = {"trace_id": "from-the-hub", "domain": "claims", "attachments": [http_server.url("/files/hub.pdf?size=9")]}
    system.send(hub.topic, event)
    system.send_event(http_server.url("/files/not-read.pdf?size=9"))
    system.drive_attachments()

    assert [record.trace_id for record in system.services.attachments.list()] == ["from-the-hub"]
    assert system.attachment("hub.pdf").state is AttachmentState.STORED
    assert isinstance(system.services.event_hub_reader, TopicReader)
    system.services.event_hub_reader.close()
