"""`ingest psql`: PostgreSQL's own shell on the databases that `ingest dev` runs, or on those of the settings."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from ingest_project.errors import PermanentError, SettingsError
from ingest_project.settings import load_settings

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

# What libpq takes from the environment, where nobody sees it, by its place in the address.
VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "username": "PGUSER",
    "password": "PGPASSWORD",
    "database": "PGDATABASE",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("psql", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(psql)


def psql(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[PSQL ARGUMENTS]...", help="E.g. -c 'SELECT 1'; see psql --help.")
    ] = None,
    *,
    dagster: Annotated[
        bool, typer.Option("--dagster", help="Dagster's own database instead of the warehouse.")
    ] = False,
) -> None:
    """Open psql on the warehouse; what follows is handed to psql. The password is not shown."""
    settings = load_settings().settings
    url = settings.dagster.postgres_url if dagster else settings.warehouse.database_url
    environ = os.environ | connection(url.get_secret_value(), "DAGSTER_POSTGRES_URL" if dagster else "DATABASE_URL")
    program = find_psql()
    os.execve(program, [program, *(arguments or [])], environ)  # noqa: S606 - the person's own shell on the database


def connection(database_url: str, setting: str) -> dict[str, str]:
    """Return the variables with which libpq reaches a database.

    Raises:
        SettingsError: no address is set, or it is none of PostgreSQL.
    """
    from ingest_project.database.engine import database_address  # noqa: PLC0415 - `ingest` starts without SQLAlchemy

    if not database_url:
        raise SettingsError(f"{setting} is not set. Start `ingest dev`, or set it.")
    url = database_address(database_url)
    if url.get_backend_name() != "postgresql":
        raise SettingsError(f"{setting} is an address of {url.get_backend_name()}, and psql is for PostgreSQL alone.")
    return _variables(url)


def _variables(url: URL) -> dict[str, str]:
    given = {VARIABLES[name]: str(value) for name in VARIABLES if (value := getattr(url, name)) is not None}
    options = {f"PG{name.upper()}": value for name, value in url.query.items() if isinstance(value, str)}
    return given | options


def find_psql() -> str:
    """Return the path of psql: the one on PATH, or that of the embedded PostgreSQL.

    Raises:
        PermanentError: there is none.
    """
    from ingest_project.cli.stack.postgres import binaries  # noqa: PLC0415 - with the engine

    if found := shutil.which("psql"):
        return found
    shipped = binaries() / "psql"
    if shipped.exists():
        return str(shipped)
    raise PermanentError("psql is neither on PATH nor part of the embedded PostgreSQL. Install PostgreSQL's client.")
