"""The sensor of a work queue: consume topics into the queue, requeue lost entries, and dispatch runs of due entries.

The saved cursor owns the Kafka positions. A tick reads from there, records the messages in the queue, adds their
partitions, and requests runs of due entries; Dagster saves the cursor together with the requests. If the tick is killed
before that, the next one reads the same messages again and finds them in the queue; if it is killed afterwards, Dagster
starts the runs itself. Entries that a lost run left unfinished are due again after a delay.

A batch is one run over many entries, each with its own partition. Dagster's partitioned runs report every output for
all their partitions, but here one file of a batch may be stored while the next is quarantined. So a batch run has no
partition: the queue maps its batch id to the keys, and `asset_events` reports each. Partitions that a person selects in
the UI, and a tick's single file, use the same code with Dagster's own partition keys.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import dagster as dg
import msgspec

from ingest_project.core.items import grouped
from ingest_project.core.settings import RetrySettings
from ingest_project.platform import tracing
from ingest_project.platform.dagster.asset_events import partitions_of_run
from ingest_project.platform.dagster.run_records import failure_of_run
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.runtime import Runtime
from ingest_project.platform.work_queue.consume import ConsumedMessage, Queue, consume
from ingest_project.platform.work_queue.queue import Due, Lease, QueueArrival, WorkQueue

BATCH_TAG = "ingest/batch"
BATCH_ID_TAG = "ingest/batch_id"
BATCH_SIZE_TAG = "ingest/batch_size"
# Pools with limits in dagster.yaml, which also bound runs that people start by hand and that have no batch tag.
DATABASE_POOL = "database"
ONELAKE_POOL = "onelake"
# Minimum number of entries for which a second run is worth its start-up time.
WORTH_SPLITTING = 200


def new_batch_id() -> str:
    """Return a unique batch id. Reusing an id would make Dagster treat the new request as a run it already launched."""
    return uuid.uuid4().hex


def split_evenly(keys: Sequence[str], largest: int, parallel: int) -> list[list[str]]:
    """Split keys into batches of at most `largest`, and into `parallel` equal ones if each is worth a run's start-up.

    Args:
        keys: keys of the entries, in order.
        largest: maximum number of keys in one batch.
        parallel: number of concurrent runs.
    """
    if not keys:
        return []
    wanted = max(-(-len(keys) // largest), min(parallel, len(keys) // WORTH_SPLITTING), 1)
    size = -(-len(keys) // wanted)
    return [list(keys[start : start + size]) for start in range(0, len(keys), size)]


def batches_of_due(due: Sequence[Due], largest: int, parallel: int) -> list[list[str]]:
    """Split due entries into batches, longest waiting first: each retry group alone, the others by route.

    Args:
        due: due entries, longest waiting first.
        largest: maximum number of entries in one batch.
        parallel: number of concurrent runs.
    """
    groups = grouped(((entry.route, entry.retry_group), entry.key) for entry in due)
    batches = [
        batch
        for (_, retry_group), keys in groups.items()
        for batch in (split_evenly(keys, largest, parallel) if retry_group is None else [keys])
    ]
    order = {entry.key: number for number, entry in enumerate(due)}
    return sorted(batches, key=lambda batch: order[batch[0]])


def batch_tags(kind: str, batch_id: str, size: int) -> dict[str, str]:
    """Return the tags of a run that a sensor requests.

    Args:
        kind: kind of the entries, e.g. `files`; dagster.yaml limits the concurrent runs of each kind.
        batch_id: id of the batch that claimed the entries.
        size: number of entries or messages.
    """
    # Dagster must not retry the run: the queue, or the sink's position, requests its unfinished work again.
    return {BATCH_TAG: kind, BATCH_ID_TAG: batch_id, BATCH_SIZE_TAG: str(size), "dagster/max_retries": "0"}


def run_request(
    kind: str, batch_id: str, keys: Sequence[str], *, partitioned: bool = True, job: str | None = None
) -> dg.RunRequest:
    """Request one run over these keys: an ordinary partitioned run for a single key, so that its page shows the file.

    Args:
        kind: see `batch_tags`.
        batch_id: id of the batch that claimed the entries; also the run key.
        keys: keys of the entries.
        partitioned: True if the keys are partitions.
        job: name of the job, if the sensor has several.
    """
    tags = batch_tags(kind, batch_id, len(keys))
    partition_key = keys[0] if partitioned and len(keys) == 1 else None
    return dg.RunRequest(run_key=batch_id, job_name=job, partition_key=partition_key, tags=tags)


def keys_of_run(context: dg.AssetExecutionContext, keys_of_batch: Callable[[str], Sequence[str]]) -> list[str]:
    """Return the keys of a run's entries: the partitions that a person selected, its one partition, or its batch.

    Args:
        context: context of the run.
        keys_of_batch: returns the keys that a batch claimed.

    Raises:
        Failure: the run has neither a partition nor a batch.
    """
    has_partitions = context.has_partition_key or context.has_partition_key_range
    if BATCH_ID_TAG in context.run.tags and not has_partitions:
        return list(keys_of_batch(context.run.tags[BATCH_ID_TAG]))
    return partitions_of_run(context)


def batch_of_run(context: dg.OpExecutionContext) -> str:
    """Return the id of a run's batch.

    Args:
        context: context of the run.

    Raises:
        Failure: the run has no batch, because a person launched the batch job.
    """
    batch_id = context.run.tags.get(BATCH_ID_TAG)
    if batch_id is None:
        raise dg.Failure(
            "This run has no batch: sensors launch this job. Select partitions of its asset and materialize them.",
            allow_retries=False,
        )
    return batch_id


LONGEST_REASON = 300

# The second argument is the resources of the sensor's capability.
Tick = Callable[[dg.SensorEvaluationContext, Any], dg.SensorResult | dg.SkipReason]
Message = TypeVar("Message")


@dataclass(frozen=True)
class Feed(Generic[Message]):
    """A topic that fills a work queue.

    Args:
        topic: topic to consume, and its handling.
        arrivals: converts decoded messages to entries; a message for which it raises an exception is refused.
    """

    topic: Queue[Message]
    arrivals: Callable[[Sequence[ConsumedMessage[Message]]], Sequence[QueueArrival]]


class Route(NamedTuple):
    """The partition set and the job for the entries of one route."""

    partitions: str
    job: str | None = None


@dataclass(frozen=True, kw_only=True)
class QueueSensor:
    """One sensor of a work queue, and its ticks.

    Args:
        queue: the work queue.
        queue_name: name stored with the entries that this sensor dispatches, usually their topic.
        kind: kind of the batch runs, e.g. `files`; also the name of the partition set, unless there are routes.
        cut: splits due entries into batches, in the order of dispatch.
        batch_entries: maximum number of entries of one batch.
        max_batches: maximum number of batches in flight.
        retries: settings of how long a run may take to appear, and of the delays after a lost run.
        feeds: topics that fill the queue.
        has_partitions: True if each entry is a dynamic partition.
        runs_have_partitions: True if a run of a single entry is a partitioned run.
        on_failed: called with the keys of lost entries that have no attempts left.
        routes: routes by name, if several jobs process the queue's entries; entries of any other route wait.
    """

    queue: WorkQueue[Any, Any, Any]
    queue_name: str
    kind: str
    cut: Callable[[Sequence[Due]], list[list[str]]]
    batch_entries: int
    max_batches: int
    retries: RetrySettings
    feeds: Sequence[Feed[Any]] = field(default=())
    has_partitions: bool = True
    runs_have_partitions: bool = True
    on_failed: Callable[[Sequence[str]], object] | None = None
    routes: Mapping[str, Route] | None = None

    def tick(self, context: dg.SensorEvaluationContext, services: Runtime) -> dg.SensorResult:
        """Consume new messages, requeue the entries of lost runs, and request runs of due entries."""
        cursor = self._consume(context, services) if self.feeds else None
        failed = requeue_orphaned(context.instance, self.queue, self.queue_name, self.retries)
        if failed and self.on_failed:
            self.on_failed(failed)
        capacity = services.available_slots(self.queue.in_flight_batches(self.queue_name), self.max_batches)
        requests = self.dispatch(context.instance, capacity.batches)
        return dg.SensorResult(
            run_requests=requests,
            cursor=cursor,
            skip_reason=None if requests else capacity.reason or f"Nothing due on {self.queue_name}.",
        )

    def dispatch(self, instance: dg.DagsterInstance, slots: int) -> list[dg.RunRequest]:
        """Claim due entries in at most `slots` batches, and return the requests for their runs."""
        if not slots:
            return []
        now = datetime.now(UTC)
        due = self.queue.due(self.queue_name, slots * self.batch_entries, now, self.routes)
        route_of = {entry.key: entry.route for entry in due}
        batches = self.cut(due)[:slots]
        # Retention may have purged the partition of an entry that a person reopened.
        self._add_partitions(instance, [(route_of[key], key) for batch in batches for key in batch])
        requests = []
        for keys in batches:
            batch_id, partitioned = new_batch_id(), self.runs_have_partitions
            if claimed := self.queue.claim(batch_id, keys, now):
                job = self._route(route_of[keys[0]]).job
                requests.append(run_request(self.kind, batch_id, claimed, partitioned=partitioned, job=job))
        return requests

    def record(self, instance: dg.DagsterInstance, arrivals: Sequence[QueueArrival]) -> None:
        """Record arrivals in the queue and add their partitions. Idempotent."""
        self.queue.record(arrivals, datetime.now(UTC))
        # Include known entries: a tick that was killed between the two steps left them without a partition.
        keys = [(self.queue.route_of(arrival), self.queue.key_of(arrival)) for arrival in arrivals]
        self._add_partitions(instance, keys)

    def _route(self, name: str) -> Route:
        return Route(self.kind) if self.routes is None else self.routes[name]

    def _add_partitions(self, instance: dg.DagsterInstance, keys: Sequence[tuple[str, str]]) -> None:
        """Add the partitions of entries, given by route and key."""
        by_set: dict[str, dict[str, None]] = {}
        for route, key in keys if self.has_partitions else ():
            by_set.setdefault(self._route(route).partitions, {})[key] = None
        for partitions, added in by_set.items():
            instance.add_dynamic_partitions(partitions, list(added))

    def _consume(self, context: dg.SensorEvaluationContext, services: Runtime) -> str:
        cursors = self._cursors(context.cursor)
        for feed in self.feeds:
            saved = Positions.from_cursor(cursors.get(feed.topic.topic))
            positions = consume(services, feed.topic, saved, partial(self._store, context.instance, feed))
            cursors[feed.topic.topic] = positions.to_cursor()
        return msgspec.json.encode(cursors).decode()

    def _cursors(self, text: str | None) -> dict[str, str]:
        """Return the saved positions of each topic, as `Positions.to_cursor` writes them."""
        try:
            return msgspec.json.decode(text, type=dict[str, str]) if text else {}
        except msgspec.MsgspecError:
            # A cursor of a sensor with one topic, or an invalid one, which `Positions.from_cursor` reports.
            return {self.feeds[0].topic.topic: text or ""}

    def _store(
        self, instance: dg.DagsterInstance, feed: Feed[Message], arrived: Sequence[ConsumedMessage[Any]]
    ) -> None:
        self.record(instance, feed.arrivals(arrived))


def queue_sensor(
    name: str,
    job: str | Sequence[dg.UnresolvedAssetJobDefinition] | None,
    description: str,
    tick: Tick,
    *,
    every_seconds: int = 1,
) -> dg.SensorDefinition:
    """Create a sensor that is enabled by default and skips its tick while a required service is not available.

    Args:
        name: name of the sensor.
        job: name of the job to request, or several jobs, of which each request names one.
        description: one sentence, for the UI.
        tick: evaluates the sensor, e.g. `QueueSensor.tick`; returns run requests and the cursor to save, or the reason
            for skipping.
        every_seconds: minimum interval between two ticks.
    """

    @dg.sensor(
        name=name,
        **({"job_name": job} if isinstance(job, str | None) else {"jobs": list(job)}),
        minimum_interval_seconds=every_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=description,
    )
    def sensor(
        context: dg.SensorEvaluationContext, services: dg.ResourceParam[Runtime]
    ) -> dg.SensorResult | dg.SkipReason:
        if hindrance := services.blocking_reason():
            return dg.SkipReason(hindrance)
        with tracing.tick(name) as requested:
            result = tick(context, services)
            if isinstance(result, dg.SensorResult):
                requested += [request.run_key or "" for request in result.run_requests or ()]
        return result

    return sensor


def requeue_orphaned(
    instance: dg.DagsterInstance, queue: WorkQueue[Any, Any, Any], queue_name: str, retries: RetrySettings
) -> list[str]:
    """Requeue leased entries without a live run: its launch failed, it was killed, or the tick was never saved.

    Args:
        instance: Dagster instance with the runs.
        queue: the work queue.
        queue_name: name of the sensor, which requeues only its own entries.
        retries: settings of how long a run may take to appear, and of the delays before a retry.

    Returns:
        the keys of entries that had no attempts left and have failed.
    """
    now = datetime.now(UTC)
    failed: list[str] = []
    for lease in queue.leases(queue_name, now - retries.launch_grace):
        if not _is_alive(instance, lease):
            reason = reason_of_loss(instance, lease.run_id, lease.batch_id)
            failed += queue.requeue_lost(lease.batch_id, lease.run_id, reason, retries, now).failed
    return failed


def reason_of_loss(instance: dg.DagsterInstance, run_id: str | None, batch_id: str | None = None) -> str:
    """Return the reason of a lost lease, with the exception or process death that Dagster recorded for its run.

    Args:
        instance: Dagster instance with the run.
        run_id: id of the run that held the lease; None if no run had begun.
        batch_id: id of the batch, which identifies the lease without a run.
    """
    holder = f"run {run_id}" if run_id else f"batch {batch_id}"
    recorded = failure_of_run(instance, run_id)[:LONGEST_REASON] if run_id else ""
    return f"The {holder} ended before this was done{': ' + recorded if recorded else '.'}"


def _is_alive(instance: dg.DagsterInstance, lease: Lease) -> bool:
    """Return True if the leasing run, or another run of the same batch, is unfinished."""
    filters = [dg.RunsFilter(run_ids=[lease.run_id])] if lease.run_id else []
    if lease.batch_id:
        filters.append(dg.RunsFilter(tags={BATCH_ID_TAG: lease.batch_id}))
    return any(not run.is_finished for found in filters for run in instance.get_runs(filters=found, limit=10))
