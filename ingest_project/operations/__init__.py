"""Operations: status, metrics, readiness, alerts, retention, dashboard.

They use the one list of all capabilities, and one object per process with all their resources. Finished work is rolled
up into running totals, which outlive the counted rows. Their size does not depend on throughput: one row per series,
and one per series and minute for the time that the dashboard covers.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.attachments import AttachmentResources
from ingest_project.attachments.capability import Attachments
from ingest_project.file_ingest.capability import FileIngest, declaration_stamps
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.platform.capability import HISTOGRAMS, Capability, CountedTable
from ingest_project.platform.database import fetch, writing
from ingest_project.platform.database.sql import Double, Json, UtcTime, insert_into, metadata
from ingest_project.polling.capability import Polling
from ingest_project.polling.discovery import PollingResources
from ingest_project.streams.capability import Streams
from ingest_project.streams.resources import StreamResources

# All-time totals, which include rows that retention has purged.
metric_totals = sa.Table(
    "metric_totals",
    metadata,
    Col("name", sa.Text, primary_key=True),
    # Values of the labels, as a JSON list in the order of their names.
    Col("labels", sa.Text, primary_key=True),
    Col("value", Double, nullable=False),
)
metric_minutes = sa.Table(
    "metric_minutes",
    metadata,
    # Whole minutes since 1970, UTC: when the counted work ended, not when it was counted.
    Col("minute", sa.BigInteger, primary_key=True, autoincrement=False),
    Col("name", sa.Text, primary_key=True),
    Col("labels", sa.Text, primary_key=True),
    Col("value", Double, nullable=False),
)
# Time up to which each source has been counted.
metric_progress = sa.Table(
    "metric_progress", metadata, Col("source", sa.Text, primary_key=True), Col("counted_until", UtcTime, nullable=False)
)
# Capabilities that an operator has paused.
paused_capabilities = sa.Table(
    "paused_capabilities",
    metadata,
    Col("capability", sa.Text, primary_key=True),
    Col("who", sa.Text, nullable=False),
    Col("reason", sa.Text, nullable=False),
    Col("paused_at", UtcTime, nullable=False),
    # Sensors that the pause stopped, and resuming starts again: one that a person had stopped before stays stopped.
    Col("sensors", Json, nullable=False),
)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
SETTLE = timedelta(seconds=5)
# A transaction stamps the end of work just before it commits: one that is older has not stamped anything yet.
LONGEST_STAMPED = timedelta(seconds=60)
ENDS_AT_A_TIME = 20_000
ROWS_A_STATEMENT = 1_000
KEPT_MINUTES = 8 * 24 * 60
# Maximum number of series of one counter: senders choose some label values, and must not create unlimited series.
MOST_SERIES = 60
OTHER = "other"
# Series without this limit: their labels are names of pipelines and buckets, which no sender chooses.
BOUNDED = frozenset(metric.bucket for metric in HISTOGRAMS)
Series = tuple[str, tuple[str, ...]]
"""The name of a counter and the values of its labels."""


class SystemResources(PollingResources, FileIngestResources, AttachmentResources, StreamResources):
    """The resources of all capabilities, which share one engine and one set of Kafka clients."""

    def reload_declarations(self) -> None:
        """Discard the cached datasets and streams if one of their files has changed since the last call."""
        stamps = declaration_stamps(self.settings)
        if stamps != self.__dict__.setdefault("_declaration_stamps", stamps):
            self.__dict__["_declaration_stamps"] = stamps
            for cached in ("datasets", "declared_streams", "_delta_streams"):
                self.__dict__.pop(cached, None)


# In the order of the data flow: work moves only to a later capability.
CAPABILITIES: tuple[Capability[SystemResources], ...] = (Polling(), FileIngest(), Attachments(), Streams())


class MinuteValue(NamedTuple):
    """The amount added to one series in one step of some minutes.

    Args:
        step: number of the step since 1970.
    """

    step: int
    name: str
    labels: tuple[str, ...]
    value: float


class RunningTotals:
    """Read and write the tables of the counters. Every method is one transaction, or several idempotent ones.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._sources = tuple(source for capability in CAPABILITIES for source in capability.counted)

    def count(self, now: datetime) -> int:
        """Count a bounded number of entries of each kind that have ended since the last call; return their number."""
        with writing(self._engine) as connection:
            # On SQLite, only one transaction can write at a time anyway.
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("LOCK TABLE metric_progress IN SHARE ROW EXCLUSIVE MODE"))
            until = _settled(connection, now)
            progress = {row.source: row.counted_until for row in connection.execute(sa.select(metric_progress))}
            oldest = int(now.timestamp() // 60) - KEPT_MINUTES
            counted = sum(_count_source(connection, source, progress, until, oldest) for source in self._sources)
            counted += _count_kept_totals(connection, now)
            if counted:
                connection.execute(sa.delete(metric_minutes).where(metric_minutes.c.minute < oldest))
        return counted

    def totals(self) -> dict[Series, float]:
        """Return the all-time total of every series."""
        rows = fetch(self._engine, sa.select(metric_totals)).all()
        return {(name, tuple(json.loads(labels))): value for name, labels, value in rows}

    def history(self, since: datetime, step_minutes: int, names: Sequence[str]) -> tuple[MinuteValue, ...]:
        """Return the amounts added to these counters per step, unordered.

        Args:
            since: time in the first step to return.
            step_minutes: length of a step.
            names: names of the counters.
        """
        step = (metric_minutes.c.minute - metric_minutes.c.minute % step_minutes) / sa.literal_column(str(step_minutes))
        whole = sa.cast(step, sa.BigInteger).label("step")
        first = int(since.timestamp() // 60) // step_minutes * step_minutes
        query = (
            sa.select(whole, metric_minutes.c.name, metric_minutes.c.labels, sa.func.sum(metric_minutes.c.value))
            .where(metric_minutes.c.minute >= first, metric_minutes.c.name.in_(names))
            .group_by(whole, metric_minutes.c.name, metric_minutes.c.labels)
        )
        rows = fetch(self._engine, query).all()
        return tuple(MinuteValue(int(at), name, tuple(json.loads(labels)), value) for at, name, labels, value in rows)


def _settled(connection: sa.Connection, now: datetime) -> datetime:
    """Return the time before which no further ends can be committed."""
    settled = now - SETTLE
    if connection.dialect.name != "postgresql":
        return settled
    query = (
        "SELECT min(xact_start) FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
    )
    oldest: datetime | None = connection.exec_driver_sql(query).scalar()
    if oldest is None:
        return settled
    return max(min(settled, oldest - SETTLE), now - LONGEST_STAMPED)


def _count_source(
    connection: sa.Connection, source: CountedTable, progress: Mapping[str, datetime], until: datetime, oldest: int
) -> int:
    after = progress.get(source.name, BEGINNING)
    if until <= after:
        return 0
    rows, until = _ends_between(connection, source, after, until)
    if rows:
        _add(connection, source, rows, oldest)
    if rows or until - after > SETTLE:
        moved = {"source": source.name, "counted_until": until}
        statement = insert_into(connection, metric_progress).values(moved)
        connection.execute(statement.on_conflict_do_update(index_elements=["source"], set_={"counted_until": until}))
    return len(rows)


def _ends_between(
    connection: sa.Connection, source: CountedTable, after: datetime, until: datetime
) -> tuple[Sequence[sa.RowMapping], datetime]:
    """Return the oldest rows in the interval, never splitting those of one timestamp, and the time of the last one."""
    ended_at = source.ended_at.label("ended_at")
    query = sa.select(*source.columns, ended_at).where(source.ended_at > after).order_by(source.ended_at)
    if source.state is not None:
        query = query.where(source.table.c.state == source.state)
    newest = connection.execute(
        query.with_only_columns(ended_at).where(source.ended_at <= until).offset(ENDS_AT_A_TIME - 1).limit(1)
    ).scalar()
    until = newest or until
    return connection.execute(query.where(source.ended_at <= until)).mappings().all(), until


def _add(connection: sa.Connection, source: CountedTable, rows: Iterable[sa.RowMapping], oldest: int) -> None:
    """Add rows to the totals, and to the minutes that are still kept."""
    added: dict[tuple[int, Series], float] = defaultdict(float)
    for row in rows:
        minute = int(row["ended_at"].timestamp() // 60)
        for name, labels, value in source.amounts(row):
            if value:
                added[minute, (name, labels)] += value
    stored_as = _stored_series(connection, {series for _, series in added})
    totals: dict[tuple[Any, ...], float] = defaultdict(float)
    minutes: dict[tuple[Any, ...], float] = defaultdict(float)
    for (minute, series), value in added.items():
        totals[stored_as[series]] += value
        if minute >= oldest:
            minutes[minute, *stored_as[series]] += value
    _upsert(connection, metric_totals, ("name", "labels"), totals)
    _upsert(connection, metric_minutes, ("minute", "name", "labels"), minutes)


def _count_kept_totals(connection: sa.Connection, now: datetime) -> int:
    """Add the growth of the capabilities' own totals since the last call; return the number of totals that grew."""
    known = {(name, labels): value for name, labels, value in connection.execute(sa.select(metric_totals))}
    added: dict[tuple[str, str], float] = {}
    for capability in CAPABILITIES:
        for name, labels, value in capability.running_totals(connection):
            series = (name, json.dumps(labels))
            if value > known.get(series, 0):
                added[series] = value - known.get(series, 0)
    _upsert(connection, metric_totals, ("name", "labels"), added)
    minute = int(now.timestamp() // 60)
    _upsert(connection, metric_minutes, ("minute", "name", "labels"), {(minute, *one): added[one] for one in added})
    return len(added)


def _stored_series(connection: sa.Connection, wanted: Iterable[Series]) -> dict[Series, tuple[str, str]]:
    """Return the stored form of each series; if a counter has too many, a new series is merged into `other`."""
    known: defaultdict[str, set[str]] = defaultdict(set)
    for name, labels in connection.execute(sa.select(metric_totals.c.name, metric_totals.c.labels)):
        known[name].add(labels)
    stored_as = {}
    for name, labels in sorted(wanted):
        text = json.dumps(labels)
        if text not in known[name] and len(known[name]) >= MOST_SERIES and name not in BOUNDED:
            text = json.dumps((*labels[:-1], OTHER))
        known[name].add(text)
        stored_as[name, labels] = (name, text)
    return stored_as


def _upsert(
    connection: sa.Connection, table: sa.Table, key: tuple[str, ...], added: Mapping[tuple[Any, ...], float]
) -> None:
    rows = [{**dict(zip(key, identity, strict=True)), "value": value} for identity, value in sorted(added.items())]
    for start in range(0, len(rows), ROWS_A_STATEMENT):
        # Use one statement: psycopg2 would send one per row.
        statement = insert_into(connection, table).values(rows[start : start + ROWS_A_STATEMENT])
        total = table.c.value + statement.excluded.value
        connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_={"value": total}))
