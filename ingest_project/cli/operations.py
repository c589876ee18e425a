"""Commands of operators: `ingest trace`, `retention` and `monitor`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ingest_project.core.console import (
    AsJson,
    add_row,
    complain,
    print_json,
    show,
    table,
)
from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.operations.resources import CAPABILITIES, SystemResources

if TYPE_CHECKING:
    import dagster as dg

NOT_FOUND = 1


def register_trace(app: typer.Typer) -> None:
    """Add the command."""
    app.command("trace")(show_trace)


def show_trace(
    trace_id: Annotated[str, typer.Argument(help="Trace id, as messages, logs and tables carry it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show everything on record of one trace, in time order."""
    services = SystemResources(load_settings().settings)
    moments = sorted(moment for capability in CAPABILITIES for moment in capability.trace(services, trace_id))
    if as_json:
        print_json({"trace_id": trace_id, "moments": moments})
    elif moments:
        shown = table("Time", "What", "Happened", "Detail")
        for moment in moments:
            add_row(shown, moment.at, moment.subject, moment.what, moment.detail)
        show(shown)
    if not moments:
        complain(f"Nothing is on record of the trace {trace_id}.")
        raise typer.Exit(NOT_FOUND)


def register_retention(app: typer.Typer) -> None:
    """Add the command."""
    app.command("retention")(purge)


def purge(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Purge expired partitions, runs, landed bytes and message ids, as a job does every night."""
    from ingest_project.operations.retention import plan_purge  # noqa: PLC0415 - imports dagster: one second

    settings = load_settings().settings
    with _instance(settings) as instance:
        steps = plan_purge(SystemResources(settings), instance, datetime.now(UTC))
        if not dry_run:
            for step in steps:
                step.remove()
    if as_json:
        removals = [{"what": one.what, "number": one.number, "examples": list(one.examples)} for one in steps]
        print_json({"dry_run": dry_run, "removals": removals})
        return
    number = "Would be removed" if dry_run else "Removed"
    shown = table(number, "What", "For example", numbers=[number])
    for step in steps:
        add_row(shown, step.number, step.what, ", ".join(step.examples[:3]))
    show(shown)


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

    Beyond this machine it requires INGEST_MONITOR_TOKEN, and does not start without one.
    """
    from ingest_project.core.logging import configure_logging  # noqa: PLC0415 - with the next
    from ingest_project.operations.dashboard.app import serve  # noqa: PLC0415 - no other command serves

    settings = load_settings().settings
    configure_logging(settings.logging)
    chosen_port = settings.monitor.port if port is None else port
    serve(
        settings,
        host or settings.monitor.host,
        chosen_port,
        lambda address: complain(f"The monitor is at {address} (Ctrl-C ends it)."),
        insecure=insecure,
    )


@contextmanager
def _instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Open Dagster's records: those of DAGSTER_HOME, or of `ingest dev` on this machine."""
    from dagster import DagsterInstance  # noqa: PLC0415 - one second to import

    home = settings.dagster.home or settings.state_dir.absolute() / "dagster_home"
    if not (home / "dagster.yaml").is_file():
        raise SettingsError(f"There is no dagster.yaml in {home}. Start it (ingest dev) or set DAGSTER_HOME.")
    os.environ.setdefault("DAGSTER_POSTGRES_URL", settings.dagster.postgres_url.get_secret_value())
    with DagsterInstance.from_config(str(home)) as instance:
        yield instance
