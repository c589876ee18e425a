"""The state of the whole system at one time, for status, dashboard, metrics, readiness and alerts.

`take_snapshot` reads every part once, for commands; `monitor.py` keeps reading them in the background.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import msgspec
import sqlalchemy as sa

from ingest_project.core.console import counted
from ingest_project.core.errors import IngestError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.warehouse.baselines import SourceReport, report_sources
from ingest_project.operations import CAPABILITIES, RunningTotals, Series, SystemResources
from ingest_project.operations.alerts.facts import DagsterFailures, FileFacts
from ingest_project.operations.alerts.incidents import AlertState, read_alerts
from ingest_project.operations.pausing import Pause, read_pauses
from ingest_project.operations.topics import BrokerState, LagMeter, TopicLag, dead_letters_on, topics_of_dead_letters
from ingest_project.platform.actions import ActionRecord, interrupted_actions
from ingest_project.platform.capability import ConsumedTopic, Failure, OldestEntry, QueueState, RetryTier, WorkState
from ingest_project.platform.dagster.records import FailingTicks, RunOnRecord, RunRecords, RunsInFlight, SensorOnRecord
from ingest_project.platform.database import reading
from ingest_project.platform.kafka.offsets import TopicStates
from ingest_project.platform.runtime import Disk

logger = get_logger(__name__)

Value = TypeVar("Value")

SENSOR_DAEMON = "SENSOR"
SHOWN_RUNS = 12
SHOWN_FAILURES = 12
MAX_SOURCES = 200
INTERRUPTED_FOR = timedelta(days=1)


@dataclass(frozen=True)
class Sample(Generic[Value]):
    """Result of the last poll of a part.

    Args:
        value: value of the last successful poll, however long ago; None before the first.
        at: time of that poll.
        took_seconds: duration of that poll.
        problem: why the last poll failed; None if it succeeded.
    """

    value: Value | None = None
    at: datetime | None = None
    took_seconds: float = 0.0
    problem: str | None = None

    @property
    def present(self) -> Value | None:
        """Return the value, unless the last poll failed."""
        return None if self.problem else self.value

    def age_seconds(self, now: datetime) -> float | None:
        """Return the age of the value in seconds; None without a value."""
        return None if self.at is None else max(0.0, (now - self.at).total_seconds())


class WarehouseState(msgspec.Struct, frozen=True, kw_only=True):
    """The work queues and running totals at one time.

    Args:
        work: work by capability.
        totals: all-time values of counters.
        failures: last failures, newest first.
        paused: capabilities that an operator has paused.
        interrupted: actions of the last day whose process was killed.
    """

    work: Mapping[str, WorkState]
    totals: Mapping[Series, float] = {}
    failures: tuple[Failure, ...] = ()
    paused: tuple[Pause, ...] = ()
    interrupted: tuple[ActionRecord, ...] = ()

    @property
    def queues(self) -> tuple[QueueState, ...]:
        """Return every work queue, in the order of the data flow."""
        return tuple(queue for work in self.work.values() for queue in work.queues)

    @property
    def retry_tiers(self) -> tuple[RetryTier, ...]:
        """Return every retry tier."""
        return tuple(tier for work in self.work.values() for tier in work.retry_tiers)

    @property
    def gauges(self) -> dict[str, Mapping[tuple[str, ...], float]]:
        """Return the capabilities' own gauges, by metric name and label values."""
        return {name: value for work in self.work.values() for name, value in work.gauges.items()}


class DagsterState(msgspec.Struct, frozen=True, kw_only=True):
    """Dagster's state at one time.

    Args:
        heartbeats: time of the last heartbeat by kind of daemon.
        running: some of the unfinished runs, newest first.
        failing: sensors whose last tick failed.
    """

    sensors: Mapping[str, SensorOnRecord] = {}
    heartbeats: Mapping[str, datetime] = {}
    runs: RunsInFlight
    running: tuple[RunOnRecord, ...] = ()
    failing: Mapping[str, FailingTicks] = {}


