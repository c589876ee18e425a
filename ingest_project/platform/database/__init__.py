"""One small engine per process, transactions that map driver errors to ours, and locks that hold across hosts.

Every read and write of the work queues and the generic warehouse goes through `reading` and `writing`: one transaction
each. A database that does not answer raises `DatabaseUnavailableError`, whose address shows no password.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import filelock
import sqlalchemy as sa
import stamina
from pydantic import SecretStr
from sqlalchemy.engine import URL, make_url

import ingest_project.core.logging  # noqa: F401 - keeps stamina's retries off stdout
from ingest_project.core.errors import DatabaseUnavailableError, SettingsError, TransactionConflictError
from ingest_project.core.local_files import make_private_folder
from ingest_project.core.secrets import SecretReference, renewed, text_of
from ingest_project.platform.errors import first_line_of, is_refused_login, map_error, sqlstate

# SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3, which is not installed.
POSTGRES_DRIVER = "postgresql+psycopg2"
# A lock that is held this long belongs to a stuck writer: a retryable error is better than a run that hangs.
LOCK_TIMEOUT_SECONDS = 60
# Whatever a role or a database has as its own: fewer digits than a double has would be other readings.
SESSION = "-c timezone=UTC -c extra_float_digits=1 -c lock_timeout="
LOCK_HOLDERS = sa.text("""
    SELECT string_agg(format('process %s of %s (%s) has locked %s for %s s', pid, usename, program, tables, age), '; ')
    FROM (SELECT a.pid, a.usename, a.application_name AS program, string_agg(DISTINCT c.relname, ', ') AS tables,
            round(extract(epoch FROM now() - a.xact_start)) AS age
        FROM pg_locks l JOIN pg_stat_activity a USING (pid) JOIN pg_class c ON c.oid = l.relation
        WHERE l.granted AND a.datname = current_database() AND a.pid <> pg_backend_pid() AND c.relkind IN ('r', 'p')
            AND c.relnamespace <> 'pg_catalog'::regnamespace AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
        GROUP BY a.pid, a.usename, a.application_name, a.xact_start ORDER BY a.xact_start LIMIT 3) AS holders""")
# A right is missing (also of a table's owner), or the schema.
MISSING_RIGHTS = ("42501", "3F000")
SQLITE_BUSY_TIMEOUT_SECONDS = 30
BEGIN_OPTION = "ingest_sqlite_begin"

Connected = TypeVar("Connected")


def open_engine(
    database_url: str | SecretStr, connect_timeout_seconds: float = 10, lock_timeout_seconds: int = LOCK_TIMEOUT_SECONDS
) -> sa.Engine:
    """Create an engine for the work queues and the generic warehouse, without connecting.

    Args:
        database_url: `postgresql://`, which means psycopg2, or `sqlite:////absolute/path` for a file. Each new
            connection reads a reference to a secret again.
        connect_timeout_seconds: timeout of one connection attempt.
        lock_timeout_seconds: longest wait for a lock of PostgreSQL.

    Raises:
        SettingsError: the URL is empty or malformed.
    """
    url = database_address(text_of(database_url))
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    arguments = postgres_options(url, connect_timeout_seconds, lock_timeout_seconds)
    # Otherwise SQLAlchemy queries each new connection for a type that no table here has.
    options = {"use_native_hstore": False} if url.drivername == POSTGRES_DRIVER else {}
    engine = sa.create_engine(
        url, pool_size=2, max_overflow=4, pool_pre_ping=True, pool_recycle=1800, connect_args=arguments, **options
    )
    follow_secret(engine, database_url, arguments)
    return engine


def follow_secret(engine: sa.Engine, database_url: str | SecretStr, arguments: Mapping[str, Any]) -> None:
    """Make each new connection read a referenced URL again; do nothing for a URL that is not a reference.

    Args:
        engine: engine of a PostgreSQL database.
        database_url: URL of that database.
        arguments: further arguments of each connection.
    """
    if not isinstance(database_url, SecretReference):
        return

    def connect(dialect: sa.Dialect, *_: object) -> Any:  # noqa: ANN401 - the driver's connection
        def connected(url: str) -> Any:  # noqa: ANN401 - see above
            given, options = dialect.create_connect_args(database_address(url))
            return dialect.connect(*given, **{**options, **arguments})

        return with_present_secret(database_url, connected)

    sa.event.listen(engine, "do_connect", connect)


def with_present_secret(database_url: str | SecretStr, connect: Callable[[str], Connected]) -> Connected:
    """Connect with the current URL; if the login is refused and the secret has changed, retry once with the new one."""
    used = text_of(database_url)
    try:
        return connect(used)
    except Exception as error:
        if not is_refused_login(error) or not renewed(database_url, used):
            raise
    return connect(text_of(database_url))


def postgres_options(
    url: URL, connect_timeout_seconds: float, lock_timeout_seconds: int = LOCK_TIMEOUT_SECONDS
) -> dict[str, Any]:
    """Return the connection options, as libpq names them, of every PostgreSQL session of this project.

    Those that the address names are left to it; settings of the session that it has come after ours, and count.
    """
    ours: dict[str, Any] = {
        # libpq counts whole seconds and treats 0 as no limit.
        "connect_timeout": max(2, round(connect_timeout_seconds)),
        "application_name": "ingest_project",
        # Detect a peer that vanished silently within a minute instead of two hours.
        "keepalives_idle": 20,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
    settings = " ".join((f"{SESSION}{lock_timeout_seconds}s", *url.normalized_query.get("options", ())))
    given = {name: value for name, value in ours.items() if name not in url.query}
    # Rows are sent as UTF-8: under another encoding of the role or the database, other letters would be stored.
    return given | {"options": settings, "client_encoding": "utf8"}


def database_address(database_url: str) -> URL:
    """Return the URL with the driver this project ships.

    Raises:
        SettingsError: the URL is empty or cannot be understood.
    """
    if not database_url:
        raise SettingsError("No database is configured. Start one (ingest dev) or set DATABASE_URL.")
    url = _parsed(database_url)
    if url is None:
        # The text may contain a password: the error does not repeat it.
        example = "postgresql://user:password@host:5432/database, with %40 for an @ in the password"
        raise SettingsError(f"DATABASE_URL is not a URL. Example: {example}.")
    return url.set(drivername=POSTGRES_DRIVER) if url.drivername in {"postgres", "postgresql"} else url


def _parsed(database_url: str | URL) -> URL | None:
    """Return the parts of an address; None without a meaning, or if a part of the password would be the host."""
    with suppress(sa.exc.ArgumentError, ValueError):
        url = make_url(database_url)
        return None if "@" in (url.host or "") else url
    return None


def redacted(database_url: str | URL) -> str:
    """Return the address without the password, for messages."""
    url = _parsed(database_url)
    if url is None:
        return "(not a URL)"
    shown = url.set(drivername=url.get_backend_name(), query={})
    return shown.render_as_string(hide_password=True)


@contextmanager
def database_errors(database_url: str | URL, engine: sa.Engine | None = None) -> Iterator[None]:
    """Map a driver's failure to an error of this project; with an engine, a conflict names who holds locks.

    Raises:
        DatabaseUnavailableError: no connection, a broken one, or the server shuts down.
        TransactionConflictError: a deadlock, a lock that was not released in time, or a busy SQLite file.
    """
    try:
        yield
    except Exception as error:
        failure = map_error(error, redacted(database_url))
        if failure is None:
            raise
        if engine is not None and isinstance(failure, TransactionConflictError) and (holders := _lock_holders(engine)):
            failure = TransactionConflictError(failure.address, f"{first_line_of(error)}: {holders}")
        raise failure from error


def _lock_holders(engine: sa.Engine) -> str | None:
    """Return the sessions that have written to or locked tables, longest transaction first; None if there are none."""
    if engine.dialect.name == "postgresql":
        with suppress(sa.exc.SQLAlchemyError), engine.connect() as connection:
            holders: str | None = connection.scalar(LOCK_HOLDERS)
            return holders
    return None


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a read-only connection.

    Raises:
        DatabaseUnavailableError: see `database_errors`.
    """
    with database_errors(engine.url, engine), engine.connect() as connection:
        yield connection


