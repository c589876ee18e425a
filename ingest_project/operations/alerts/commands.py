"""Commands of alerts: `ingest alerts list` and `test`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from ingest_project.core.console import AsJson, add_row, complain, print_json, say, shortened, show, table
from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import load_settings
from ingest_project.core.settings.alerts import CONDITIONS
from ingest_project.core.yaml_models import nearest
from ingest_project.operations import SystemResources
from ingest_project.operations.alerts import amount, require_usable
from ingest_project.operations.alerts.conditions import require_known_names
from ingest_project.operations.alerts.incidents import AlertStores, Incident, recent_incidents
from ingest_project.operations.alerts.watch import send_test

SUMMARY_WIDTH = 100
alerts_app = typer.Typer(help="Incidents, and the channels that report them.", no_args_is_help=True)


@alerts_app.command("list")
def list_incidents(
    *,
    days: Annotated[int, typer.Option(min=0, max=90, help="Include incidents that ended in the last days.")] = 7,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most ended ones.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show open and recent incidents, and channels that do not accept messages."""
    stores = AlertStores(load_settings().settings)
    state, since = stores.read(), datetime.now(UTC) - timedelta(days=days)
    # If the warehouse does not answer, raise its error: the file has only incidents that began during the outage.
    engines = [
        engine for engine in (stores.warehouse, stores.local if stores.has_local else None) if engine is not None
    ]
    ended = [incident for engine in engines for incident in recent_incidents(engine, since, limit)]
    ended = sorted(ended, key=lambda one: one.resolved_at or since, reverse=True)[:limit]
    if as_json:
        print_json({"open": state.incidents, "ended": ended, "failing_channels": state.failing_channels})
        return
    if state.incidents or ended:
        made = table("Since", "Until", "Severity", "Incident", "Value", "Owner", "What")
        for one in [*state.incidents, *ended]:
            what = shortened(one.summary, SUMMARY_WIDTH)
            add_row(made, one.since, one.resolved_at or "open", one.severity, one.name, _value(one), one.owner, what)
        show(made)
    if not state.incidents:
        say("No incident is open.", style="green")
    for channel in state.failing_channels:
        complain(str(channel))


@alerts_app.command("test")
def send_test_messages(
    *,
    owner: Annotated[str | None, typer.Option(help="Send only to addresses of this owner.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a test message through every channel, and show the results.

    Exit code 1 if a channel did not accept it.
    """
    settings = load_settings().settings
    known = settings.alerts.owners
    if owner is not None and owner not in known:
        raise SettingsError(f"INGEST_ALERT_OWNERS has no owner {owner!r}{nearest(owner, known) or '.'}")
    require_usable(settings)
    require_known_names(SystemResources(settings))
    outcomes = send_test(settings, owner)
    if not outcomes:
        raise SettingsError("No alert channel is set. Set INGEST_ALERT_URLS or INGEST_ALERT_WEBHOOK_URL.")
    if as_json:
        results = [{"channel": name, "ok": problem is None, "problem": problem} for name, problem in outcomes.items()]
        print_json({"channels": results})
    else:
        made = table("Channel", "Outcome")
        for name, problem in outcomes.items():
            add_row(made, name, problem or "accepted")
        show(made)
    if any(outcomes.values()):
        raise typer.Exit(1)


def _value(incident: Incident) -> str:
    if incident.value is None:
        return ""
    condition = CONDITIONS.get(incident.condition)
    return amount(incident.value, condition.unit if condition else "")
