"""`ingest retention`: let go of what is long done, or say what would be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ingest_project.core import console as output
from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.operations.resources import SystemResources

if TYPE_CHECKING:
    import dagster as dg


def register(app: typer.Typer) -> None:
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
        output.print_json({"dry_run": dry_run, "plan_purge": told})
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
