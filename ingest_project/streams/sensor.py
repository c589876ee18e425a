"""The sensor, the limits and the results that Dagster has of every stream.

The sensor compares the topic's ends with the sink's positions, and requests runs up to these ends. A tick reads no
message and keeps nothing that matters: a request that is lost, repeated or made twice stores the same rows. The cursor
holds the positions that the tick saw, from which lag is measured; the consumer group's committed offsets follow it, and
so never pass what is stored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from typing import Any, Self

import dagster as dg
from dagster import DagsterRunStatus
from pydantic import Field

from ingest_project.core.items import digest_of
from ingest_project.core.logging import get_logger
from ingest_project.platform.dagster.asset_events import WholeAssetResult
from ingest_project.platform.dagster.catalog import running_schedule
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.runtime import Runtime
from ingest_project.platform.work_queue.sensor import batch_tags, queue_sensor, reason_of_loss
from ingest_project.streams.engine import StreamHealth, StreamRun
from ingest_project.streams.parallel import split
from ingest_project.streams.positions import SinkPosition, StreamPositions
from ingest_project.streams.resources import StreamResources

logger = get_logger(__name__)

PARTITIONS_TAG = "ingest/partitions"
MAX_RUNS = 100
UNFINISHED_RUNS = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


class StreamRunConfig(dg.Config):
    """End offsets of a run by partition; without any, the run stores everything that the topic has."""

    end_offsets: dict[str, int] = Field(default_factory=dict)

    @property
    def ends(self) -> dict[int, int] | None:
        """The end offsets by partition."""
        return {int(partition): end for partition, end in self.end_offsets.items()} or None


@dataclass(frozen=True)
class StreamLimits:
    """Bounds of a stream's runs, and thresholds of its checks.

    Args:
        batch_messages: most offsets of one run.
        max_parallel_batches: runs at a time, each over partitions of its own.
        max_unfinished_seconds: a message that waits to be stored for longer fails the check no_gap_in_offsets.
        max_implausible_share: share of recent rows with an impossible time that fails event_time_plausible.
        retention_hours: how long files stay that only old versions of a Delta table have.
    """

    batch_messages: int
    max_parallel_batches: int
    max_unfinished_seconds: float
    max_implausible_share: float = 0.01
    retention_hours: int = 168

    @classmethod
    def of(cls, settings: object) -> Self:
        """Return the limits among the settings or the declaration of a stream."""
        return cls(**{one.name: getattr(settings, one.name) for one in fields(cls) if hasattr(settings, one.name)})


@dataclass(frozen=True)
class StreamSensor:
    """The sensor of one stream.

    Args:
        name: of the sensor.
        job_name: of the job whose runs it requests.
        op_name: of the step that takes a `StreamRunConfig`.
        positions: returns the positions, given the resources.
        limits: bounds of its runs.
        worth_splitting: fewer messages than this are stored sooner than a second run has started.
    """

    name: str
    job_name: str
    op_name: str
    positions: Callable[[Any], StreamPositions]
    limits: StreamLimits
    worth_splitting: int


def scheduled_checks(
    name: str, checks: Sequence[dg.AssetChecksDefinition], cron: str, description: str
) -> dg.Definitions:
    """Return the checks of a stream, the job that runs them, and its schedule.

    Args:
        name: of the stream.
        checks: of its assets.
        cron: when they run.
        description: of the job.
    """
    job = dg.define_asset_job(f"{name}_checks", selection=dg.AssetSelection.checks(*checks), description=description)
    schedule = running_schedule(f"{job.name}_every_quarter_hour", job, cron)
    return dg.Definitions(asset_checks=checks, jobs=[job], schedules=[schedule])


def stream_sensor(stream: StreamSensor) -> dg.SensorDefinition:
    """Create the sensor of a stream."""
    described = "Requests runs over the messages that the sink does not have yet."
    return queue_sensor(stream.name, stream.job_name, described, partial(tick, stream))


def tick(
    stream: StreamSensor, context: dg.SensorEvaluationContext, services: StreamResources
) -> dg.SensorResult | dg.SkipReason:
    """Request runs over the partitions whose sink is behind their topic, or that a dead run has left."""
    positions, saved = stream.positions(services), Positions.from_cursor(context.cursor)
    wait_seconds = services.settings.file_ingest.tick_wait_seconds
    backlog = services.range_reader.backlog(positions.topic, positions.saved(), wait_seconds)
    if backlog is None:
        return dg.SkipReason(f"Topic {positions.topic} does not exist{' any more' if positions.current() else ' yet'}.")
    if saved is not None:
        # Commit only after the broker has answered: with an unavailable broker, the commit blocks the process.
        services.reader.commit(positions.topic, _stored_by_all(services, positions, saved))
    for notice in backlog.notices:
        logger.warning("topic_notice", topic=positions.topic, notice=notice)
    current = positions.begin(backlog, datetime.now(UTC))
    seen = Positions(backlog.topic_id, {partition: one.next_offset for partition, one in current.items()})
    # An unfinished attempt may have left hours unreported or the table unrepaired.
    behind = [one for one in current.values() if one.attempts or one.next_offset < backlog.ends[one.partition]]
    requests, reason = (
        _requests(context.instance, services, positions, stream, behind, backlog.ends) if behind else ([], None)
    )
    skipped = None if requests else reason or f"Nothing new on {positions.topic}."
    return dg.SensorResult(run_requests=requests, cursor=seen.to_cursor(), skip_reason=skipped)


def end_of(position: SinkPosition, end: int, limit: int) -> int:
    """Return the end offset of a run; half as far after each attempt that did not move the position.

    So a message that kills its process is finally in its own run.
    """
    return min(end, position.next_offset + max(1, limit >> min(position.attempts, 62)))


def _requests(  # noqa: PLR0913, PLR0917 - all that a tick knows
    instance: dg.DagsterInstance,
    services: Runtime,
    positions: StreamPositions,
    stream: StreamSensor,
    behind: Sequence[SinkPosition],
    ends: Mapping[int, int],
) -> tuple[list[dg.RunRequest], str | None]:
    runs = instance.get_runs(dg.RunsFilter(job_name=stream.job_name, statuses=UNFINISHED_RUNS), limit=MAX_RUNS)
    if any(PARTITIONS_TAG not in run.tags for run in runs):
        return [], "A run that was started by hand stores all partitions."
    busy = {int(partition) for run in runs for partition in run.tags[PARTITIONS_TAG].split(",")}
    free = [one for one in behind if one.partition not in busy]
    if orphans := [one for one in free if one.run_id and not _is_alive(instance, one.run_id)]:
        _fail_orphans(instance, services, positions, orphans)
        return [], "A run has ended before its partitions were stored; they are requested again."
    now = datetime.now(UTC)
    due = {one.partition: one for one in free if one.is_due(now) and not one.run_id}
    if not due:
        return [], "Messages are being stored." if busy else "Partitions wait for their next attempt."
    capacity = services.available_slots(len(runs), stream.limits.max_parallel_batches)
    if not capacity.batches:
        return [], capacity.reason
    waiting = {partition: max(0, ends[partition] - one.next_offset) for partition, one in due.items()}
    shares = split(waiting, capacity.batches, stream.worth_splitting)
    each = [[due[partition] for partition in share] for share in shares]
    return [
        _request(positions, stream, share, ends, stream.limits.batch_messages // len(share)) for share in each
    ], None


def _request(
    positions: StreamPositions, stream: StreamSensor, share: Sequence[SinkPosition], ends: Mapping[int, int], limit: int
) -> dg.RunRequest:
    bounds = {
        str(one.partition): end_of(one, ends[one.partition], max(1, limit))
        for one in sorted(share, key=attrgetter("partition"))
    }
    offsets = sum(bounds[str(one.partition)] - one.next_offset for one in share)
    batch_id = digest_of(*((str(one), one.topic_id, one.next_offset, one.attempts) for one in share))
    tags = batch_tags(positions.stream, batch_id, max(0, offsets)) | {PARTITIONS_TAG: ",".join(bounds)}
    # Use no run key, so that the rest of a failed run is requested again.
    return dg.RunRequest(run_config={"ops": {stream.op_name: {"config": {"end_offsets": bounds}}}}, tags=tags)


def _stored_by_all(services: StreamResources, positions: StreamPositions, saved: Positions) -> Positions:
    """Return the positions, or those of another stream of the same topic where it is behind: they share the group."""
    others = [one.positions for one in services.streams if one.topic == positions.topic]
    found = [other.saved() for other in others if other.stream != positions.stream]
    least = dict(saved.next_offsets)
    for other in (one for one in found if one is not None and one.topic_id == saved.topic_id):
        least = {one: min(offset, other.next_offsets.get(one, offset)) for one, offset in least.items()}
    return Positions(saved.topic_id, least)


def _is_alive(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is not None and not run.is_finished


def _fail_orphans(
    instance: dg.DagsterInstance, services: Runtime, positions: StreamPositions, orphans: Sequence[SinkPosition]
) -> None:
    """Record why runs ended that did not record it themselves: killed, or cut off from the database."""
    for one in orphans:
        run_id = one.run_id or ""
        reason = reason_of_loss(instance, run_id)
        logger.warning("run_ended_early", partition=str(one), reason=reason)
        positions.fail([(one, reason)], run_id, services.settings.retries, datetime.now(UTC))


def gap_check(
    health: StreamHealth, more: Mapping[str, Any] | None = None, *, is_wrong: bool = False
) -> dg.AssetCheckResult:
    """Return the result of `no_gap_in_offsets`.

    Args:
        health: of the stream.
        more: metadata of its sink.
        is_wrong: the sink lacks rows.
    """
    wrong = bool(health.failing or health.late or is_wrong)
    return WholeAssetResult(
        passed=not (wrong or health.lost),
        # Messages that retention removed cannot be recovered: only warn.
        severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
        metadata={**health.metadata(), **(more or {})},
    )


def raise_failure(run: StreamRun) -> None:
    """Fail the run of a stream that was not stored up to the requested offsets.

    Raises:
        Failure: with the first reason.
    """
    if run.failure is not None:
        error_class = run.failure.error_class
        raise dg.Failure(description=str(run.failure), metadata={"error_class": error_class}, allow_retries=False)
