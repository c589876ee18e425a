"""`ingest dev`: run the whole system on this machine until Ctrl-C."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ingest_project.core.settings import load_settings
from ingest_project.core.terminal_text import printable
from ingest_project.devstack.supervisor import Report, Stack, StepState, running_stack

if TYPE_CHECKING:
    from rich.console import Console


def printed(console: Console) -> Report:
    """Create a report for `running_stack` that prints one line per event, with the seconds each step took."""
    started: dict[str, float] = {}

    def report(step: str, state: StepState) -> None:
        if state in (StepState.STARTING, StepState.STOPPING):
            started[step] = time.monotonic()
        seconds = time.monotonic() - started.get(step, time.monotonic())
        console.print(_line(escape(printable(step)), state, seconds), highlight=False)

    return report


def _line(step: str, state: StepState, seconds: float) -> str:
    match state:
        case StepState.STARTING:
            return f"[dim]Starting {step} …[/]"
        case StepState.READY:
            return f"[green]✓[/] {step} is ready [dim]({seconds:.1f} s)[/]"
        case StepState.EXTERNAL:
            return f"[green]✓[/] {step}: as set"
        case StepState.NOTE:
            return f"[yellow]{step}.[/]"
        case StepState.STOPPING:
            return f"[dim]Stopping {step} …[/]"
        case StepState.STOPPED:
            return f"[green]✓[/] {step} has stopped [dim]({seconds:.1f} s)[/]"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dev")(dev)


def dev(
    *,
    services_only: Annotated[
        bool, typer.Option("--services-only", help="Broker and database only; run `dagster dev` yourself.")
    ] = False,
) -> None:
    """Start broker, database, Dagster and the monitor on this machine, and stay until Ctrl-C.

    A service that the settings name (KAFKA_BOOTSTRAP_SERVERS, DATABASE_URL, DAGSTER_POSTGRES_URL) is used, not started.
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
