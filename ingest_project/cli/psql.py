"""`ingest psql`: PostgreSQL's own shell on the databases that `ingest dev` runs, or on those of the settings."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import Annotated

import typer

from ingest_project.core.errors import PermanentError, SettingsError
from ingest_project.core.settings import load_settings


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
    address, password = connection(url.get_secret_value(), "DAGSTER_POSTGRES_URL" if dagster else "DATABASE_URL")
    program = find_psql()
    # Whoever lists processes sees the address; the environment is for this user alone.
    secret = {"PGPASSWORD": password} if password else {}
    os.execve(program, [program, f"--dbname={address}", *(arguments or [])], os.environ | secret)  # noqa: S606


def connection(database_url: str, setting: str) -> tuple[str, str]:
    """Return the address as libpq takes it, without the password, and the password.

    Raises:
        SettingsError: no address is set, or it is none of PostgreSQL.
    """
    from ingest_project.platform.database.engine import database_address  # noqa: PLC0415 - `ingest` starts without SQLAlchemy

    if not database_url:
        raise SettingsError(f"{setting} is not set. Start `ingest dev`, or set it.")
    url = database_address(database_url)
    if url.get_backend_name() != "postgresql":
        raise SettingsError(f"{setting} is an address of {url.get_backend_name()}, and psql is for PostgreSQL alone.")
    in_query = url.query.get("password", "")
    bare = url.set(drivername="postgresql")._replace(password=None).difference_update_query(["password"])
    place, mark, query = bare.render_as_string(hide_password=False).partition("?")
    # libpq knows no other way of writing a space.
    return place + mark + query.replace("+", "%20"), str(url.password or in_query)


def find_psql() -> str:
    """Return the path of psql: that of the embedded PostgreSQL, or the one on PATH.

    Raises:
        PermanentError: there is none.
    """
    from ingest_project.devstack.postgres import binaries  # noqa: PLC0415 - with the engine

    with suppress(PermanentError):
        shipped = binaries() / "psql"
        if shipped.exists():
            return str(shipped)
    if found := shutil.which("psql"):
        return found
    raise PermanentError("psql is neither part of the embedded PostgreSQL nor on PATH. Install PostgreSQL's client.")
