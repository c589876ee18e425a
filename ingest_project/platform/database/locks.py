"""One process at a time, over all hosts that share a database."""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from ingest_project.core.errors import TransactionConflictError
from ingest_project.platform.database.engine import database_errors, printable

POLL_SECONDS = 0.05


@contextmanager
def exclusive(engine: sa.Engine, name: str, wait_seconds: float = 60.0) -> Iterator[None]:
    """Hold a named lock; it comes free with the process at the latest.

    A connection of its own holds it on PostgreSQL; with SQLite, where all processes share a disk, a file beside the
    database does. A cut connection frees the lock early: what is done under it must be safe to be done twice.

    Args:
        engine: of the shared database.
        name: what is held.
        wait_seconds: for whoever holds it now.

    Raises:
        TransactionConflictError: it did not come free in time.
        DatabaseUnavailableError: the database does not answer.
    """
    if engine.dialect.name == "postgresql":
        with _advisory_lock(engine, name, wait_seconds):
            yield
    elif (file := engine.url.database) and file != ":memory:":
        with _file_lock(Path(f"{file}.{name}.lock"), wait_seconds):
            yield
    else:
        yield


@contextmanager
def _advisory_lock(engine: sa.Engine, name: str, wait_seconds: float) -> Iterator[None]:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    with database_errors(engine.url):
        connection = engine.connect()
    try:
        with database_errors(engine.url):
            connection.exec_driver_sql(f"SET lock_timeout = '{int(wait_seconds * 1_000)}ms'")
            connection.execute(sa.select(sa.func.pg_advisory_lock(number)))
            connection.commit()
        yield
    finally:
        # Closed for good, not given back to the pool: that frees the lock whatever state the connection is in.
        connection.invalidate()
        connection.close()


@contextmanager
def _file_lock(path: Path, wait_seconds: float) -> Iterator[None]:
    give_up_at = time.monotonic() + wait_seconds
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise TransactionConflictError(
                        printable(f"sqlite:///{path}"), "its lock did not come free"
                    ) from None
                time.sleep(POLL_SECONDS)
        yield
