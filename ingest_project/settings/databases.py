"""Whether two addresses lead to the same tables of PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from ingest_project.errors import SettingsError

if TYPE_CHECKING:
    from ingest_project.settings.tree import Settings

DEFAULT_PORT = 5432
THIS_MACHINE = {"", "localhost", "127.0.0.1", "::1"}


def require_two_databases(settings: Settings) -> None:
    """Warehouse and Dagster each keep their version in a table of the same name, and take the other's for their own.

    Raises:
        SettingsError: both addresses name one database, and no schema of its own for one of them.
    """
    urls = (settings.warehouse.database_url, settings.dagster.postgres_url)
    warehouse, dagster = (_place(url.get_secret_value()) for url in urls)
    if warehouse is not None and warehouse == dagster:
        raise SettingsError(
            "DATABASE_URL and DAGSTER_POSTGRES_URL name the same database. Give Dagster one of its own."
        )


def _place(database_url: str) -> tuple[str, int, str, str] | None:
    """Host, port, database and session options, which may name a schema; None where it is not PostgreSQL."""
    try:
        url = urlsplit(database_url)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        port = int(query.get("port") or url.port or DEFAULT_PORT)
    except ValueError:
        return None
    if url.scheme.partition("+")[0] not in {"postgres", "postgresql"}:
        return None
    host = query.get("host") or url.hostname or ""
    database = query.get("dbname") or unquote(url.path.lstrip("/")) or unquote(url.username or "")
    return (
        "localhost" if host in THIS_MACHINE else host.lower(),
        port,
        database,
        query.get("options", ""),
    )
