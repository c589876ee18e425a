"""`ingest migrate`: what one job of a deployment does before the processes of a new version start.

Brings the warehouse's tables and Dagster's to this version's form and, when asked to, makes the topics that are not
there. Safe to run twice and at the same time as another one: the second finds nothing left to do. It reads no
dagster.yaml, whose launcher may want to ask a cluster that this job has no access to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated

import sqlalchemy as sa
import typer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from ingest_project.core.console import counted, say
from ingest_project.core.errors import TransientError
from ingest_project.core.settings import KafkaSettings, Settings, load_settings
from ingest_project.platform.database.engine import open_engine, reading
from ingest_project.platform.database.locks import exclusive
from ingest_project.platform.database.migrate import HEAD
from ingest_project.platform.database.migrate import migrate as migrate_warehouse
from ingest_project.platform.kafka.client import client_config, error_code, unavailable

PAUSE_SECONDS = 1.0
# Of another job that migrates at this moment; large event logs take their time.
LOCK_SECONDS = 1_800.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("migrate")(migrate)


def migrate(
    *,
    topics: Annotated[
        int | None, typer.Option(min=1, metavar="PARTITIONS", help="Also make the topics that are not there.")
    ] = None,
    replication: Annotated[int, typer.Option(min=1, help="Copies of each partition of a new topic.")] = 1,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long the databases and Kafka may be away.")
    ] = 0.0,
) -> None:
    """Bring the tables of the warehouse and of Dagster to this version's form.

    Run it once before the processes of a new version start. The second time nothing happens.
    """
    settings = load_settings().settings
    give_up_at = time.monotonic() + wait
    _patiently(lambda: _migrate_warehouse(settings), give_up_at)
    _patiently(lambda: _migrate_dagster(settings), give_up_at)
    if topics is not None:
        _patiently(lambda: _make_topics(settings, topics, replication), give_up_at)


def _patiently(step: Callable[[], None], give_up_at: float) -> None:
    while True:
        try:
            return step()
        except TransientError:
            if time.monotonic() + PAUSE_SECONDS > give_up_at:
                raise
        time.sleep(PAUSE_SECONDS)


def _migrate_warehouse(settings: Settings) -> None:
    engine = open_engine(settings.warehouse.database_url.get_secret_value(), settings.warehouse.connect_timeout_seconds)
    try:
        migrate_warehouse(engine)
    finally:
        engine.dispose()
    say(f"The warehouse's tables are at version {HEAD}.")


def _migrate_dagster(settings: Settings) -> None:
    url = settings.dagster.postgres_url.get_secret_value()
    if not url:
        say("DAGSTER_POSTGRES_URL is not set: Dagster keeps its records in SQLite and makes them by itself.")
        return
    engine = open_engine(url, settings.warehouse.connect_timeout_seconds)
    try:
        # Dagster's own failure to connect is a traceback: ours says where and why.
        with reading(engine) as connection:
            connection.execute(sa.select(1))
        with exclusive(engine, "ingest_dagster_migration", LOCK_SECONDS):
            _upgrade_dagster()
    finally:
        engine.dispose()


def _upgrade_dagster() -> None:
    from ingest_project.platform.dagster.event_log_storage import (  # noqa: PLC0415 - the other commands need not load it
        upgrade_tables,
    )

    say(f"Dagster's tables are those of version {upgrade_tables()}.")


def _make_topics(settings: Settings, partitions: int, replication: int) -> None:
    names = list(dict.fromkeys(settings.topics.model_dump().values()))
    made = make_missing_topics(settings.kafka, names, partitions, replication)
    found = len(names) - len(made)
    say(f"{counted(len(made), 'topic')} made with {counted(partitions, 'partition')}; {found} were there.")


def make_missing_topics(
    kafka: KafkaSettings, names: Sequence[str], partitions: int, replication: int
) -> tuple[str, ...]:
    """Make the topics that are not there; those that are keep their partitions. Returns the ones made.

    Raises:
        BrokerUnavailableError: Kafka does not answer, or refuses.
    """
    admin = AdminClient(client_config(kafka))
    wanted = [NewTopic(name, partitions, replication) for name in names]
    answers = admin.create_topics(wanted, request_timeout=kafka.request_timeout_seconds)
    made = []
    for name, answer in answers.items():
        try:
            answer.result()
            made.append(name)
        except KafkaException as error:
            if error_code(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                raise unavailable(kafka, error) from error
    return tuple(made)
