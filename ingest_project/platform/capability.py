"""Protocol through which operations and the command line use a capability.

A capability implements it once, in its `capability.py`, and is listed once, in `operations/__init__.py`; the defaults
here apply to features that it lacks. Importing an implementation does not import Dagster, so that commands start fast;
`operations/definitions.py` lists the parts that Dagster loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
import sqlalchemy as sa

from ingest_project.core.console import UnknownKeyError, moment
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.actions import Action
from ingest_project.platform.database import reading, writing
from ingest_project.platform.delta import TableFigures
from ingest_project.platform.items import (
    Hit,
    ItemRef,
    ItemView,
    Moment,
    Position,
    QueueView,
    Related,
    Search,
    conditions_of_trace,
    find_in,
)
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project.platform.runtime import Runtime

# The unfinished states of all work queues; every other state is final.
IN_PROGRESS = ("requested", "ingesting", "running", "downloading")
UNFINISHED = ("pending", *IN_PROGRESS)

# Upper bounds in seconds: fine steps for the usual latencies under little load, and up to a day of retries.
LATENCY_BUCKETS = (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60, 120, 300, 600, 1800, 3600, 14400, 86400)
BEYOND = "+Inf"
# Latency starts at the first of these times that is set: a message without a timestamp counts from when it was read.
LATENCY_BEGINS = ("reopened_at", "kafka_timestamp", "created_at")

MAX_ENTRIES_OF_TRACE = 10_000

Services_contra = TypeVar("Services_contra", bound=Runtime, contravariant=True)


class Cluster(NamedTuple):
    """A topic, and access to the cluster that stores it."""

    topic: str
    reader: TopicReader
    settings: KafkaSettings


class ConsumedTopic(NamedTuple):
    """A topic and the sensor that reads it.

    Args:
        topic: its name for people.
        sensor: name of the sensor.
        cluster: opens the cluster that stores it; None for the main one.
        skippable: an operator can skip its offsets, because each message becomes one entry of a work queue.
        dead_letters: topic of its dead letters; empty without one.
    """

    topic: str
    sensor: str
    cluster: Callable[[], Cluster] | None = None
    skippable: bool = True
    dead_letters: str = ""


class OldestEntry(msgspec.Struct, frozen=True):
    """The unfinished entry that arrived first.

    Args:
        since: time of its arrival.
        reason: reason of its last failed attempt.
    """

    key: str
    state: str
    since: datetime
    attempts: int
    next_attempt_at: datetime
    reason: str | None


class QueueState(msgspec.Struct, frozen=True, kw_only=True):
    """The entries of one work queue at one moment.

    Args:
        kind: kind of the queue.
        counts: entries by state; finished states only if `detailed`.
        due: pending entries that can be claimed now.
        unreported: finished entries that Dagster does not show yet.
        oldest_untouched: time of the last change of the unfinished entry that has been unchanged for longest.
        oldest: the unfinished entry that arrived first; only if `detailed`.
    """

    kind: str
    counts: Mapping[str, int]
    due: int = 0
    unreported: int = 0
    oldest_untouched: datetime | None = None
    oldest: OldestEntry | None = None

    @property
    def unfinished(self) -> dict[str, int]:
        """Return the entries by unfinished state, without empty states."""
        return {state: self.counts[state] for state in UNFINISHED if self.counts.get(state)}

    @property
    def going_on(self) -> dict[str, int]:
        """Return the unfinished entries by state, without pending ones that are not due yet."""
        work = self.unfinished
        if self.due != work.get("pending", 0):
            work.pop("pending", None)
            work = {"due": self.due, **work} if self.due else work
        return work


class Failure(msgspec.Struct, frozen=True):
    """Something that needs a person, e.g. a failed entry of a work queue.

    Args:
        kind: kind of the queue, or of another item.
        asset: asset whose partition of this key shows the failure, if any.
    """

    kind: str
    key: str
    state: str
    reason: str | None
    at: datetime
    run_id: str | None
    asset: str | None


class RetryTier(msgspec.Struct, frozen=True):
    """Entries that wait for their next attempt in one retry topic.

    Args:
        topic: topic of the tier; the last one also holds the tasks of all later attempts.
        attempt: number of the next attempt, the first being 1.
        due: number of entries that are due now.
        next_due_at: next time at which an entry becomes due; None if none is waiting.
    """

    topic: str
    attempt: int
    waiting: int
    due: int
    next_due_at: datetime | None


class WorkState(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one capability at one moment.

    Args:
        queues: state of each of its work queues.
        retry_tiers: one for each retry topic, the shortest delay first.
        later: number of entries that are not due yet.
        next_due_at: when the first of those is due.
        going_on: unfinished work outside the queues, one phrase each.
        facts: further numbers by the name that `ingest status` shows, or counts by name for each of several things.
        problems: one sentence for each problem that needs a person.
        gauges: values of the capability's own gauges, by metric name and the values of its labels.
    """

    queues: tuple[QueueState, ...] = ()
    retry_tiers: tuple[RetryTier, ...] = ()
    later: int = 0
    next_due_at: datetime | None = None
    going_on: tuple[str, ...] = ()
    facts: Mapping[str, int | Mapping[str, Mapping[str, int]]] = {}
    problems: tuple[str, ...] = ()
    gauges: Mapping[str, Mapping[tuple[str, ...], float]] = {}


