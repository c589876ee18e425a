"""Read the facts that only alerts need: Dagster's failed runs, checks and schedules, and files' refusals and arrivals.

These polls are more expensive than the monitor's other ones, and run less often.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from ingest_project.core.settings import Settings
from ingest_project.file_ingest.tables import FileState, files
from ingest_project.operations import SystemResources
from ingest_project.platform.dagster.records import FailedChecks, FailedRun, FailingTicks, RunRecords
from ingest_project.platform.database import reading

ENDED = (FileState.INGESTED, FileState.QUARANTINED, FileState.FAILED)
REFUSED = (FileState.QUARANTINED, FileState.FAILED)
# A file whose transaction commits late has an earlier time than the last one read: read this interval again.
OVERLAP = timedelta(minutes=5)
MAX_EXAMPLES = 3
# Group by this label: the expression may be a constant, by which PostgreSQL cannot group.
SOURCE = "named_source"
MAX_REFUSED = 300
Origin = tuple[str, str]
"""Dataset and source of files; the source is empty where no setting names it."""


class DagsterFailures(msgspec.Struct, frozen=True, kw_only=True):
    """Failures in Dagster's records.

    Args:
        runs: the last run of each job, if it failed.
        schedules: schedules whose last tick failed, by name.
        checks: checks that failed in a window, by its length in seconds.
    """

    runs: tuple[FailedRun, ...] = ()
    schedules: Mapping[str, FailingTicks] = {}
    checks: Mapping[float, tuple[FailedChecks, ...]] = {}


class Refusals(msgspec.Struct, frozen=True, kw_only=True):
    """Files of one origin that ended in a window.

    Args:
        files, refused_files: number of ended files, and of those that were quarantined whole or failed.
        rows, quarantined_rows: number of rows of the ingested files.
        examples: keys and reasons of the last refused files.
    """

    files: int = 0
    refused_files: int = 0
    rows: int = 0
    quarantined_rows: int = 0
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def share(self) -> float:
        """Return the share of refused files or of quarantined rows, whichever is greater."""
        of_files = self.refused_files / self.files if self.files else 0.0
        return max(of_files, self.quarantined_rows / self.rows if self.rows else 0.0)


class FileFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Results and arrivals of files.

    Args:
        refusals: refusals by window in seconds and origin.
        arrivals: last arrival of each origin; empty if no rule needs it.
        owners: declared owners by facet and name: of datasets, and of topics of streams.
    """

    refusals: Mapping[float, Mapping[Origin, Refusals]] = {}
    arrivals: Mapping[Origin, datetime] = {}
    owners: Mapping[tuple[str, str], tuple[str, ...]] = {}


def read_failures(records: RunRecords, settings: Settings, now: datetime) -> DagsterFailures:
    """Read Dagster's failures.

    Raises:
        DagsterRecordsUnavailableError: Dagster's storage cannot be read.
    """
    alerts = settings.alerts
    since = now - timedelta(seconds=max(alerts.windows("failed_run")))
    failing = records.failing(schedules=True)
    return DagsterFailures(
        runs=records.failed_runs(since),
        schedules={name: ticks for name, ticks in failing.items() if ticks.kind == "schedule"},
        checks={
            seconds: records.failed_checks(now - timedelta(seconds=seconds))
            for seconds in alerts.windows("failed_check")
        },
    )


