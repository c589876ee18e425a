"""The warehouse on PostgreSQL: rows go in by binary COPY straight from polars' memory (ADBC).

Everything of one transaction runs on one ADBC connection. Against text COPY through psycopg2 this takes half the
processor time of client and server together: 1.9 s a million rows, not 2.9.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlencode

import adbc_driver_manager
import polars as pl
import polars.selectors as cs
import sqlalchemy as sa
from adbc_driver_manager.dbapi import Connection, Cursor
from adbc_driver_postgresql import StatementOptions, dbapi
from pydantic import SecretStr

from ingest_project.core.errors import TransactionConflictError
from ingest_project.core.secrets import text_of
from ingest_project.file_ingest.tables import quarantined_rows
from ingest_project.file_ingest.warehouse import REPLACEABLE_STATES, VersionRow, WarehouseTransaction, sql
from ingest_project.file_ingest.warehouse.delta_rows import DeltaSession
from ingest_project.file_ingest.warehouse.sql import SENSOR_TABLES, DatasetTables, Frames, Schema, SqlWarehouse, fitted
from ingest_project.platform.database import database_address, database_errors, postgres_options, with_present_secret
from ingest_project.platform.database.sql import require_all

Returned = TypeVar("Returned")

# The owner of a content may change between a failed claim and the query for the owner.
CLAIM_TRIES = 5

LOCK_FILES = """
    SELECT file_key, COALESCE(rows_accepted, 0) > 0 FROM files
    WHERE file_key = ANY($1::text[]) ORDER BY file_key FOR UPDATE"""
# Quote the name: users choose it, and it may be a keyword of SQL.
DELETE_ROWS = 'DELETE FROM "{table}" WHERE file_key = ANY($1::text[])'

# The session's counts only grow while a transaction lasts. The driver returns how many rows it sent.
INSERTED = """
    SELECT sum(pg_stat_get_xact_tuples_inserted(quote_ident(name)::regclass))::bigint FROM unnest($1::text[]) AS name"""
COUNT_ROWS = 'SELECT count(*) FROM "{table}" WHERE file_key = ANY($1::text[])'
# Types to read as text: JSON is text in frames, and Arrow has no type for PostgreSQL's numbers.
READ_AS_TEXT = frozenset({pl.String, pl.Decimal})
READ_BY_INDEX = "SET LOCAL enable_seqscan = off"
# COPY takes no parameters.
NAME_FILE = "SELECT set_config('ingest.file_key', $1, true)"
READ_ROWS = "SELECT {columns} FROM \"{table}\" WHERE file_key = current_setting('ingest.file_key')"

CLAIMED = "json_to_recordset($1::json) AS claim (row_index int, file_key text, sha256 text, meaning text)"
RELEASE_OTHER_CONTENTS = f"""
    DELETE FROM contents USING {CLAIMED}
    WHERE contents.file_key = claim.file_key AND (contents.sha256, contents.meaning) <> (claim.sha256, claim.meaning)
    RETURNING contents.file_key"""
# Sorted: two transactions that claim the same contents must not deadlock.
CLAIM = f"""
    INSERT INTO contents (sha256, meaning, file_key)
    SELECT DISTINCT ON (sha256, meaning) sha256, meaning, file_key FROM {CLAIMED}
    ORDER BY sha256, meaning, row_index ON CONFLICT DO NOTHING"""
# Shared lock: a transaction that releases a content waits until the duplicates being stored of it are visible.
OWNERS = f"""
    SELECT claim.file_key, contents.file_key FROM {CLAIMED}
    JOIN contents USING (sha256, meaning) ORDER BY sha256, meaning FOR SHARE OF contents"""
RELEASE_CONTENTS = "DELETE FROM contents WHERE file_key = ANY($1::text[]) RETURNING file_key"
REOPEN_DUPLICATES = f"""
    UPDATE files SET state = 'pending', attempts = 0, duplicate_of = NULL, stands = FALSE, batch_id = NULL,
        reason = '{sql.WAS_DUPLICATE}' || duplicate_of || '{sql.NO_MORE}', run_id = NULL, finished_at = NULL,
        next_attempt_at = $2::timestamptz, updated_at = $2::timestamptz, reopened_at = $2::timestamptz
    WHERE duplicate_of = ANY($1::text[]) AND state = 'duplicate' RETURNING file_key"""

# JSON within JSON is a text.
_AS_TEXT = "(found.{name} #>> '{{}}')::jsonb"
FINISH = f"""
    UPDATE files SET {", ".join(f"{n} = found.{n}" for n in sql.FINISHED if n not in {"file_key", "rule_counts"})},
        rule_counts = {_AS_TEXT.format(name="rule_counts")}, stands = found.state IN ('ingested', 'duplicate'),
        retry_group = NULL, updated_at = $2::timestamptz, finished_at = $2::timestamptz
    FROM json_populate_recordset(NULL::files, $1::json) AS found WHERE files.file_key = found.file_key"""

RECORD_VERSION = "UPDATE files SET delta_version = $2::text::bigint WHERE file_key = ANY($1::text[])"

PUT_STATISTICS = f"""
    INSERT INTO file_statistics ({", ".join(sql.STATISTICS)})
    SELECT {", ".join(_AS_TEXT.format(name=name) if name == "null_counts" else name for name in sql.STATISTICS)}
    FROM json_populate_recordset(NULL::file_statistics, $1::json) AS found
    ON CONFLICT (file_key) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in sql.RENEWED)}"""

# Lock locations instead of rows: sensors must be able to update a version that a long transaction is storing.
TRY_LOCK_LOCATIONS = """
    SELECT location_key FROM unnest($1::text[]) AS location_key
    WHERE pg_try_advisory_xact_lock(hashtextextended(location_key, 0))"""
LOCK_LOCATION = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))::text"
VERSIONS_AT = """
    SELECT location_key, state, stands, version_at, announced_at, kafka_topic, kafka_partition, kafka_offset, file_key
    FROM files WHERE location_key = ANY($1::text[]) AND state <> 'replaced'"""
REPLACE_VERSIONS = f"""
    UPDATE files SET stands = FALSE, replaced_by = successor.file_key, state = 'replaced',
        reason = successor.file_key || ' is newer and counts instead.' ||
            CASE WHEN files.state = 'ingested' OR files.reason IS NULL THEN ''
                ELSE ' It was ' || files.state || ': ' || files.reason END,
        run_id = $2, batch_id = NULL, reported_at = NULL, updated_at = $3::timestamptz
    FROM json_each_text($1::json) AS successor (old_key, file_key)
    WHERE files.file_key = successor.old_key AND files.state IN {REPLACEABLE_STATES} RETURNING files.file_key"""
CLEAR_STANDS = "UPDATE files SET stands = FALSE WHERE file_key = ANY($1::text[]) AND stands"
PIN_VERSIONS = f"""
    UPDATE files SET {", ".join(f"{n} = found.{n}" for n in sql.VERSIONS if n != "file_key")}, pinned = TRUE
    FROM json_populate_recordset(NULL::files, $1::json) AS found WHERE files.file_key = found.file_key"""


class PostgresWarehouse(SqlWarehouse):
    """See `SqlWarehouse`. Several threads may use it; each transaction has its own connection."""

    def __init__(self, database_url: str | SecretStr, connect_timeout_seconds: float = 10) -> None:
        super().__init__(database_url, connect_timeout_seconds)
        self._url = database_address(text_of(database_url))

        def connect() -> Any:  # noqa: ANN401 - a pool takes any driver's
            return with_present_secret(
                database_url, lambda url: dbapi.connect(_libpq_address(url, connect_timeout_seconds))
            )

        # Every transaction ends with an explicit commit or rollback.
        self._pool = sa.QueuePool(connect, max_overflow=-1, reset_on_return=None)
        sa.event.listen(self._pool, "checkout", _require_alive)
        # The driver warns about a connection that is left open.
        weakref.finalize(self, self._pool.dispose).atexit = False

    @contextmanager
    def transaction(self) -> Iterator[WarehouseTransaction]:
        """Open a database transaction: committed at the end, rolled back when anything is raised.

        Raises:
            DatabaseUnavailableError: also when the answer to the commit was lost; running it again is safe.
            TransactionConflictError: a deadlock or a lock that was not released in time; run it again.
        """
        with (
            self._connected() as connection,
            self._outside() as outside,
            contextlib.closing(PostgresTransaction(connection, str(self._url), self._tables, outside)) as opened,
        ):
            yield opened
            opened.require_stored()
            if outside is not None and (version := outside.commit()) is not None:
                opened.record_version(sorted(outside.file_keys), version)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        with database_errors(self._url, self._engine), contextlib.closing(self._pool.connect()) as connection:
            try:
                yield cast("Connection", connection.driver_connection)
                connection.commit()
            except BaseException:
                try:
                    connection.rollback()
                except adbc_driver_manager.Error:
                    connection.invalidate()
                raise

    def _stored_rows(self, table: sa.Table, schema: Schema, file_key: str) -> Iterator[pl.DataFrame]:
        """See `SqlWarehouse`. Read by binary COPY: the driver holds one batch of 16 MiB."""
        names = [f'"{name}"' + "::text" * (kind.base_type() in READ_AS_TEXT) for name, kind in schema.items()]
        with self._connected() as connection, connection.cursor() as rows:
            with _statement_cursor(connection) as cursor:
                cursor.execute(READ_BY_INDEX)
                cursor.execute(NAME_FILE, (file_key,))
                cursor.fetchall()
            _interruptibly(rows, rows.execute, READ_ROWS.format(columns=", ".join(names), table=table.name))
            for batch in rows.fetch_record_batch():
                yield fitted(pl.DataFrame(batch), schema)

    def close(self) -> None:
        """Close the idle connections. The warehouse opens new ones when it is used again."""
        super().close()
        self._pool.dispose()


class PostgresTransaction(Frames):
    """See `WarehouseTransaction`; frames are stored by COPY."""

    def __init__(
        self,
        connection: Connection,
        address: str,
        tables: DatasetTables = SENSOR_TABLES,
        outside: DeltaSession | None = None,
    ) -> None:
        super().__init__(tables, outside)
        self._address = address
        self._statements = _statement_cursor(connection)
        self._loads = connection.cursor()
        self._replaced: list[str] = []
        self._sent = Counter[str]()
        self._inserted_before = 0

    def close(self) -> None:
        """Close the cursors; the transaction itself ends with its connection's commit or rollback."""
        self._statements.close()
        self._loads.close()

    def record_version(self, file_keys: Sequence[str], version: int) -> None:
        """Record in which version of the table outside the database the rows of files are."""
        self._run(RECORD_VERSION, list(file_keys), str(version))

    def lock_locations(self, location_keys: Sequence[str], *, wait: bool) -> set[str]:
        """Keep other transactions from deciding about the versions of these locations until this one ends."""
        keys = sorted(set(location_keys))
        if not wait:
            return {key for (key,) in self._run(TRY_LOCK_LOCATIONS, keys)}
        for key in keys:
            self._run(LOCK_LOCATION, key)
        return set(keys)

    def versions_at(self, location_keys: Sequence[str]) -> list[VersionRow]:
        """Return the versions of these locations that are not replaced."""
        return [VersionRow(*row) for row in self._run(VERSIONS_AT, sorted(set(location_keys)))]

    def replace_versions(self, successors: Mapping[str, str], run_id: str) -> tuple[str, ...]:
        """Mark versions as replaced, those that are leased only as not current; return the replaced ones."""
        if not successors:
            return ()
        replaced = self._run(REPLACE_VERSIONS, json.dumps(dict(successors)), run_id, _now())
        self._run(CLEAR_STANDS, sorted(successors))
        return tuple(sorted(key for (key,) in replaced))

    def pin_versions(self, versions: pl.DataFrame) -> None:
        """Record which versions were read of files whose events named none."""
        if not versions.is_empty():
            self._run(PIN_VERSIONS, fitted(versions, sql.VERSIONS).write_json())

    def replace_files(self, file_keys: Sequence[str], unstored: Collection[str] = ()) -> None:
        """Delete what is stored of these files, and keep other transactions away from them until this one ends."""
        keys = sorted(set(file_keys))
        if not keys:
            return
        self._replaced += keys
        stored = {key for key, has_rows in self._run(LOCK_FILES, keys) if has_rows}
        if self._tables.metrics is not None:
            delete = DELETE_ROWS.format(table=self._tables.metrics.name)
            stored.update(key for (key,) in self._run(f"{delete} RETURNING file_key", keys))
        self._run(DELETE_ROWS.format(table="quarantined_rows"), keys)
        if self._outside is not None:
            self._outside.replace(set(keys).difference(unstored))
        elif stored and self._tables.rows is not None:
            # Without statistics the planner would read the whole table instead of its index.
            self._run(READ_BY_INDEX)
            self._run(DELETE_ROWS.format(table=self._tables.rows.name), sorted(stored))
            self._run("SET LOCAL enable_seqscan = on")

    def claim_contents(self, claims: pl.DataFrame) -> dict[str, str]:
        """Return for each file the key of the one that represents its content.

        A claim of a content that another transaction is claiming waits for the end of that one.
        """
        if claims.is_empty():
            return {}
        rows = fitted(claims, sql.CLAIMS).with_row_index("row_index").write_json()
        self._reopen_duplicates_of([key for (key,) in self._run(RELEASE_OTHER_CONTENTS, rows)])
        for _ in range(CLAIM_TRIES):
            self._run(CLAIM, rows)
            owners = dict(self._run(OWNERS, rows))
            if len(owners) == claims["file_key"].n_unique():
                return owners
        raise TransactionConflictError(self._address, "a content kept changing its owner")

    def release_contents(self, file_keys: Sequence[str]) -> tuple[str, ...]:
        """Release the contents that these files represent; return their duplicates, which are pending again."""
        if not file_keys:
            return ()
        return self._reopen_duplicates_of([key for (key,) in self._run(RELEASE_CONTENTS, list(file_keys))])

    def finish_files(self, files: pl.DataFrame) -> None:
        """Finish the queue entries of these files, in one statement."""
        if not files.is_empty():
            self._run(FINISH, fitted(files, sql.FINISHED).write_json(), _now())

    def put_statistics(self, statistics: pl.DataFrame, without: Sequence[str]) -> None:
        """Store the statistics of ingested files, in one statement, and delete those of others."""
        if without:
            self._run(DELETE_ROWS.format(table="file_statistics"), list(without))
        if not statistics.is_empty():
            self._run(PUT_STATISTICS, fitted(statistics, sql.STATISTICS).write_json())

    def _reopen_duplicates_of(self, originals: list[str]) -> tuple[str, ...]:
        if not originals:
            return ()
        return tuple(key for (key,) in self._run(REOPEN_DUPLICATES, originals, _now()))

    def require_stored(self) -> None:
        """Require that the tables have every row that they were sent.

        Raises:
            TableUnusableError: a trigger has dropped rows.
        """
        if self._sent and self._inserted() - self._inserted_before != self._sent.total():
            # Statistics may be off, and have the rows of a partition with the partition.
            for name, sent in self._sent.items():
                ((stored,),) = self._run(COUNT_ROWS.format(table=name), self._replaced)
                require_all(name, sent, stored)

    def _inserted(self) -> int:
        ((rows,),) = self._run(INSERTED, [table.name for table in (quarantined_rows, *self._tables.stored)])
        return int(rows)

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401 - text or a list of text
        _interruptibly(self._statements, self._statements.execute, statement, values or None)
        return _interruptibly(self._statements, self._statements.fetchall) if self._statements.description else []

    def _insert(self, table: sa.Table, frame: pl.DataFrame) -> None:
        if not frame.is_empty():
            if not self._sent:
                self._inserted_before = self._inserted()
            ingest = partial(self._loads.adbc_ingest, table.name, _as_jsonb(frame, table), mode="append")
            _interruptibly(self._loads, ingest)
            self._sent[table.name] += frame.height