class Metric(NamedTuple):
    """The one definition of a metric: its exposition, documentation and the check of dashboards follow from it.

    Args:
        name: without the suffix `_total`.
        labels: names of its labels.
        meaning: one sentence.
        initial: label values of series to create at the start, because a rate misses the first value of a new series.
        kind: Prometheus type. The values of counters and histograms are running totals.
        unit: unit of its values, in the plural.
    """

    name: str
    labels: tuple[str, ...]
    meaning: str
    initial: tuple[tuple[str, ...], ...] = ()
    kind: Literal["counter", "gauge", "histogram"] = "counter"
    unit: str = ""

    @property
    def bucket(self) -> str:
        """Return the name of the running total of one bucket's observations; not cumulative."""
        return f"{self.name}_bucket"

    @property
    def sum(self) -> str:
        """Return the name of the running total of a histogram's observed seconds."""
        return f"{self.name}_sum"

    @property
    def samples(self) -> tuple[str, ...]:
        """Return the names of its series in Prometheus."""
        if self.kind == "histogram":
            return (self.bucket, self.sum, f"{self.name}_count")
        return (f"{self.name}_total",) if self.kind == "counter" else (self.name,)


EVENT_TO_STORED = Metric(
    "ingest_event_to_stored_seconds",
    ("pipeline",),
    "From the Kafka message to the end of what it requests; of an item done again, from when that was requested.",
    kind="histogram",
    unit="seconds",
)
PROCESSING = Metric(
    "ingest_processing_seconds",
    ("pipeline",),
    "From the begin of the work to its end: of a file with the batch that a run began with it, of an attachment with "
    "its last attempt, of a stream for each batch of messages that is stored together.",
    kind="histogram",
    unit="seconds",
)
HISTOGRAMS = (EVENT_TO_STORED, PROCESSING)


class Amount(NamedTuple):
    """An amount to add to one series of a counter."""

    name: str
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True)
class CountedTable:
    """A table whose finished rows feed running totals.

    Args:
        name: name under which the progress is stored.
        table: table of the rows.
        state: final state to count; None if all rows of the table are finished.
        ended_at: column with the time of a row's end, indexed (after the state, if there is one).
        columns: columns that `amounts` reads.
        amounts: returns the amounts that one row adds.
    """

    name: str
    table: sa.Table
    state: str | None
    ended_at: sa.Column[datetime]
    columns: tuple[sa.Column[Any], ...]
    amounts: Callable[[sa.RowMapping], Iterator[Amount]]