class DeltaFigures(msgspec.Struct, frozen=True):
    """The figures of an existing Delta table.

    Args:
        commits: number of all commits so far, including maintenance.
        rows: number of rows; None if a writer did not record the row counts of its files.
    """

    table: str
    commits: int
    rows: int | None
    files: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class SystemSnapshot:
    """The parts of the system, each with its last sample.

    Args:
        settings: settings of the system.
        at: time of the snapshot.
        broker: topics, lag and dead letters.
        warehouse: work queues and running totals.
        dagster: sensors, runs and daemons.
        tables: the Delta tables that exist.
        disk: the fullest disk of this machine.
        unshared_stores: the problem with stores that runs elsewhere do not share; None without one.
        sources: sources of files, with their last file compared to the usual values; unusual ones first.
        failures, file_facts: further facts for alerts.
        alerts: open incidents, and channels that fail.
    """

    settings: Settings
    at: datetime
    broker: Sample[BrokerState] = Sample()
    warehouse: Sample[WarehouseState] = Sample()
    dagster: Sample[DagsterState] = Sample()
    tables: Sample[tuple[DeltaFigures, ...]] = Sample()
    disk: Sample[Disk] = Sample()
    unshared_stores: str | None = None
    sources: Sample[tuple[SourceReport, ...]] = Sample()
    failures: Sample[DagsterFailures] = Sample()
    file_facts: Sample[FileFacts] = Sample()
    alerts: Sample[AlertState] = Sample()

    @property
    def parts(self) -> dict[str, Sample[Any]]:
        """Return every part by its name in metrics."""
        return {
            "warehouse": self.warehouse,
            "broker": self.broker,
            "dagster": self.dagster,
            "tables": self.tables,
            "disk": self.disk,
        }

    @property
    def topics(self) -> tuple[TopicLag, ...]:
        """Return every consumed topic; none if the broker could not be read."""
        return self.broker.present.topics if self.broker.present else ()

    @property
    def dead_letters(self) -> dict[str, int]:
        """Return the number of kept dead letters by topic, without empty ones; none if the broker could not be read."""
        letters = self.broker.present.dead_letters if self.broker.present else ()
        return {one.topic: one.kept for one in letters if one.kept}

    @property
    def paused(self) -> tuple[Pause, ...]:
        """Return the capabilities that an operator has paused, as far as known."""
        return self.warehouse.value.paused if self.warehouse.value else ()

    @property
    def going_on(self) -> list[str]:
        """Describe unfinished work and unreadable parts in one phrase each; empty if the system is idle."""
        return [*_waiting(self.topics), *_work(self.warehouse.present), *_runs(self.dagster.present)]

    @property
    def is_idle(self) -> bool:
        """Return True if no work waits or runs, and every part could be read."""
        return not self.going_on

    @property
    def problems(self) -> list[str]:
        """Return one sentence for each unreadable part, each failing sensor, and a nearly full disk."""
        problems = [lag.problem for lag in self.topics if lag.problem]
        samples = (*self.parts.values(), self.failures, self.file_facts)
        problems += [sample.problem for sample in samples if sample.problem]
        if self.disk.present and self.disk.present.is_nearly_full:
            problems.append(str(self.disk.present))
        if self.unshared_stores:
            problems.append(self.unshared_stores)
        if self.warehouse.present:
            problems += [problem for work in self.warehouse.present.work.values() for problem in work.problems]
        failing = self.dagster.present.failing if self.dagster.present else {}
        problems += [f"{sensor} {ticks}" for sensor, ticks in sorted(failing.items())]
        problems += map(str, self.alerts.present.failing_channels if self.alerts.present else ())
        return list(dict.fromkeys(problems))

    @property
    def unreported(self) -> int | None:
        """Return the number of finished entries not yet shown in Dagster; None if the queues could not be read."""
        state = self.warehouse.present
        return None if state is None else sum(queue.unreported for queue in state.queues)

    @property
    def oldest_unfinished(self) -> OldestEntry | None:
        """Return the unfinished entry that arrived first; None if there is none, or it was not read."""
        queues = self.warehouse.present.queues if self.warehouse.present else ()
        return min((queue.oldest for queue in queues if queue.oldest), key=lambda entry: entry.since, default=None)