def _as_jsonb(frame: pl.DataFrame, table: sa.Table) -> pl.DataFrame:
    """Return JSON texts as PostgreSQL's binary COPY takes them: after the version of the format, which is 1."""
    names = [name for name in frame.select(cs.string()).columns if isinstance(table.c[name].type, sa.JSON)]
    return (
        frame.with_columns((pl.lit("\x01") + pl.col(name)).cast(pl.Binary).alias(name) for name in names)
        if names
        else frame
    )


def _statement_cursor(connection: Connection) -> Cursor:
    # The driver fetches by COPY (statement) TO STDOUT by default, which works for queries only.
    return connection.cursor(adbc_stmt_kwargs={StatementOptions.USE_COPY.value: "false"})


def _libpq_address(database_url: str, connect_timeout_seconds: float) -> str:
    url = database_address(database_url)
    options = {**url.query, **postgres_options(url, connect_timeout_seconds)}
    address = url.set(drivername="postgresql", query={}).render_as_string(hide_password=False)
    # libpq takes %20 for a space, and + for a plus.
    return f"{address}?{urlencode(options, doseq=True, quote_via=quote)}"


def _interruptibly(cursor: Cursor, call: Callable[..., Returned], *arguments: object) -> Returned:
    """Make a call of the driver in another thread; an interrupt cancels its statement, and is raised here.

    In the main thread the driver replaces Python's handler of SIGINT: it cancels the statement, and the run would go
    on, with its next file, or with the next statement where the cancellation came too late.
    """
    if threading.current_thread() is not threading.main_thread():
        return call(*arguments)
    called = _other_thread(os.getpid()).submit(call, *arguments)
    try:
        return called.result()
    except BaseException:
        if not called.done():
            with contextlib.suppress(adbc_driver_manager.Error):
                cursor.adbc_cancel()
            wait([called])
        raise


@cache
def _other_thread(_process_id: int) -> ThreadPoolExecutor:
    """Return the thread of this process for the statements of its main thread; a fork does not inherit it."""
    return ThreadPoolExecutor(1)


def _require_alive(connection: Connection, *_: object) -> None:
    """Make the pool replace a connection that was closed while idle."""
    try:
        with _statement_cursor(connection) as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchall()
    except adbc_driver_manager.Error as error:
        raise sa.exc.DisconnectionError(str(error)) from error


def _now() -> str:
    return datetime.now(UTC).isoformat()
