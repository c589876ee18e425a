"""The sensor over a work queue: consume topics into the queue, requeue lost entries, dispatch batch runs of due ones.

The saved cursor owns the Kafka positions. A tick reads from it, writes what it read to the queue, adds the partition
keys, and requests runs over what is due; Dagster saves the cursor together with the requests. Killed before that, the
next tick reads the same messages again and finds them in the queue; killed after it, Dagster starts the runs itself.
What a lost run left unfinished is due again after a pause.

A batch is one run that works on many entries, each of them a partition of its own. A run that Dagster would call
partitioned reports every output for every one of its partitions; here one file of a batch may be stored while the next
is quarantined. So a batch run has no partition: the queue knows its keys by batch id, and `asset_events` reports each.
A person who selects partitions in the UI, and a tick that found a single file, use the same code with Dagster's own
keys.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, TypeVar

import dagster as dg
import msgspec

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
# Pools, whose limit is in dagster.yaml: they also bound runs that people start by hand, which have no batch tag.
DATABASE_POOL = "database"
ONELAKE_POOL = "onelake"
# Fewest entries for which a second run pays for its own start-up.
WORTH_SPLITTING = 200


def new_batch_id() -> str:
    """Return a unique batch id. Reusing an id would make Dagster treat the new request as a run it already launched."""
    return uuid.uuid4().hex


def split_evenly(
    keys: Sequence[str], largest: int, parallel: int, worth_splitting: int = WORTH_SPLITTING
) -> list[list[str]]:
    """Cut keys into batches of at most `largest`, and into `parallel` equal ones where each is worth a run's start-up.

    Args:
        keys: of the entries, in order.
        largest: most keys in one batch.
        parallel: runs that work at the same time.
        worth_splitting: fewest keys for which a second run pays for its own start-up.
    """
    if not keys:
        return []
    wanted = max(-(-len(keys) // largest), min(parallel, len(keys) // worth_splitting), 1)
    size = -(-len(keys) // wanted)
    return [list(keys[start : start + size]) for start in range(0, len(keys), size)]


def batches_of_due(due: Sequence[Due], largest: int, parallel: int) -> list[list[str]]:
    """Cut due entries into batches, those that wait longest first: each retry group alone, the others by their route.

    Args:
        due: in the order in which they wait.
        largest: most entries in one batch.
        parallel: runs that work at the same time.
    """
    groups: dict[tuple[str, str | None], list[str]] = {}
    for entry in due:
        groups.setdefault((entry.route, entry.retry_group), []).append(entry.key)
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
        kind: what it works on, e.g. `files`; runs of one kind are limited together in dagster.yaml.
        batch_id: of what the sensor gives it.
        size: number of entries or messages.
    """
    # Dagster does not retry it: what a lost run leaves is requested again by the queue, or from the sink's position.
    return {BATCH_TAG: kind, BATCH_ID_TAG: batch_id, BATCH_SIZE_TAG: str(size), "dagster/max_retries": "0"}


def run_request(
    kind: str, batch_id: str, keys: Sequence[str], *, partitioned: bool = True, job: str | None = None
) -> dg.RunRequest:
    """Request one run over these keys: an ordinary partitioned run for a single key, so that its page shows the file.

    Args:
        kind: see `batch_tags`.
        batch_id: under which the queue knows the keys; also the run key.
        keys: of the entries.
        partitioned: whether the keys are partitions.
        job: that works on them, where the sensor has several.
    """
    tags = batch_tags(kind, batch_id, len(keys))
    partition_key = keys[0] if partitioned and len(keys) == 1 else None
    return dg.RunRequest(run_key=batch_id, job_name=job, partition_key=partition_key, tags=tags)


def keys_of_run(context: dg.AssetExecutionContext, keys_of_batch: Callable[[str], Sequence[str]]) -> list[str]:
    """Return the keys that a run works on: those a person selected, its one partition, or those of its batch.

    Args:
        context: of the run.
        keys_of_batch: returns the queue's keys of a batch.

    Raises:
        Failure: the run names neither.
    """
    has_partitions = context.has_partition_key or context.has_partition_key_range
    if BATCH_ID_TAG in context.run.tags and not has_partitions:
        return list(keys_of_batch(context.run.tags[BATCH_ID_TAG]))
    return partitions_of_run(context)


def batch_of_run(context: dg.OpExecutionContext) -> str:
    """Return the id of a run's batch.

    Args:
        context: of the run.

    Raises:
        Failure: the run has none: a person launched the job of batches.
    """
    batch_id = context.run.tags.get(BATCH_ID_TAG)
    if batch_id is None:
        raise dg.Failure(
            "This run has no batch: sensors launch this job. Select partitions of its asset and materialize them.",
            allow_retries=False,
        )
    return batch_id


LONGEST_REASON = 300

# The second argument is the resources of the sensor's own capability.
Tick = Callable[[dg.SensorEvaluationContext, Any], dg.SensorResult | dg.SkipReason]
Message = TypeVar("Message")


@dataclass(frozen=True)
class Intake(Generic[Message]):
    """A topic that fills a work queue.

    Args:
        topic: what to consume, and how.
        arrivals: makes entries of decoded messages; what it raises refuses the message that caused it.
    """

    topic: Queue[Message]
    arrivals: Callable[[Sequence[ConsumedMessage[Message]]], Sequence[QueueArrival]]


class Route(NamedTuple):
    """The partition set of the entries of one route, and the job that works on them."""

    partitions: str
    job: str | None = None


