"""What the ledger tells: the counters, what is not finished, and what failed last.

Every question here is answered by an index over what is unfinished or recent: a million finished files cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from ingest_project.attachments.tables import attachment_events, attachments
from ingest_project.core.errors import IngestError
from ingest_project.file_ingest.tables import files
from ingest_project.operations.metric_rollup import RunningTotals, Series
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.database.engine import reading
from ingest_project.platform.delta.table import DeltaStore
from ingest_project.polling.job_queue import polling_jobs
from ingest_project.streams.crm.tables import unidentified_messages
from ingest_project.streams.positions import stream_attempts, stream_failures


class DeltaFigures(msgspec.Struct, frozen=True):
    """One table that exists.

    Args:
        commits: ever made to it, maintenance included.
        rows: None where a writer left its files uncounted.
    """

    table: str
    commits: int
    rows: int | None
    files: int
    size_bytes: int


class TablesSeen(msgspec.Struct, frozen=True):
    """The tables that exist, and one sentence for each that does not answer."""

    figures: tuple[DeltaFigures, ...]
    problems: tuple[str, ...]


class TablesLook:
    """Reads the logs of the Delta tables."""

    def __init__(self, services: SystemResources) -> None:
        self._stores: dict[str, Callable[[], DeltaStore]] = {
            "attachment_results": lambda: services.attachment_results,
            "user_activity_events": lambda: services.user_activity_events,
        }

    def __call__(self) -> TablesSeen:
        """Never raises: one store that is away says nothing about the others."""
        figures: list[DeltaFigures] = []
        problems: list[str] = []
        for name, store in self._stores.items():
            try:
                found = store().figures()
            except IngestError as error:
                problems.append(f"{name}: {error}")
                continue
            if found is not None:
                # The first commit makes version 0.
                commits = found.table_version + 1
                figures.append(DeltaFigures(name, commits, found.rows, found.files, found.size_bytes))
        return TablesSeen(tuple(figures), tuple(problems))


IN_HAND = ("requested", "ingesting", "running", "downloading")
UNFINISHED = ("pending", *IN_HAND)
FAILURES = 12

# Each kind of entry: its table and key, the states that a person should look at, and the asset that shows it.
KINDS: Mapping[str, tuple[sa.Table, sa.Column[str], tuple[str, ...], str | None]] = {
    "file": (files, files.c.file_key, ("failed", "quarantined"), "validated_sensor_data"),
    "polling_job": (polling_jobs, polling_jobs.c.job_key, ("failed",), "discovered_files"),
    "attachment_event": (attachment_events, attachment_events.c.event_key, ("failed",), None),
    "attachment": (attachments, attachments.c.attachment_key, ("failed",), "onelake_attachments"),
}


class RetryTier(msgspec.Struct, frozen=True):
    """Attachments that wait for the same attempt."""

    attempt: int
    waiting: int
    next_due_at: datetime


class Failure(msgspec.Struct, frozen=True):
    """An entry that did not come to a good end.

    Args:
        kind: one of KINDS, `stream_partition` or `lost_offsets`.
        asset: whose partition of this key shows it, where one does.
    """

    kind: str
    key: str
    state: str
    reason: str | None
    at: datetime
    run_id: str | None
    asset: str | None


class LedgerSeen(msgspec.Struct, frozen=True):
    """The ledger at one moment.

    Args:
        totals: counters since the beginning.
        unfinished: number of entries by kind and state; only those with any.
        oldest_untouched: by kind, since when the one waits that nothing has happened to for longest.
        retry tiers: the retries of downloads, the next attempt first.
        unidentified: CRM messages that are kept apart.
        failures: the last ones, newest first.
        stream_attempts: runs in a row that did not move a partition of a stream, by topic and partition.
    """

    totals: Mapping[Series, float]
    unfinished: Mapping[str, Mapping[str, int]]
    oldest_untouched: Mapping[str, datetime]
    retry_tiers: tuple[RetryTier, ...]
    unidentified: int
    failures: tuple[Failure, ...]
    stream_attempts: Mapping[tuple[str, int], int]


class LedgerLook:
    """Counts what is new, then looks."""

    def __init__(self, services: SystemResources) -> None:
        self._services = services

    def __call__(self) -> LedgerSeen:
        """Raises DatabaseUnavailableError where the database does not answer."""
        engine = self._services.engine
        totals = RunningTotals(engine)
        totals.count(datetime.now(UTC))
        counters = totals.totals()
        with reading(engine) as connection:
            return LedgerSeen(
                totals=counters,
                unfinished={kind: _unfinished(connection, KINDS[kind][0]) for kind in KINDS},
                oldest_untouched=dict(_oldest(connection)),
                retry_tiers=_retry_tiers(connection),
                unidentified=_unidentified(connection),
                failures=_failures(connection),
                stream_attempts=stream_attempts(connection),
            )


def _unfinished(connection: sa.Connection, table: sa.Table) -> dict[str, int]:
    query = sa.select(table.c.state, sa.func.count()).where(table.c.state.in_(UNFINISHED)).group_by(table.c.state)
    return {state: number for state, number in connection.execute(query)}  # noqa: C416 - dict() loses the types


def _oldest(connection: sa.Connection) -> Iterator[tuple[str, datetime]]:
    for kind, (table, *_) in KINDS.items():
        # One state at a time: then the first entry of an index answers.
        moments = [connection.execute(_first_of(table, state)).scalar() for state in UNFINISHED]
        if known := [moment for moment in moments if moment is not None]:
            yield kind, min(known)


def _first_of(table: sa.Table, state: str) -> sa.Select[Any]:
    return sa.select(table.c.updated_at).where(table.c.state == state).order_by(table.c.updated_at).limit(1)


def _retry_tiers(connection: sa.Connection) -> tuple[RetryTier, ...]:
    columns = attachments.c
    first_due = sa.func.min(columns.next_attempt_at, type_=columns.next_attempt_at.type)
    query = (
        sa.select(columns.attempt, sa.func.count(), first_due)
        .where(columns.queue_name == "retry", columns.state == "pending")
        .group_by(columns.attempt)
        .order_by(columns.attempt)
    )
    return tuple(RetryTier(attempt, waiting, due) for attempt, waiting, due in connection.execute(query))


def _unidentified(connection: sa.Connection) -> int:
    query = sa.select(sa.func.count()).where(unidentified_messages.c.identified_at.is_(None))
    return int(connection.execute(query).scalar_one())


def _failures(connection: sa.Connection) -> tuple[Failure, ...]:
    found: list[Failure] = []
    for kind, (table, key, states, asset) in KINDS.items():
        columns = table.c
        for state in states:
            query = (
                sa.select(key, columns.reason, columns.updated_at, columns.run_id)
                .where(columns.state == state)
                .order_by(columns.updated_at.desc())
                .limit(FAILURES)
            )
            rows = connection.execute(query)
            found += [Failure(kind, name, state, reason, at, run_id, asset) for name, reason, at, run_id in rows]
    failed, lost = stream_failures(connection, FAILURES)
    found += [
        Failure("stream_partition", str(one), "failed", one.reason, one.updated_at, one.run_id, None) for one in failed
    ]
    found += [Failure("lost_offsets", str(one.offsets), "lost", one.reason, one.found_at, None, None) for one in lost]
    return tuple(sorted(found, key=lambda failure: failure.at, reverse=True)[:FAILURES])