class FileFactsPoll:
    """Reads the results of files; reads arrivals since the last poll.

    Args:
        services: resources of the system.
    """

    def __init__(self, services: SystemResources) -> None:
        self._services = services
        self._arrivals: dict[Origin, datetime] = {}
        self._read_until: datetime | None = None

    def __call__(self) -> FileFacts:
        """Read results and arrivals once.

        Raises:
            DatabaseUnavailableError, TransactionConflictError: the database does not answer.
        """
        settings, now = self._services.settings, datetime.now(UTC)
        source = _source_of(settings)
        with reading(self._services.engine) as connection:
            refusals = {
                seconds: _refusals(connection, source, now - timedelta(seconds=seconds))
                for seconds in settings.alerts.windows("quarantine")
            }
            if any(settings.alerts.rules_for("freshness")):
                self._read_arrivals(connection, source, now)
        return FileFacts(refusals=refusals, arrivals=dict(self._arrivals), owners=dict(_owners(self._services)))

    def _read_arrivals(self, connection: sa.Connection, source: sa.ColumnElement[str], now: datetime) -> None:
        columns = files.c
        origin = [columns.dataset, source.label(SOURCE)]
        query: Any = sa.select(*origin, sa.func.max(columns.created_at)).group_by(columns.dataset, sa.text(SOURCE))
        if self._read_until is not None:
            # Query by state and time of the last change, which have an index; the arrival of a new file is a change.
            states = columns.state.in_([state.value for state in FileState])
            query = query.where(states, columns.updated_at > self._read_until - OVERLAP)
        for dataset, origin, at in connection.execute(query):
            known = self._arrivals.get((dataset, origin))
            self._arrivals[dataset, origin] = max(known, at) if known else at
        self._read_until = now


def _source_of(settings: Settings) -> sa.ColumnElement[str]:
    """Return a file's source: its polling job, if a setting names that. Senders may choose unlimited other job ids."""
    named = [rule.source for rule in settings.alerts.rules if rule.source and not set(rule.source) & set("*?[")]
    sources = sorted({*settings.sources, *named})
    job = files.c.job_id
    return sa.case((job.in_(sources), job), else_="") if sources else sa.literal("")


def _refusals(connection: sa.Connection, source: sa.ColumnElement[str], since: datetime) -> dict[Origin, Refusals]:
    columns = files.c
    recent = sa.and_(columns.state.in_(ENDED), columns.updated_at > since)
    origin = [columns.dataset, source.label(SOURCE)]
    total = sa.func.coalesce
    refused = sa.func.count().filter(columns.state.in_(REFUSED))
    query: sa.Select[Any] = (
        sa.select(
            *origin,
            sa.func.count(),
            refused,
            total(sa.func.sum(columns.rows_accepted + columns.rows_quarantined), 0),
            total(sa.func.sum(columns.rows_quarantined), 0),
        )
        .where(recent)
        .group_by(columns.dataset, sa.text(SOURCE))
    )
    found = connection.execute(query).all()
    if not any(refused_files or bad_rows for _, _, _, refused_files, _, bad_rows in found):
        examples: Mapping[Origin, list[tuple[str, str]]] = {}
    else:
        examples = _examples(connection, origin, recent)
    return {
        (dataset, source_name): Refusals(
            files=ended,
            refused_files=refused_files,
            rows=int(rows),
            quarantined_rows=int(bad_rows),
            examples=tuple(examples.get((dataset, source_name), ())),
        )
        for dataset, source_name, ended, refused_files, rows, bad_rows in found
    }


def _examples(
    connection: sa.Connection, origin: Sequence[sa.ColumnElement[str]], recent: sa.ColumnElement[bool]
) -> dict[Origin, list[tuple[str, str]]]:
    columns = files.c
    query: Any = (
        sa.select(*origin, columns.file_key, columns.reason, columns.rows_quarantined)
        .where(recent, sa.or_(columns.state.in_(REFUSED), columns.rows_quarantined > 0))
        .order_by(columns.updated_at.desc())
        .limit(MAX_REFUSED)
    )
    found: defaultdict[Origin, list[tuple[str, str]]] = defaultdict(list)
    for dataset, source, key, reason, rows in connection.execute(query):
        if len(found[dataset, source]) < MAX_EXAMPLES:
            found[dataset, source].append((key, reason or f"{rows} rows in quarantine"))
    return found


def _owners(services: SystemResources) -> Iterator[tuple[tuple[str, str], tuple[str, ...]]]:
    # Without declarations there are no owners, so do not import Polars.
    if services.settings.declarations.is_dir():
        yield from ((("dataset", one.name), one.owners) for one in services.datasets.declared)
        yield from ((("topic", one.topic), one.owners) for one in services.declared_streams.usable)


def matching(names: Iterable[str], pattern: str | None) -> list[str]:
    """Return the names that match a pattern, and the pattern itself if it is a name."""
    if pattern is None:
        return []
    found = fnmatch.filter(names, pattern)
    return found if set(pattern) & set("*?[") else [*{*found, pattern}]