@dataclass(frozen=True, kw_only=True)
class QueueSensor:
    """One sensor over a work queue, and its ticks.

    Args:
        queue: that it serves.
        queue_name: which of the queue's entries it serves, usually the topic they came from.
        kind: of the batch runs, e.g. `files`; also names the set of dynamic partitions, unless there are routes.
        cut: divides due entries into batches, the first ones to dispatch in front.
        batch_entries: most entries of one batch.
        max_batches: most batches in flight.
        retries: how long a run may take to appear, and when the entries of a lost one are tried again.
        intakes: the topics that fill the queue.
        has_partitions: whether each entry is a dynamic partition.
        runs_have_partitions: whether a run over a single entry is a partitioned run.
        on_failed: called with the keys of entries that were lost and have no attempt left.
        routes: of a queue whose entries several jobs work on; entries of any other route wait.
    """

    queue: WorkQueue[Any, Any, Any]
    queue_name: str
    kind: str
    cut: Callable[[Sequence[Due]], list[list[str]]]
    batch_entries: int
    max_batches: int
    retries: RetrySettings
    intakes: Sequence[Intake[Any]] = field(default=())
    has_partitions: bool = True
    runs_have_partitions: bool = True
    on_failed: Callable[[Sequence[str]], object] | None = None
    routes: Mapping[str, Route] | None = None

    def tick(self, context: dg.SensorEvaluationContext, services: Runtime) -> dg.SensorResult:
        """Consume new messages, requeue the entries of lost runs, and request runs over due ones."""
        cursor = self._consume(context, services) if self.intakes else None
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
        """Claim due entries in at most as many batches as there are slots, and return the requests for their runs."""
        if not slots:
            return []
        now = datetime.now(UTC)
        due = self.queue.due(self.queue_name, slots * self.batch_entries, now, self.routes)
        route_of = {entry.key: entry.route for entry in due}
        batches = self.cut(due)[:slots]
        # An entry that a person reopened may have no partition any more: after months it was purged.
        self._add_partitions(instance, [(route_of[key], key) for batch in batches for key in batch])
        requests = []
        for keys in batches:
            batch_id, partitioned = new_batch_id(), self.runs_have_partitions
            if claimed := self.queue.claim(batch_id, keys, now):
                job = self._route(route_of[keys[0]]).job
                requests.append(run_request(self.kind, batch_id, claimed, partitioned=partitioned, job=job))
        return requests

    def record(self, instance: dg.DagsterInstance, arrivals: Sequence[QueueArrival]) -> None:
        """Enter arrivals in the queue and add their partitions; entering them again changes nothing."""
        self.queue.record(arrivals, datetime.now(UTC))
        # Also of those that were known: a tick that was killed between the two lines left them without a partition.
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
        for intake in self.intakes:
            saved = Positions.from_cursor(cursors.get(intake.topic.topic))
            positions = consume(services, intake.topic, saved, self._storing(context.instance, intake))
            cursors[intake.topic.topic] = positions.to_cursor()
        return msgspec.json.encode(cursors).decode()

    def _cursors(self, text: str | None) -> dict[str, str]:
        """Return the saved positions of each topic, as `Positions.to_cursor` writes them."""
        try:
            return msgspec.json.decode(text, type=dict[str, str]) if text else {}
        except msgspec.MsgspecError:
            # Of a sensor that had one topic only, or a foreign one, which `Positions.from_cursor` reports.
            return {self.intakes[0].topic.topic: text or ""}

    def _storing(
        self, instance: dg.DagsterInstance, intake: Intake[Message]
    ) -> Callable[[Sequence[ConsumedMessage[Message]]], object]:
        return lambda arrived: self.record(instance, intake.arrivals(arrived))


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
        name: of the sensor.
        job: name of the job whose runs it requests, or several jobs, which its requests name.
        description: one sentence, for the UI.
        tick: one evaluation, e.g. `QueueSensor.tick`: what to request, and the cursor to save, or why there is nothing
            to do.
        every_seconds: the least time between two ticks.
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
    """Requeue entries that no live run holds: its launch failed, it was killed, or the tick's cursor was never saved.

    Args:
        instance: knows the runs.
        queue: to look through.
        queue_name: of the sensor; each sensor requeues only its own entries.
        retries: the time that a run may take to appear, and when its entries are tried again.

    Returns:
        keys of those that had no attempt left and are failed.
    """
    now = datetime.now(UTC)
    failed: list[str] = []
    for lease in queue.leases(queue_name, now - retries.launch_grace):
        if not _is_alive(instance, lease):
            reason = reason_of_loss(instance, lease.run_id, lease.batch_id)
            failed += queue.requeue_lost(lease.batch_id, lease.run_id, reason, retries, now).failed
    return failed


def reason_of_loss(instance: dg.DagsterInstance, run_id: str | None, batch_id: str | None = None) -> str:
    """Return the reason of a lost lease, with the exception or the dead process that Dagster recorded of its run.

    Args:
        instance: knows the run.
        run_id: that held the lease; None where no run had begun.
        batch_id: names the lease then.
    """
    holder = f"run {run_id}" if run_id else f"batch {batch_id}"
    recorded = failure_of_run(instance, run_id)[:LONGEST_REASON] if run_id else ""
    return f"The {holder} ended before this was done{': ' + recorded if recorded else '.'}"


def _is_alive(instance: dg.DagsterInstance, lease: Lease) -> bool:
    """Test whether the leasing run, or another run of the same batch, is not finished."""
    filters = [dg.RunsFilter(run_ids=[lease.run_id])] if lease.run_id else []
    if lease.batch_id:
        filters.append(dg.RunsFilter(tags={BATCH_ID_TAG: lease.batch_id}))
    return any(not run.is_finished for found in filters for run in instance.get_runs(filters=found, limit=10))
