"""`ingest dev` runs the whole system on this machine; `migrate` upgrades the tables, `psql` opens a shell on them.

A deployment runs `migrate` before the processes of a new version start. It upgrades the tables of the warehouse and of
Dagster and, on request, creates missing topics. It is idempotent and safe to run concurrently: the second process finds
nothing left to do. It does not read dagster.yaml, whose launcher may need access to a cluster that this process does
not have. `psql` opens PostgreSQL's own shell on the databases of `ingest dev`, or on those of the settings.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated

import typer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from rich.console import Console
from rich.markup import escape

from ingest_project.core.console import counted, say
from ingest_project.core.errors import PermanentError, SettingsError, TransientError
from ingest_project.core.logging import printable
from ingest_project.core.settings import KafkaSettings, Settings, load_settings
from ingest_project.devstack.postgres import binaries
from ingest_project.devstack.supervisor import Report, Stack, StepState, running_stack
from ingest_project.platform.dagster.records import require_records
from ingest_project.platform.database import HEAD, database_address, exclusive, open_engine
from ingest_project.platform.database import migrate as migrate_warehouse
from ingest_project.platform.kafka import client_config, error_code, unavailable

PAUSE_SECONDS = 1.0
# How long to wait for another process that is migrating; large event logs take minutes.
LOCK_SECONDS = 1_800.0


def dev(
    *,
    services_only: Annotated[
        bool, typer.Option("--services-only", help="Start only broker and database; run `dagster dev` yourself.")
    ] = False,
) -> None:
    """Run broker, database, Dagster and the monitor on this machine until Ctrl-C.

    A configured service (KAFKA_BOOTSTRAP_SERVERS, DATABASE_URL, DAGSTER_POSTGRES_URL) is used instead of started.
    """
    console = Console()
    with running_stack(
        load_settings(), printed(console), dagster=not services_only, monitor=not services_only
    ) as stack:
        print_addresses(console, stack, with_ui=not services_only)
        console.print("\nCtrl-C stops everything.")
        stack.wait()


def print_addresses(console: Console, stack: Stack, *, with_ui: bool) -> None:
    """Print the addresses of the parts, without passwords."""
    settings = stack.settings
    rows = [
        ("Kafka", settings.kafka.bootstrap_servers),
        ("Database", without_password(settings.warehouse.database_url.get_secret_value())),
        ("Logs", str(settings.state_dir.absolute() / "logs")),
    ]
    if with_ui:
        rows.insert(0, ("Dagster UI", stack.webserver_url))
    if stack.monitor_url:
        rows.insert(1, ("Monitor", stack.monitor_url))
    console.print()
    for name, value in rows:
        console.print(f"{name:<12}{escape(printable(value))}", highlight=False, soft_wrap=True)


def without_password(url: str) -> str:
    """Return the URL with its password replaced by asterisks."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def printed(console: Console) -> Report:
    """Create a report for `running_stack` that prints one line per event, with the seconds each step took."""
    started: dict[str, float] = {}

    def report(step: str, state: StepState) -> None:
        if state in (StepState.STARTING, StepState.STOPPING):
            started[step] = time.monotonic()
        # The first start of a restarted part is not in `started`.
        took = f" [dim]({time.monotonic() - started[step]:.1f} s)[/]" if step in started else ""
        console.print(_line(escape(printable(step)), state, took), highlight=False)

    return report


def _line(step: str, state: StepState, took: str) -> str:
    match state:
        case StepState.STARTING:
            return f"[dim]Starting {step} …[/]"
        case StepState.READY:
            return f"[green]✓[/] {step} is ready{took}"
        case StepState.EXTERNAL:
            return f"[green]✓[/] {step}: as set"
        case StepState.NOTE:
            return f"[yellow]{step}.[/]"
        case StepState.STOPPING:
            return f"[dim]Stopping {step} …[/]"
        case StepState.STOPPED:
            return f"[green]✓[/] {step} has stopped{took}"


def migrate(
    *,
    topics: Annotated[
        int | None, typer.Option(min=1, max=100_000, metavar="PARTITIONS", help="Also create the missing topics.")
    ] = None,
    replication: Annotated[int, typer.Option(min=1, max=32_767, help="Replicas of each partition of a new topic.")] = 1,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for the databases and Kafka.")
    ] = 0.0,
) -> None:
    """Upgrade the tables of the warehouse and of Dagster to this version.

    Run it once before the processes of a new version start. It is idempotent.
    """
    settings = load_settings().settings
    give_up_at = time.monotonic() + wait
    _with_retries(lambda: _migrate_warehouse(settings), give_up_at)
    _with_retries(lambda: _migrate_dagster(settings), give_up_at)
    if topics is not None:
        _with_retries(lambda: _create_topics(settings, topics, replication), give_up_at)


