"""`ingest trace`, `ingest retention` and `ingest monitor`: follow one trace, purge expired records, serve metrics.

`trace ID` tells the history of one trace, from the first message to the stored rows and files. `retention` purges
expired records or lists them. `monitor` serves metrics, health and the dashboard until Ctrl-C.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ingest_project.core import console as output
from ingest_project.core.console import complain
from ingest_project.core.errors import SettingsError, StoreUnavailableError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.operations.traces import Moment, story_of
from ingest_project.streams.user_activity.event_queries import events_of_trace

if TYPE_CHECKING:
    import dagster as dg


NOT_FOUND = 1


def register_trace(app: typer.Typer) -> None:
    """Add the command."""
    app.command("trace")(show_trace)


def show_trace(
    trace_id: Annotated[str, typer.Argument(help="Trace id, as messages, logs and tables carry it.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Tell everything that is on record of one trace, in time order."""
    services = SystemResources(load_settings().settings)
    moments = sorted([*story_of(services.engine, trace_id), *_events(services, trace_id)])
    if as_json:
        output.print_json({"trace_id": trace_id, "moments": moments})
    elif moments:
        table = output.table("Time", "What", "Happened", "Detail")
        for moment in moments:
            output.add_row(table, moment.at, moment.subject, moment.what, moment.detail)
        output.show(table)
    if not moments:
        output.complain(f"Nothing is on record of the trace {trace_id}.")
        raise typer.Exit(NOT_FOUND)


def _events(services: SystemResources, trace_id: str) -> list[Moment]:
    try:
        rows = events_of_trace(services.user_activity_events, trace_id)
    except StoreUnavailableError as away:
        output.complain(f"User activity could not be searched: {away}")
        return []
    return [
        Moment(
            row["kafka_timestamp"] or row["timestamp"],
            f"event {row['event_id']}",
            str(row["event_type"]),
            f"{row['kafka_topic']}[{row['kafka_partition']}]@{row['kafka_offset']}",
        )
        for row in rows
    ]


def register_retention(app: typer.Typer) -> None:
    """Add the command."""
    app.command("retention")(purge)


def purge(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Remove partitions, runs, landed bytes, message ids and ranges that are long done; a job does it every night."""
    from ingest_project.operations.retention import plan_purge  # noqa: PLC0415 - imports dagster: one second

    settings = load_settings().settings
    with _instance(settings) as instance:
        found = plan_purge(SystemResources(settings), instance, datetime.now(UTC))
        if not dry_run:
            for removal in found:
                removal.remove()
    if as_json:
        told = [{"what": one.what, "number": one.number, "examples": list(one.examples)} for one in found]
        output.print_json({"dry_run": dry_run, "removals": told})
        return
    number = "Would be removed" if dry_run else "Removed"
    table = output.table(number, "What", "For example", numbers=[number])
    for removal in found:
        output.add_row(table, removal.number, removal.what, ", ".join(removal.examples[:3]))
    output.show(table)


@contextmanager
def _instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Dagster's records: those of DAGSTER_HOME, or of `ingest dev` on this machine."""
    from dagster import DagsterInstance  # noqa: PLC0415 - one second to import

    home = settings.dagster.home or settings.state_dir.absolute() / "dagster_home"
    if not (home / "dagster.yaml").is_file():
        raise SettingsError(f"There is no dagster.yaml in {home}. Start it (ingest dev) or set DAGSTER_HOME.")
    os.environ.setdefault("DAGSTER_POSTGRES_URL", settings.dagster.postgres_url.get_secret_value())
    with DagsterInstance.from_config(str(home)) as instance:
        yield instance


def register_monitor(app: typer.Typer) -> None:
    """Add the command."""
    app.command("monitor")(monitor)


def monitor(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on; by default INGEST_MONITOR_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 picks a free one. By default INGEST_MONITOR_PORT.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine although no token is set.")
    ] = False,
) -> None:
    """Serve /metrics, /healthz, /readyz and a dashboard until Ctrl-C.

    Beyond this machine it asks for INGEST_MONITOR_TOKEN, and does not start without one.
    """
    from ingest_project.core.logging import configure_logging  # noqa: PLC0415 - with the next
    from ingest_project.operations.dashboard.serving import serve  # noqa: PLC0415 - no other command serves

    settings = load_settings().settings
    configure_logging(settings.logging)
    chosen_port = settings.monitor.port if port is None else port
    serve(settings, host or settings.monitor.host, chosen_port, _say, insecure=insecure)


def _say(address: str) -> None:
    complain(f"The monitor is at {address} (Ctrl-C ends it).")