def take_snapshot(services: SystemResources, records: RunRecords) -> SystemSnapshot:
    """Read every part once, for a person who waits: in detail, but without running totals and tables.

    Topics and queues are read in the order of the data flow. Work moves to a later part, so work that left a part
    before it was read is seen in the next one, and a system that looks idle was idle. Retries also move back to topics
    that were read before: if the system looks idle, those topics are read again.
    """
    meter = LagMeter(services, records)
    lags: list[TopicLag] = []
    work: dict[str, WorkState] = {}
    # Each part that does not answer takes its full timeout: try them concurrently, and only once.
    with ThreadPoolExecutor() as pool:
        queues = pool.submit(sample_of, lambda: _with_pauses(services, work))
        pool.submit(sample_of, meter.try_broker)
        pool.submit(sample_of, meter.try_records)
    problem = queues.result().problem
    for capability in CAPABILITIES:
        lags += meter.lags_of(capability.topics(services))
        if problem is None:
            try:
                work[capability.name] = capability.read_work(services, detailed=True)
            except IngestError as error:
                problem = str(error)
    snapshot = SystemSnapshot(
        settings=services.settings,
        at=datetime.now(UTC),
        broker=Sample(BrokerState(tuple(lags))),
        warehouse=Sample(problem=problem) if problem else sample_of(lambda: _with_pauses(services, work)),
        dagster=Sample(problem=meter.records_problem)
        if meter.records_problem
        else sample_of(lambda: DagsterState(runs=records.runs_in_flight(), failing=records.failing())),
        disk=sample_of(services.fullest_disk),
        unshared_stores=services.unshared_stores,
        alerts=Sample(problem=problem) if problem else sample_of(lambda: read_alerts(services.engine)),
    )
    if snapshot.is_idle:
        snapshot = replace(snapshot, broker=Sample(BrokerState(meter.lags_of(consumed_topics(services)))))
    return snapshot


def with_dead_letters(services: SystemResources, snapshot: SystemSnapshot) -> SystemSnapshot:
    """Count the dead letters as well, unless the broker has already failed to answer."""
    broker = snapshot.broker.present
    if broker is None or any(lag.waiting is None for lag in broker.topics):
        return snapshot
    states, topics = TopicStates(services.settings.kafka), topics_of_dead_letters(services, consumed_topics(services))

    def read() -> BrokerState:
        letters = tuple(dead_letters_on(services, topic, states) for topic in topics)
        return msgspec.structs.replace(broker, dead_letters=letters)

    counted_too = sample_of(read)
    return replace(snapshot, broker=replace(counted_too, value=counted_too.value or broker))


def consumed_topics(services: SystemResources) -> tuple[ConsumedTopic, ...]:
    """Return every consumed topic, in the order of the data flow."""
    return tuple(topic for capability in CAPABILITIES for topic in capability.topics(services))


def read_warehouse(services: SystemResources) -> WarehouseState:
    """Count entries that have ended since the last call, and read the work queues.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: the database does not answer.
    """
    totals = RunningTotals(services.engine)
    totals.count(datetime.now(UTC))
    counters = totals.totals()
    work = {one.name: one.read_work(services, detailed=False) for one in CAPABILITIES}
    with reading(services.engine) as connection:
        paused = read_pauses(connection)
        interrupted = interrupted_actions(connection, datetime.now(UTC) - INTERRUPTED_FOR)
        failures = _failures(services, connection, interrupted)
    return WarehouseState(work=work, totals=counters, failures=failures, paused=paused, interrupted=interrupted)


def _with_pauses(services: SystemResources, work: Mapping[str, WorkState]) -> WarehouseState:
    with reading(services.engine) as connection:
        return WarehouseState(work=work, paused=read_pauses(connection))