def _with_retries(step: Callable[[], None], give_up_at: float) -> None:
    while True:
        try:
            return step()
        except TransientError:
            if time.monotonic() + PAUSE_SECONDS > give_up_at:
                raise
        time.sleep(PAUSE_SECONDS)


def _migrate_warehouse(settings: Settings) -> None:
    engine = open_engine(settings.warehouse.database_url, settings.warehouse.connect_timeout_seconds)
    try:
        migrate_warehouse(engine)
    finally:
        engine.dispose()
    say(f"The warehouse's tables are at version {HEAD}.")


def _migrate_dagster(settings: Settings) -> None:
    url = settings.dagster.postgres_url
    if not url.get_secret_value():
        say("DAGSTER_POSTGRES_URL is not set: Dagster stores its records in SQLite, with tables of its own.")
        return
    require_records(settings)
    engine = open_engine(url, settings.warehouse.connect_timeout_seconds)
    try:
        with exclusive(engine, "ingest_dagster_migration", LOCK_SECONDS):
            _upgrade_dagster()
    finally:
        engine.dispose()


def _upgrade_dagster() -> None:
    from ingest_project.platform.dagster.instance import upgrade_tables  # other commands need not load it

    say(f"Dagster's tables are those of version {upgrade_tables()}.")


def _create_topics(settings: Settings, partitions: int, replication: int) -> None:
    from ingest_project.streams.declaration import load_streams  # imports Polars

    declared = [topic for one in load_streams(settings).usable for topic in (one.topic, one.dlq)]
    names = list(dict.fromkeys([*settings.topics.model_dump().values(), *declared]))
    made = make_missing_topics(settings.kafka, names, partitions, replication)
    found = len(names) - len(made)
    say(f"{counted(len(made), 'topic')} made with {counted(partitions, 'partition')}; {found} were there.")


def make_missing_topics(
    kafka: KafkaSettings, names: Sequence[str], partitions: int, replication: int
) -> tuple[str, ...]:
    """Create the missing topics and return them; existing ones keep their partitions.

    Raises:
        BrokerUnavailableError: Kafka does not answer, or refuses the request.
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


def psql(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[PSQL ARGUMENTS]...", help="E.g. -c 'SELECT 1'; see psql --help.")
    ] = None,
    *,
    dagster: Annotated[
        bool, typer.Option("--dagster", help="Open Dagster's database instead of the warehouse.")
    ] = False,
) -> None:
    """Open psql on the warehouse; further arguments go to psql. The password is not shown."""
    settings = load_settings().settings
    url = settings.dagster.postgres_url if dagster else settings.warehouse.database_url
    address, password = connection(url.get_secret_value(), "DAGSTER_POSTGRES_URL" if dagster else "DATABASE_URL")
    program = find_psql()
    # Everybody can see the address in the process list, but only this user can see the environment.
    secret = {"PGPASSWORD": password} if password else {}
    os.execve(program, [program, f"--dbname={address}", *(arguments or [])], os.environ | secret)  # noqa: S606


def connection(database_url: str, setting: str) -> tuple[str, str]:
    """Return the address for libpq without the password, and the password.

    Raises:
        SettingsError: no address is set, or it is not PostgreSQL's.
    """
    if not database_url:
        raise SettingsError(f"{setting} is not set. Start `ingest dev`, or set it.")
    url = database_address(database_url)
    if url.get_backend_name() != "postgresql":
        raise SettingsError(f"{setting} is an address of {url.get_backend_name()}, and psql is for PostgreSQL alone.")
    in_query = url.query.get("password", "")
    bare = url.set(drivername="postgresql")._replace(password=None).difference_update_query(["password"])
    address, mark, query = bare.render_as_string(hide_password=False).partition("?")
    # libpq supports no other encoding of a space.
    return address + mark + query.replace("+", "%20"), str(url.password or in_query)


def find_psql() -> str:
    """Return the path of psql from the embedded PostgreSQL, or else from PATH.

    Raises:
        PermanentError: psql is not installed.
    """
    with suppress(PermanentError):
        shipped = binaries() / "psql"
        if shipped.exists():
            return str(shipped)
    if found := shutil.which("psql"):
        return found
    raise PermanentError("psql is neither part of the embedded PostgreSQL nor on PATH. Install PostgreSQL's client.")