def fetch(
    engine: sa.Engine, query: sa.Executable, parameters: Mapping[str, Any] | None = None
) -> sa.Result[*tuple[Any, ...]]:
    """Run one query on a new connection and return the result with all its rows read.

    Raises:
        DatabaseUnavailableError: see `database_errors`.
    """
    with reading(engine) as connection:
        return connection.execute(query, parameters).freeze()()


@contextmanager
def snapshot(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a read-only connection whose queries all see the same snapshot.

    Raises:
        DatabaseUnavailableError: see `database_errors`.
    """
    with reading(engine) as connection:
        # A SQLite transaction always sees the snapshot of its first query.
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a write transaction: committed at the end, rolled back when anything is raised.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: see `database_errors`.
        SettingsError: the user of the database lacks a right, or the schema does not exist.
    """
    with database_errors(engine.url, engine), engine.connect() as connection:
        # A SQLite transaction that starts with a read does not wait for another writer: its first write would fail.
        writer = connection.execution_options(**{BEGIN_OPTION: "IMMEDIATE"})
        try:
            with writer.begin():
                yield writer
        except sa.exc.ProgrammingError as error:
            if sqlstate(error) not in MISSING_RIGHTS:
                raise
            raise SettingsError(
                f"The tables in {redacted(engine.url)} cannot be changed: {first_line_of(error)}. Let the user of"
                " DATABASE_URL own them and create in their schema, which search_path must name."
            ) from error


@contextmanager
def exclusive(engine: sa.Engine, name: str, wait_seconds: float = 60.0, *, once: bool = False) -> Iterator[None]:
    """Hold a named lock across all hosts; the end of the process releases it at the latest.

    On PostgreSQL a dedicated connection holds an advisory lock; on SQLite, where all processes share a disk, it is a
    file next to the database. A broken connection releases the lock early: work under it must be idempotent.

    Args:
        engine: engine of the shared database.
        name: name of the lock.
        wait_seconds: longest wait for the current holder.
        once: the name is used only once, so remove the lock's file.

    Raises:
        TransactionConflictError: the holder did not release the lock in time.
        DatabaseUnavailableError: the database does not answer.
    """
    if engine.dialect.name == "postgresql":
        with _advisory_lock(engine, name, wait_seconds):
            yield
    elif (file := engine.url.database) and file != ":memory:":
        lock = filelock.FileLock(f"{file}.{name}.lock", timeout=wait_seconds)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise TransactionConflictError(redacted(engine.url), f"the lock {name} was not released") from None
        try:
            yield
        finally:
            if once:
                # Remove it while the lock is held: a waiting process then notices that the file has been replaced.
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
    else:
        yield


@contextmanager
def _advisory_lock(engine: sa.Engine, name: str, wait_seconds: float) -> Iterator[None]:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    with database_errors(engine.url):
        connection = engine.connect()
        # The lock lasts as long as the work: it must not occupy one of the pool's few connections.
        connection.detach()
    try:
        with database_errors(engine.url):
            connection.exec_driver_sql(f"SET lock_timeout = '{int(wait_seconds * 1_000)}ms'")
            # The server detects a holder that vanished silently within two minutes instead of two hours.
            connection.exec_driver_sql("SET tcp_keepalives_idle = 20; SET tcp_keepalives_interval = 10")
            connection.execute(sa.select(sa.func.pg_advisory_lock(number)))
            connection.commit()
        yield
    finally:
        # This closes the detached connection for real, which releases the lock in any state of the connection.
        connection.close()


def _sqlite_engine(url: URL) -> sa.Engine:
    if url.database and url.database != ":memory:":
        with folder_of(url):
            make_private_folder(Path(url.database).absolute().parent)
    engine = sa.create_engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def folder_of(url: URL) -> Iterator[None]:
    """Map an error while creating a database file's folder to an error of this project.

    Raises:
        DatabaseUnavailableError: the folder cannot be created.
    """
    try:
        yield
    except OSError as error:
        remedy = "Check that this user may make the folder of the file, or correct DATABASE_URL."
        cause = f"{error.strerror}: {error.filename}"
        raise DatabaseUnavailableError(redacted(url), cause, remedy, "cannot be opened") from error


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver begins transactions late and never for DDL: a crash would leave a partial schema.
    connection.isolation_level = None
    _write_ahead(connection)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _is_locked(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY


@stamina.retry(on=_is_locked, attempts=None, timeout=SQLITE_BUSY_TIMEOUT_SECONDS, wait_initial=0.02, wait_max=0.1)
def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging, so that readers and a writer work concurrently; the file keeps the mode.

    The switch needs exclusive access to the file and, unlike any other statement, does not wait for it. A file system
    without support leaves the mode unchanged: slower, but correct.
    """
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        connection.execute("PRAGMA journal_mode=WAL")


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get(BEGIN_OPTION, 'DEFERRED')}")


# The newest revision in migrations/versions. With this constant, checking a current database costs one small query
# instead of importing Alembic; a test compares the two.
HEAD = "0009"
REVISIONS = frozenset({"0003", "0004", "0005", "0006", "0007", "0008", HEAD})
# Key of the advisory lock: any number that no other program uses in the same database.
ADVISORY_LOCK = 0x1263_57_01


def migrate(engine: sa.Engine) -> None:
    """Upgrade to HEAD in one transaction; idempotent.

    Raises:
        DatabaseUnavailableError: the database does not answer.
        SettingsError: the tables have a revision that this version does not know.
    """
    version = schema_version(engine)
    if version == HEAD:
        return
    if version is not None and version not in REVISIONS:
        raise SettingsError(
            f"The tables in {engine.url.render_as_string(hide_password=True)} have revision {version}: not one of this"
            f" version, which knows {HEAD}. Use a new database, or drop all tables:"
            ' ingest psql -c "DROP SCHEMA public CASCADE; CREATE SCHEMA public".'
        )
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            # Wait for another process's migration without limit: lock_timeout is for ordinary writers.
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        _upgrade(connection)


def schema_version(engine: sa.Engine) -> str | None:
    """Return the database's revision; None if it was never migrated.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    with reading(engine) as connection:
        try:
            version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        except (sa.exc.ProgrammingError, sa.exc.OperationalError):
            # The table does not exist; databases report that differently. Any other error recurs in the next statement.
            connection.rollback()
            connection.exec_driver_sql("SELECT 1")
            return None
    return None if version is None else str(version)


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command  # only needed when there is something to upgrade
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "ingest_project.platform.database:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