def read_dagster(records: RunRecords) -> DagsterState:
    """Read sensors, runs and heartbeats.

    Raises:
        DagsterRecordsUnavailableError: Dagster's storage cannot be read.
    """
    return DagsterState(
        sensors=records.sensors(),
        heartbeats=records.heartbeats(),
        runs=records.runs_in_flight(),
        running=records.unfinished_runs(SHOWN_RUNS),
        failing=records.failing(),
    )


def read_tables(services: SystemResources) -> tuple[DeltaFigures, ...]:
    """Read the logs of the Delta tables, without those whose store does not answer."""
    found: list[DeltaFigures] = []
    for name, figures_of in (
        (name, figures_of) for one in CAPABILITIES for name, figures_of in one.delta_tables(services).items()
    ):
        try:
            figures = figures_of()
        except IngestError as error:
            logger.warning("table_unavailable", table=name, reason=str(error))
            continue
        if figures is not None:
            # The first commit creates version 0.
            commits = figures.table_version + 1
            found.append(DeltaFigures(name, commits, figures.rows, figures.files, figures.size_bytes))
    return tuple(found)


def read_sources(services: SystemResources) -> tuple[SourceReport, ...]:
    """Compare the last file of each source with the source's usual values.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    return report_sources(services.engine, services.settings, datetime.now(UTC), limit=MAX_SOURCES)


def sample_of(poll: Callable[[], Value], name: str = "") -> Sample[Value]:
    """Poll a part once; any exception becomes the sample's problem."""
    began = time.monotonic()
    try:
        value = poll()
    except IngestError as error:
        return Sample(problem=str(error))
    except Exception as error:  # a defect in one part must not affect the others
        logger.exception("poll_failed", part=name)
        return Sample(problem=f"{type(error).__name__}: {error}")
    return Sample(value, datetime.now(UTC), time.monotonic() - began)


def _failures(
    services: SystemResources, connection: sa.Connection, interrupted: Iterable[ActionRecord]
) -> tuple[Failure, ...]:
    """Read the last queue entries and actions that need a person, newest first."""
    found = [
        Failure(
            "action", one.action_id, one.outcome, f"{one.action} by {one.who}. {one.detail}", one.started_at, None, None
        )
        for one in interrupted
    ]
    for queue in (queue for capability in CAPABILITIES for queue in capability.queues):
        columns, route = queue.table.c, sa.literal("") if queue.routes is None else queue.routes
        for state in queue.failed_states:
            query = (
                sa.select(queue.key, columns.reason, columns.updated_at, columns.run_id, route)
                .where(columns.state == state)
                .order_by(columns.updated_at.desc())
                .limit(SHOWN_FAILURES)
            )
            rows = connection.execute(query)
            found += [
                Failure(queue.kind, key, state, reason, at, run_id, queue.asset_showing(route))
                for key, reason, at, run_id, route in rows
            ]
    for capability in CAPABILITIES:
        found += capability.failures(services, connection, SHOWN_FAILURES)
    return tuple(sorted(found, key=lambda failure: failure.at, reverse=True)[:SHOWN_FAILURES])


def _waiting(lags: Iterable[TopicLag]) -> Iterator[str]:
    for lag in lags:
        if lag.waiting is None:
            yield f"{lag.topic} cannot be read"
        elif lag.waiting:
            yield f"{counted(lag.waiting, 'message')} waiting on {lag.topic}"


def _work(state: WarehouseState | None) -> Iterator[str]:
    if state is None:
        yield "the work queues cannot be read"
        return
    for work in state.work.values():
        for queue in work.queues:
            for name, number in queue.going_on.items():
                yield f"{counted(number, queue.kind.replace('_', ' '))} {name}"
        yield from work.going_on
    if unreported := sum(queue.unreported for queue in state.queues):
        yield f"{counted(unreported, 'finished entry', 'finished entries')} not yet shown in Dagster"


def _runs(state: DagsterState | None) -> Iterator[str]:
    if state is None:
        yield "Dagster's runs cannot be read"
        return
    for name, number in (("queued", state.runs.queued), ("started", state.runs.started)):
        if number:
            yield f"{counted(number, 'run')} {name}"