class PurgeStep(NamedTuple):
    """One kind of expired records, with the function that removes them.

    Args:
        what: name of the kind for people, e.g. `partitions of files`.
        number: number of expired records.
        examples: the first few of them.
        remove: removes them; idempotent.
    """

    what: str
    number: int
    examples: Sequence[str]
    remove: Callable[[], object]


class Capability(Generic[Services_contra]):
    """A capability as operations and commands use it, with resources of type `Services_contra`.

    Methods that take resources raise DatabaseUnavailableError or TransactionConflictError where the database does not
    answer.
    """

    name: str
    queues: tuple[QueueView, ...] = ()
    metrics: tuple[Metric, ...] = ()
    counted: tuple[CountedTable, ...] = ()
    actions: tuple[Action[Services_contra], ...] = ()

    def topics(self, services: Services_contra) -> tuple[ConsumedTopic, ...]:
        """Return the topics that the capability reads, in the order in which data flows."""
        return ()

    def sensors_without_topic(self, services: Services_contra) -> Mapping[str, Callable[[datetime], bool]]:
        """Return the sensors that read no topic, each with a function that tells whether it has work at a time."""
        return {}

    def read_work(self, services: Services_contra, *, detailed: bool) -> WorkState:
        """Count the unfinished work.

        Args:
            services: the resources.
            detailed: also count finished entries and find the oldest unfinished one; the cost grows with their number.
        """
        with reading(services.engine) as connection:
            queues = tuple(read_queue(connection, queue, detailed=detailed) for queue in self.queues)
        return WorkState(queues=queues)

    def running_totals(self, connection: sa.Connection) -> Iterable[Amount]:
        """Return the capability's own running totals, for counters that no queue feeds."""
        return ()

    def failures(self, services: Services_contra, connection: sa.Connection, limit: int) -> Iterable[Failure]:
        """Return the failures that need a person, other than failed queue entries; at most `limit` of each kind."""
        return ()

    def delta_tables(self, services: Services_contra) -> Mapping[str, Callable[[], TableFigures | None]]:
        """Return the Delta tables by name, each with a function that reads its figures, see `DeltaStore.figures`."""
        return {}

    def purge_steps(self, services: Services_contra, now: datetime) -> Sequence[PurgeStep]:
        """Find expired records other than partitions and runs; remove nothing.

        Args:
            services: the resources.
            now: time from which the days of the retention settings are counted back.
        """
        return ()

    def trace(self, services: Services_contra, trace_id: str) -> Iterable[Moment]:
        """Return all recorded moments of one trace, unordered; raises as `find` does."""
        with reading(services.engine) as connection:
            found = [
                (queue, rows_where(connection, queue.table, of_trace(queue.table, trace_id))) for queue in self.queues
            ]
        return [moment for queue, rows in found for row in rows for moment in queue.history(row)]

    def find(self, services: Services_contra, search: Search, limit: int) -> Iterable[Hit]:
        """Yield the items that match a search, at most `limit` for each kind of id.

        Raises:
            IngestError: a table or store cannot be searched; hits that were yielded before remain valid.
        """
        return find_in(services.engine, self.queues, search, limit)

    def item(self, services: Services_contra, ref: ItemRef) -> ItemView | None:
        """Describe an item; return None if there is no record of it.

        Raises:
            IngestError: a store with part of the description does not answer.
        """
        with reading(services.engine) as connection:
            for queue in self.queues:
                if queue.item_kind == ref.kind and (row := queue.row(connection, ref.key)):
                    view = replace(queue.view(connection, row), facts=_entry_facts(row))
                    return self.completed(services, connection, view, row)
        return None

    def require_item(self, services: Services_contra, ref: ItemRef) -> ItemView:
        """Describe an item whose entry was found a moment ago.

        Raises:
            UnknownKeyError: the entry has been removed since.
        """
        view = self.item(services, ref)
        if view is None:
            raise UnknownKeyError(ref.key, f"{ref.key} has just been removed.", ())
        return view

    def completed(
        self, services: Services_contra, connection: sa.Connection, view: ItemView, row: sa.RowMapping
    ) -> ItemView:
        """Add this capability's own facts to the view of a queue entry."""
        return view

    def related(self, services: Services_contra, view: ItemView) -> Mapping[str, Related]:
        """Return this capability's items that are related to an item, by their relation to it."""
        if view.ref.kind != "message" or (position := Position.parse(view.ref.key)) is None:
            return {}
        with reading(services.engine) as connection:
            found = [queue.related(connection, position.matches(queue.table)) for queue in self.queues]
        hits = tuple(hit for one in found for hit in one.hits)
        return {"made of this message": Related(hits, any(one.more for one in found))} if hits else {}

    def correct_future_times(self, services: Services_contra, now: datetime, skew_seconds: float) -> int:
        """Set future times, left by a clock that was later set back, to now; return the number of entries changed.

        Args:
            services: the resources.
            now: the correct time.
            skew_seconds: normal difference between clocks.
        """
        corrected, ahead = 0, now + timedelta(seconds=skew_seconds)
        for table in (queue.table for queue in self.queues):
            sooner = sa.case((table.c.next_attempt_at > now, now), else_=table.c.next_attempt_at)
            update = sa.update(table).where(table.c.updated_at > ahead)
            with writing(services.engine) as connection:
                corrected += connection.execute(update.values(updated_at=now, next_attempt_at=sooner)).rowcount
        return corrected


