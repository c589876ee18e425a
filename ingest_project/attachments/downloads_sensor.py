"""The sensors on `downloads.pending` and the retry topics: tasks of whoever sent them, each when its time has come.

What waits is in the ledger, by the time it is due; the topics are read on as they fill. So the first task that is not
due yet holds nobody up, and ten thousand that wait cost a tick no more than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import dagster as dg
import msgspec

from ingest_project.attachments.assets import ORIGIN, ORIGIN_HEADER
from ingest_project.attachments.catalog import ATTACHMENTS
from ingest_project.attachments.queue.record import RETRY_LANE, TaskArrival
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.attachments.results import DUE_HEADER
from ingest_project.contracts.attachments import DownloadTask, attachment_key, decode_download_task
from ingest_project.core.settings import AttachmentSettings
from ingest_project.platform.http.client import LONGEST_RETRY_AFTER
from ingest_project.platform.http.file_names import chosen_file_name
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.work_queue.batches import request_batches, requeue_orphaned, split_evenly
from ingest_project.platform.work_queue.consume import ConsumedMessage, Queue, consume
from ingest_project.platform.work_queue.queue import Due
from ingest_project.platform.work_queue.sensor import queue_sensor

SMALLEST_BATCH_WORTH_SPLITTING = 200
# One attachment may be what takes its run down: each run that is lost makes the next ones so much smaller, until it is
# alone. At once alone would make thousands of runs of one batch that a database's hiccup took down.
SMALLER_AFTER_A_LOST_RUN = 8
# A lost run is no attempt of the server's: how often that may happen is for the run to say, see
# `downloading.RunLostError`.
NEVER = 2**31 - 1
# How much the clock of whoever sent a task may be ahead of ours.
CLOCKS_APART = timedelta(minutes=10)
# Characters of an ISO 8601 time, microseconds and zone included.
LONGEST_TIME = 40


def downloads_sensor(name: str, queue_name: str, job_name: str) -> dg.SensorDefinition:
    """A sensor that serves one queue of downloads.

    Args:
        name: of the sensor.
        queue_name: `pending` for first attempts, `retry` for the others.
        job_name: of the job that downloads and stores a batch.
    """
    return queue_sensor(
        name,
        job_name,
        f"Asks for runs over downloads that are {'due again' if queue_name == RETRY_LANE else 'new'}.",
        lambda context, services: tick(context, services, queue_name),
        # Those that wait for a first message inside the tick take longer than a second anyway.
        every_seconds=5 if queue_name == RETRY_LANE else 1,
    )


def tick(
    context: dg.SensorEvaluationContext, services: AttachmentResources, queue_name: str
) -> dg.SensorResult | dg.SkipReason:
    """Take what has arrived on the lane's topics, and ask for runs over what is due in it."""
    settings = services.settings
    cursors = _cursors(context.cursor)
    for topic in topics_of(services, queue_name):
        cursors[topic] = _take(context.instance, services, topic, cursors.get(topic))
    patient = settings.retries.model_copy(update={"max_attempts": NEVER})
    requeue_orphaned(context.instance, services.attachments, queue_name, patient)
    most = 2 * settings.attachments.max_parallel_batches
    room = services.available_slots(services.attachments.in_flight_batches(queue_name), most)
    requests = request_due(services, queue_name, room.batches)
    return dg.SensorResult(
        run_requests=requests,
        cursor=msgspec.json.encode(cursors).decode(),
        skip_reason=None if requests else room.reason or f"Nothing due among {queue_name} downloads.",
    )


def topics_of(services: AttachmentResources, queue_name: str) -> Sequence[str]:
    """The topics whose tasks go into a lane."""
    topics = services.settings.topics
    return topics.downloads_retry if queue_name == RETRY_LANE else (topics.downloads_pending,)


