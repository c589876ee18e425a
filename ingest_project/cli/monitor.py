"""`ingest monitor`: metrics, health and the dashboard, until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from ingest_project.core.console import complain
from ingest_project.core.settings import load_settings


def register(app: typer.Typer) -> None:
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