def read_queue(connection: sa.Connection, queue: QueueView, *, detailed: bool) -> QueueState:
    """Read the state of a work queue. Unless `detailed`, finished entries do not add to the cost."""
    columns, count = queue.table.c, sa.func.count()
    by_state = sa.select(columns.state, count).group_by(columns.state)
    if not detailed:
        by_state = by_state.where(columns.state.in_(UNFINISHED))
    found = {state: int(number) for state, number in connection.execute(by_state)}
    # The condition repeats the text of the partial index: otherwise neither database uses the index.
    leased = sa.literal_column("reported_at IS NULL AND state <> 'pending'", sa.Boolean)
    unreported = sa.select(count).select_from(queue.table).where(leased, columns.state.not_in(UNFINISHED))
    # Query one state at a time: then the first entry of an index is the answer.
    oldest = sa.select(columns.updated_at).order_by(columns.updated_at).limit(1)
    changes = [connection.scalar(oldest.where(columns.state == state)) for state in UNFINISHED if state in found]
    return QueueState(
        kind=queue.kind,
        counts={state.value: found.get(state.value, 0) for state in queue.states} if detailed else found,
        due=found.get("pending", 0),
        unreported=int(connection.execute(unreported).scalar_one()),
        oldest_untouched=min((change for change in changes if change is not None), default=None),
        oldest=_oldest_entry(connection, queue) if detailed else None,
    )


def rows_where(connection: sa.Connection, table: sa.Table, chosen: sa.ColumnElement[bool]) -> Sequence[sa.RowMapping]:
    """Select the rows that match, at most MAX_ENTRIES_OF_TRACE."""
    return connection.execute(sa.select(table).where(chosen).limit(MAX_ENTRIES_OF_TRACE)).mappings().all()


def queue_history(subject: str, row: sa.RowMapping, end: str) -> Iterator[Moment]:
    """Yield the moments that every work queue records of an entry: arrival, run, end or next attempt."""
    yield Moment(row["created_at"], subject, "arrived", kafka_position(row))
    # A replay has its own record, which names who requested it.
    if row["reopened_at"] and "replays" not in row:
        yield Moment(row["reopened_at"], subject, "requested again")
    if row["started_at"]:
        yield Moment(row["started_at"], subject, "begun by a run", f"run {row['run_id']}")
    if row["finished_at"]:
        yield Moment(row["finished_at"], subject, row["state"], end)
    elif row["reason"]:
        until = f" Not before {moment(row['next_attempt_at'])}."
        yield Moment(row["updated_at"], subject, "waits for another try", row["reason"] + until)