def arrival_of(arrived: ConsumedMessage[DownloadTask], services: AttachmentResources) -> TaskArrival:
    """A task as the ledger keeps it; one without a destination gets its domain's."""
    task, received = arrived.message, arrived.received
    key = attachment_key(task.trace_id, task.attachment_url)
    delays = services.settings.attachments.retry_delays
    # As far as the retry tiers of retries goes: a stranger may say any number.
    task = msgspec.structs.replace(task, attempt=min(task.attempt, len(delays) + 1))
    if not task.destination_path:
        task = msgspec.structs.replace(task, destination_path=_destination(task, arrived, services))
    return TaskArrival(
        attachment_key=key,
        task=task,
        raw=(received.value or b"").decode("utf-8", "replace"),
        intake=arrived.intake,
        due_at=due_at(received.header(DUE_HEADER), delays, datetime.now(UTC)),
        is_repeat=received.header(ORIGIN_HEADER) != ORIGIN,
    )


def due_at(header: bytes | None, delays: Sequence[timedelta], now: datetime) -> datetime | None:
    """When a task says that it is due, and no later than a retry of ours may be; None: at once.

    A time that has passed is none: it would put the task before those that wait longest.

    Args:
        header: ISO 8601; UTC where it names no zone.
        delays: of the retry topics.
        now: when the task was read.
    """
    try:
        moment = datetime.fromisoformat((header or b"")[:LONGEST_TIME].decode())
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return min(moment, now + max(*delays, LONGEST_RETRY_AFTER) + CLOCKS_APART) if moment > now else None


def request_due(services: AttachmentResources, queue_name: str, free: int) -> list[dg.RunRequest]:
    """Ask for runs over attachments of a queue that are due, at most so many."""
    if not free:
        return []
    settings = services.settings.attachments
    now = datetime.now(UTC)
    due = services.attachments.due(queue_name, limit=free * settings.batch_downloads, now=now)
    batches = batches_of(due, settings)[:free]
    # Without a partition also where it is a single one: see `batch_job`.
    return request_batches(ATTACHMENTS, services.attachments, batches, now, partitioned=False)


def batches_of(due: Sequence[Due], settings: AttachmentSettings) -> list[list[str]]:
    """Cut due attachments into batches, smaller ones of those whose runs were lost."""
    by_lost_runs: dict[int, list[str]] = {}
    for one in due:
        by_lost_runs.setdefault(one.attempts, []).append(one.key)
    batches = []
    for lost_runs, keys in sorted(by_lost_runs.items()):
        largest = max(1, settings.batch_downloads // SMALLER_AFTER_A_LOST_RUN**lost_runs)
        batches += split_evenly(keys, largest, settings.max_parallel_batches, SMALLEST_BATCH_WORTH_SPLITTING)
    return batches


def _take(instance: dg.DagsterInstance, services: AttachmentResources, topic: str, saved: str | None) -> str:
    settings = services.settings
    waits = topic == settings.topics.downloads_pending
    queue = Queue(
        topic,
        settings.topics.downloads_dlq,
        decode_download_task,
        max_messages=settings.attachments.tick_max_messages,
        wait_seconds=settings.file_ingest.tick_wait_seconds if waits else 0,
    )
    return consume(services, queue, Positions.from_cursor(saved), partial(_store, instance, services)).to_cursor()


def _store(
    instance: dg.DagsterInstance, services: AttachmentResources, arrived: Sequence[ConsumedMessage[DownloadTask]]
) -> None:
    arrivals = services.attachments.under_known_keys([arrival_of(one, services) for one in arrived])
    most_replays = services.settings.attachments.max_replays
    services.attachments.record(arrivals, most_replays, datetime.now(UTC))
    # Those that were known before too: a tick that ended between the two lines left them without a partition.
    instance.add_dynamic_partitions(ATTACHMENTS, list(dict.fromkeys(one.attachment_key for one in arrivals)))


def _cursors(text: str | None) -> dict[str, str]:
    return msgspec.json.decode(text, type=dict[str, str]) if text else {}


def _destination(task: DownloadTask, arrived: ConsumedMessage[DownloadTask], services: AttachmentResources) -> str:
    occurred_at = task.occurred_at or arrived.intake.at or datetime(1970, 1, 1, tzinfo=UTC)
    return services.destinations.path(
        domain=task.domain,
        trace_id=task.trace_id,
        file_name=chosen_file_name(task.file_name, None, task.attachment_url),
        occurred_at=occurred_at if occurred_at.tzinfo else occurred_at.replace(tzinfo=UTC),
        attachment_url=task.attachment_url,
        event_type=task.event_type,
    )
