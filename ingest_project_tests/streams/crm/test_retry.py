"""Transient errors are waited for, others are reported, and messages identified after a fix become records once."""

from __future__ import annotations

import threading
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster import DagsterInstance

from ingest_project.core.errors import BrokerUnavailableError, DatabaseUnavailableError
from ingest_project.core.settings import load_settings
from ingest_project.platform.database import writing
from ingest_project.streams.crm.records import opportunities, unidentified_messages
from ingest_project.streams.crm.sink import RetryResult, retry
from ingest_project_tests.journeys.system import move_to, paused
from ingest_project_tests.services.kafka import OwnServer, Server
from ingest_project_tests.services.postgres import PostgresProcess
from ingest_project_tests.streams.crm.messages import encoded, opportunity
from ingest_project_tests.streams.crm.system import SENSOR, CrmSystem, crm_environment

pytestmark = pytest.mark.long


def test_a_database_that_goes_away_loses_nothing(
    kafka_server: Server, own_postgres_server: PostgresProcess, instance: DagsterInstance, tmp_path: Path
) -> None:
    database = own_postgres_server.url(own_postgres_server.create_database())
    environ = crm_environment(kafka_server.bootstrap_servers, database, tmp_path) | {"MAX_RETRIES": "2"}
    kafka_server.create_topic(environ["KAFKA_TOPIC_SALES_EVENTS"], 1)
    crm = CrmSystem(load_settings(environ, tmp_path).settings, instance, tmp_path)
    crm.put(*(opportunity(f"opp_{number}") for number in range(20)), b"?")
    (request,) = crm.requests(SENSOR)
    own_postgres_server.kill()
    assert not crm.execute("crm_batch", request).success
    with pytest.raises(DatabaseUnavailableError):
        crm.requests(SENSOR)
    own_postgres_server.start()
    crm.drive()
    assert len(crm.rows(opportunities)) == 20
    assert len(crm.unidentified) == 1
    crm.close()


def test_a_broker_that_goes_away_loses_nothing_and_is_named(crm: CrmSystem, own_kafka_server: OwnServer) -> None:
    own_kafka_server.create_topic(crm.topic, 2)
    crm.settings = crm.settings.model_copy(
        update={"retries": crm.settings.retries.model_copy(update={"max_attempts": 3, "delay_seconds": 0.01})}
    )
    move_to(crm, own_kafka_server)
    crm.put(opportunity())
    (request,) = crm.requests(SENSOR)
    with paused(own_kafka_server, crm):
        assert not crm.execute("crm_batch", request).success
        with pytest.raises(BrokerUnavailableError):
            crm.requests(SENSOR)
    assert set(crm.next_offsets.values()) == {0}
    assert "does not answer" in crm.reasons
    crm.drive()
    assert set(crm.rows(opportunities)) == {"opp_1"}


def spoil(crm: CrmSystem, *messages: bytes) -> list[str]:
    """Keep messages as if the rules had not known them when they came; their ids."""
    crm.put(*(b"?" + message for message in messages))
    crm.drive()
    kept = crm.unidentified
    with writing(crm.services.engine) as connection:
        for message in kept:
            fixed = (message.payload or b"").removeprefix(b"?")
            connection.execute(
                sa.update(unidentified_messages)
                .where(unidentified_messages.c.message_id == message.message_id)
                .values(payload=fixed)
            )
    return [message.message_id for message in kept]


def test_a_message_identified_after_a_fix_becomes_one_record(crm: CrmSystem) -> None:
    ids = spoil(
        crm,
        encoded(opportunity(stage="Old", last_modified="2020-01-01T00:00:00Z")),
        b"never",
        encoded(opportunity("opp_2")),
    )
    crm.put(opportunity(stage="New"))
    crm.drive()
    assert retry(crm.services.engine) == RetryResult((ids[0], ids[2]), (ids[1],))
    assert {key: row["stage"] for key, row in crm.rows(opportunities).items()} == {
        "opp_1": "New",
        "opp_2": "Negotiation",
    }
    kept = crm.unidentified
    assert [(one.identified_as, one.event_id, one.retries) for one in kept] == [
        ("opportunity", "opp_1", 1),
        (None, None, 1),
        ("opportunity", "opp_2", 1),
    ]
    before = crm.rows(opportunities)
    assert retry(crm.services.engine) == RetryResult((), (ids[1],))
    assert crm.rows(opportunities) == before


def test_two_retries_at_once_identify_each_message_once(crm: CrmSystem) -> None:
    ids = spoil(crm, *(encoded(opportunity(f"opp_{number}")) for number in range(30)))
    done: list[RetryResult] = []
    threads = [threading.Thread(target=lambda: done.append(retry(crm.services.engine))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(message_id for one in done for message_id in one.identified) == sorted(ids)
    assert len(crm.rows(opportunities)) == 30


def test_a_retry_job_in_the_ui_takes_all_or_named_messages(crm: CrmSystem) -> None:
    ids = spoil(crm, encoded(opportunity()), encoded(opportunity("opp_2")))
    config = {"ops": {"retry_unidentified_messages": {"config": {"message_ids": [ids[1]]}}}}
    assert crm.run("crm_retry_unidentified", config).success
    assert set(crm.rows(opportunities)) == {"opp_2"}
    assert crm.run("crm_retry_unidentified").success
    assert set(crm.rows(opportunities)) == {"opp_1", "opp_2"}
    event = crm.instance.get_latest_materialization_event(dg.AssetKey("unidentified_messages"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["retried_and_identified"].value == 1