def _entry_facts(row: sa.RowMapping) -> dict[str, object]:
    """Return the facts that every work queue records of an entry, for its page."""
    return {
        "Message": ItemRef("message", str(Position.of(row))),
        "Written to Kafka": row["kafka_timestamp"],
        "Arrived": row["created_at"],
        "Changed": row["updated_at"],
        "Attempts": row["attempts"],
        "Next attempt": row["next_attempt_at"] if row["state"] in UNFINISHED else None,
        "Error": row["error_class"],
        "Batch": row["batch_id"],
    }


def kafka_position(row: sa.RowMapping | Mapping[str, Any]) -> str:
    """Return the Kafka position of a row in the notation of topic tools."""
    return f"{row['kafka_topic']}[{row['kafka_partition']}]@{row['kafka_offset']}"


def counted_by_state(
    queue: QueueView, columns: tuple[sa.Column[Any], ...], amounts: Callable[[sa.RowMapping], Iterator[Amount]]
) -> tuple[CountedTable, ...]:
    """Return a `CountedTable` for each final state of a work queue, so that an index finds the new rows.

    Args:
        queue: the work queue.
        columns: columns that `amounts` reads.
        amounts: returns the amounts that one entry adds.
    """
    table, ends = queue.table, finished_states(queue.states)
    # Ending an entry sets `finished_at` and this column to the same time; this one is indexed.
    return tuple(CountedTable(f"{table.name}/{end}", table, end, table.c.updated_at, columns, amounts) for end in ends)


def of_trace(table: sa.Table, text: str) -> sa.ColumnElement[bool]:
    """Match the entries of a trace by the project's trace id, an OpenTelemetry trace id, or a `traceparent`."""
    return sa.or_(*conditions_of_trace(table, text))


def finished_states(states: type[StrEnum]) -> tuple[str, ...]:
    """Return the final states of a queue."""
    return tuple(state.value for state in states if state.value not in UNFINISHED)


def latency_columns(table: sa.Table) -> tuple[sa.Column[Any], ...]:
    """Return the columns that `latency` needs."""
    return tuple(table.c[name] for name in (*LATENCY_BEGINS, "started_at", "finished_at"))


def latency(pipeline: str, row: sa.RowMapping) -> Iterator[Amount]:
    """Yield the amounts that a finished entry adds to the histograms of latency and processing time."""
    ended = row["finished_at"]
    if ended is None:
        return
    requested = next(at for name in LATENCY_BEGINS if (at := row[name]))
    for metric, began in ((EVENT_TO_STORED, requested), (PROCESSING, row["started_at"])):
        if began is not None:
            # Clocks of producers may be ahead of ours.
            seconds = max(0.0, (ended - began).total_seconds())
            yield Amount(metric.bucket, (pipeline, latency_bucket(seconds)), 1)
            yield Amount(metric.sum, (pipeline,), seconds)


def latency_bucket(seconds: float) -> str:
    """Return the upper bound of a latency's bucket, as its label."""
    return next((f"{end:g}" for end in LATENCY_BUCKETS if seconds <= end), BEYOND)


def _oldest_entry(connection: sa.Connection, queue: QueueView) -> OldestEntry | None:
    columns = queue.table.c
    shown = (queue.key, columns.state, columns.created_at, columns.attempts, columns.next_attempt_at, columns.reason)
    query = sa.select(*shown).where(columns.state.in_(UNFINISHED)).order_by(columns.created_at).limit(1)
    row = connection.execute(query).one_or_none()
    return OldestEntry(*row) if row else None
