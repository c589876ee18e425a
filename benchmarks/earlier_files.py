"""Record tens of thousands of earlier files within seconds: the databases copy one ingested file."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg2.extensions

_COPIES = "generate_series(1 + %(after)s, %(count)s + %(after)s) AS number, lpad(number::text, 8, '0') AS digits"
_NEW_KEY = "'earlier-' || digits || '.csv~' || right(md5(digits), 10)"
_EVENT_TABLES = ("event_logs", "asset_check_executions")
# An event's text names its partition.
_EVENT_TEXTS = ("event", "evaluation_event")


def copy_file(
    warehouse: psycopg2.extensions.connection,
    dagster: psycopg2.extensions.connection,
    key: str,
    count: int,
    *,
    after: int = 0,
) -> None:
    """Copy the queue entry, partition, materialisations and check results of an ingested file, without its rows.

    Args:
        warehouse: database of the work queue.
        dagster: database of the partitions and the event log.
        key: of the file.
        count: how many copies; each has a key of its own that begins with `earlier-`.
        after: how many copies there are already.
    """
    parameters = {"key": key, "count": count, "after": after}
    with warehouse.cursor() as cursor:
        cursor.execute(
            "INSERT INTO files SELECT (jsonb_populate_record(files, jsonb_build_object("
            f"'file_key', {_NEW_KEY}, 'file_name', 'earlier-' || digits || '.csv'))).*"
            f" FROM files, {_COPIES} WHERE file_key = %(key)s",
            parameters,
        )
        cursor.execute("ANALYZE files")
    with dagster.cursor() as cursor:
        cursor.execute(
            "INSERT INTO dynamic_partitions (partitions_def_name, partition)"
            f" SELECT 'files', {_NEW_KEY} FROM {_COPIES}",
            parameters,
        )
        for table in _EVENT_TABLES:
            _copy_events(cursor, table, parameters)


def _copy_events(cursor: psycopg2.extensions.cursor, table: str, parameters: Mapping[str, object]) -> None:
    cursor.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s AND column_name <> 'id'", (table,)
    )
    columns = [str(name) for (name,) in cursor]
    copied = ", ".join(_copied(column) for column in columns)
    cursor.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {copied} FROM {table}, {_COPIES} WHERE partition = %(key)s",
        parameters,
    )
    cursor.execute(f"ANALYZE {table}")


def _copied(column: str) -> str:
    if column == "partition":
        return _NEW_KEY
    return f"replace({column}, %(key)s, {_NEW_KEY})" if column in _EVENT_TEXTS else column
