"""Sensors on Eventhouse, on `events.raw` (or an event hub), and on `downloads.pending` and the retry topics.

Events become runs that extract, download and store. Tasks that were sent by others, or wait for a retry, become runs
that download and store. What waits is in the queue, by the time it is due; the topics are consumed as they fill. So the
first task that is not due yet delays no other, and ten thousand that wait cost a tick no more than none.

Each new row of a domain's Eventhouse query becomes an event on `events.raw`, once. A page is published under the ids of
its events before the position behind it is saved: killed in between, the next tick reads the same page and publishes
what is missing of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import dagster as dg
from msgspec.structs import replace

from ingest_project.attachments import AttachmentResources
from ingest_project.attachments.assets import ORIGIN, ORIGIN_HEADER
from ingest_project.attachments.catalog import ATTACHMENTS, hour_of_arrival
from ingest_project.attachments.eventhouse.polling import Page, poll, position_from_json
from ingest_project.attachments.eventhouse.queries import DomainQuery, PolledEvent, RefusedRow, load_queries
from ingest_project.attachments.queue import EVENTHOUSE_SENSOR, RETRY_QUEUE, EventArrival, TaskArrival
from ingest_project.attachments.results import DUE_HEADER
from ingest_project.contracts.attachments import (
    AttachmentEvent,
    DownloadTask,
    attachment_key,
    decode_attachment_event,
    decode_download_task,
)
from ingest_project.core.errors import PermanentError
from ingest_project.core.items import as_utc, digest_of, grouped, store_bisecting
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import AttachmentSettings
from ingest_project.platform import tracing
from ingest_project.platform.errors import error_class_of, is_item_fault, reason_of, traceback_of
from ingest_project.platform.http.client import LONGEST_RETRY_AFTER
from ingest_project.platform.http.file_names import chosen_file_name
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.kafka.publisher import publish_once
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project.platform.work_queue.consume import ConsumedMessage, Queue, dead_letter_message
from ingest_project.platform.work_queue.queue import Due
from ingest_project.platform.work_queue.sensor import Feed, QueueSensor, batches_of_due, queue_sensor, split_evenly

EVENTS = "attachment_events"
# One attachment may kill its run: each lost run makes the next ones smaller by this factor, until the attachment is
# alone. Alone at once would make thousands of runs of one batch that a database's hiccup took down.
SMALLER_AFTER_A_LOST_RUN = 8
# A lost run does not count as a download attempt; `downloading.RunLostError` limits how often it may happen.
NEVER = 2**31 - 1
# Interval of the sensors that work by minutes: retries that are due, and polls of Eventhouse.
UNHURRIED_SECONDS = 5
# How much the clock of a task's sender may be ahead of ours.
CLOCK_SKEW = timedelta(minutes=10)
# Characters of an ISO 8601 time, microseconds and zone included.
LONGEST_TIME = 40
UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)


def attachment_events_sensor(job_name: str) -> dg.SensorDefinition:
    """Create the sensor that consumes attachment events, in runs of the job that extracts, downloads and stores."""

    def tick(context: dg.SensorEvaluationContext, services: AttachmentResources) -> dg.SensorResult:
        settings = services.settings
        topic, reader = topic_and_reader(services)
        queue = Queue(
            topic,
            settings.topics.events_raw_dlq,
            decode_attachment_event,
            max_messages=settings.attachments.tick_max_messages,
            wait_seconds=settings.file_ingest.tick_wait_seconds,
            reader=reader,
        )
        batch_events, parallel = settings.attachments.batch_events, settings.attachments.max_parallel_batches
        events = QueueSensor(
            queue=services.attachment_events,
            queue_name=topic,
            kind=EVENTS,
            cut=partial(batches_of_due, largest=batch_events, parallel=parallel),
            batch_entries=batch_events,
            max_batches=2 * parallel,
            retries=settings.retries,
            feeds=[Feed(queue, lambda arrived: [event_arrival(one, datetime.now(UTC)) for one in arrived])],
            # Events are shown under the hour in which they arrived.
            has_partitions=False,
            runs_have_partitions=False,
        )
        return events.tick(context, services)

    description = "Requests runs over the events that arrive on events.raw, or on the event hub that replaces it."
    return queue_sensor("attachment_events_sensor", job_name, description, tick)


def downloads_sensor(name: str, queue_name: str, job_name: str) -> dg.SensorDefinition:
    """Create a sensor that serves one part of the queue of attachments.

    Args:
        name: name of the sensor.
        queue_name: `pending` for first attempts, `retry` for the others.
        job_name: name of the job that downloads and stores a batch.
    """

    def tick(context: dg.SensorEvaluationContext, services: AttachmentResources) -> dg.SensorResult:
        settings = services.settings.attachments
        downloads = QueueSensor(
            queue=services.attachments,
            queue_name=queue_name,
            kind=ATTACHMENTS,
            cut=partial(cut_downloads, settings=settings),
            batch_entries=settings.batch_downloads,
            max_batches=2 * settings.max_parallel_batches,
            retries=services.settings.retries.model_copy(update={"max_attempts": NEVER}),
            feeds=[_tasks(services, topic) for topic in topics_of(services, queue_name)],
            # Even a run over a single attachment has no partition: see `attachments.definitions`.
            runs_have_partitions=False,
        )
        return downloads.tick(context, services)

    return queue_sensor(
        name,
        job_name,
        f"Requests runs over downloads that are {'due again' if queue_name == RETRY_QUEUE else 'new'}.",
        tick,
        # Ticks that wait for a first message take longer than a second anyway.
        every_seconds=UNHURRIED_SECONDS if queue_name == RETRY_QUEUE else 1,
    )


def topic_and_reader(services: AttachmentResources) -> tuple[str, TopicReader]:
    """Return the topic of events and its reader: `events.raw`, or the event hub that replaces it."""
    if services.settings.attachments.event_source == "eventhub":
        return services.event_hub.topic, services.event_hub_reader
    return services.settings.topics.events_raw, services.reader


def topics_of(services: AttachmentResources, queue_name: str) -> Sequence[str]:
    """Return the topics whose tasks go into a part of the queue."""
    topics = services.settings.topics
    return topics.downloads_retry if queue_name == RETRY_QUEUE else (topics.downloads_pending,)


def event_arrival(arrived: ConsumedMessage[AttachmentEvent], now: datetime) -> EventArrival:
    """Return an event as the queue keeps it, under a key made of its position: read again, it is the same event."""
    event, kafka_position = arrived.message, arrived.kafka_position
    return EventArrival(
        event_key=digest_of(*kafka_position.position),
        hour=hour_of_arrival(kafka_position.at, now),
        trace_id=event.trace_id,
        domain=event.domain,
        event_type=event.event_type,
        body=(arrived.received.value or b"").decode("utf-8", "replace"),
        kafka_position=kafka_position,
    )


def task_arrival(arrived: ConsumedMessage[DownloadTask], services: AttachmentResources) -> TaskArrival:
    """Return a task as the queue keeps it; one without a destination gets its domain's."""
    task, received, settings = arrived.message, arrived.received, services.settings.attachments
    # At most one more than there are retry tiers: the number comes from the sender.
    task = replace(task, attempt=min(task.attempt, len(settings.retry_delays) + 1))
    if not task.destination_path:
        task = replace(task, destination_path=_destination(task, arrived, services))
    return TaskArrival(
        attachment_key=attachment_key(task.trace_id, task.attachment_url),
        task=task,
        raw=(received.value or b"").decode("utf-8", "replace"),
        kafka_position=arrived.kafka_position,
        due_at=due_at(received.header(DUE_HEADER), settings.retry_delays, datetime.now(UTC)),
        max_replays=0 if received.header(ORIGIN_HEADER) == ORIGIN else settings.max_replays,
    )


def due_at(header: bytes | None, delays: Sequence[timedelta], now: datetime) -> datetime | None:
    """Return the time at which a task is due, no later than a retry of ours may be; None: immediately.

    A time that has passed counts as none: it would put the task before those that wait longest.

    Args:
        header: ISO 8601; UTC where it names no zone.
        delays: delays of the retry topics.
        now: when the task was read.
    """
    try:
        moment = as_utc(datetime.fromisoformat((header or b"")[:LONGEST_TIME].decode()))
    except (ValueError, OverflowError):
        return None
    return min(moment, now + max(*delays, LONGEST_RETRY_AFTER) + CLOCK_SKEW) if moment > now else None


def cut_downloads(due: Sequence[Due], settings: AttachmentSettings) -> list[list[str]]:
    """Cut due attachments into batches, smaller ones of those whose runs were lost."""
    batches = []
    for lost_runs, keys in sorted(grouped((one.attempts, one.key) for one in due).items()):
        largest = max(1, settings.batch_downloads // SMALLER_AFTER_A_LOST_RUN**lost_runs)
        batches += split_evenly(keys, largest, settings.max_parallel_batches)
    return batches


def _tasks(services: AttachmentResources, topic: str) -> Feed[DownloadTask]:
    settings = services.settings
    waits = topic == settings.topics.downloads_pending
    queue = Queue(
        topic,
        settings.topics.downloads_dlq,
        decode_download_task,
        max_messages=settings.attachments.tick_max_messages,
        wait_seconds=settings.file_ingest.tick_wait_seconds if waits else 0,
    )
    return Feed(queue, lambda arrived: [task_arrival(one, services) for one in arrived])


def _destination(task: DownloadTask, arrived: ConsumedMessage[DownloadTask], services: AttachmentResources) -> str:
    return services.destinations.path(
        domain=task.domain,
        trace_id=task.trace_id,
        file_name=chosen_file_name(task.file_name, None, task.attachment_url),
        occurred_at=as_utc(task.occurred_at or arrived.kafka_position.at or UNKNOWN_TIME),
        attachment_url=task.attachment_url,
        event_type=task.event_type,
    )


logger = get_logger(__name__)

# A query may take 35 seconds and a tick 60, so no query starts later than this.
SECONDS_TO_BEGIN_IN = 15.0


class RowRejectedError(PermanentError):
    """A row of Eventhouse that cannot become an event."""

    def __init__(self, row: RefusedRow) -> None:
        self._error_class = row.error_class
        super().__init__(row.reason)

    @property
    def error_class(self) -> str:
        """The class of the row's own failure."""
        return self._error_class


def tick(context: dg.SensorEvaluationContext, services: AttachmentResources) -> dg.SensorResult | dg.SkipReason:
    """Poll every domain for new events, where a poll is due."""
    settings = services.settings
    if settings.attachments.event_source != "eventhouse":
        return dg.SkipReason("EVENT_SOURCE is not eventhouse.")
    now = datetime.now(UTC)
    if not is_due(context.cursor, now, settings.eventhouse.poll_seconds):
        return dg.SkipReason("The next poll is not due yet.")
    queries, problems = load_queries(settings.eventhouse.queries)
    for problem in problems:
        logger.error("eventhouse_query_left_out", reason=str(problem))
    if problems and not queries:
        raise problems[0]
    published, more = poll_domains(services, queries.values())
    notes = [f"{published} events published.", *(f"Left out: {problem}" for problem in problems)]
    return dg.SensorResult(skip_reason=" ".join(notes), cursor=None if more else str(now.timestamp()))


eventhouse_sensor = queue_sensor(
    EVENTHOUSE_SENSOR,
    None,
    "Reads new events from Eventhouse and publishes them on events.raw, where EVENT_SOURCE=eventhouse.",
    tick,
    every_seconds=UNHURRIED_SECONDS,
)


def is_due(cursor: str | None, now: datetime, poll_seconds: float) -> bool:
    """Test whether the next poll is due; a last poll in the future was recorded by a clock set back since."""
    since = now.timestamp() - float(cursor) if cursor else poll_seconds
    return since >= poll_seconds or since < 0


def poll_domains(services: AttachmentResources, queries: Iterable[DomainQuery]) -> tuple[int, bool]:
    """Publish the new events of each domain, as long as there is time. The domains take turns, a page each.

    Returns:
        how many events were read, and whether more are known to be there.

    Raises:
        Exception: no domain could be read; the last reason.
    """
    stop_at = time.monotonic() + SECONDS_TO_BEGIN_IN
    waiting = deque(queries)
    domains, published = len(waiting), 0
    failures: list[Exception] = []
    while waiting and time.monotonic() <= stop_at:
        query = waiting.popleft()
        try:
            page = publish_next_page(services, query)
        except Exception as error:
            reason = reason_of(error)
            logger.warning("eventhouse_not_read", domain=query.domain, reason=reason, exc_info=traceback_of(error))
            services.eventhouse_positions.fail(query.domain, reason, datetime.now(UTC))
            failures.append(error)
            continue
        published += len(page.events)
        if page.more:
            waiting.append(query)
    if failures and len(failures) == domains:
        raise failures[-1]
    return published, bool(waiting)


def publish_next_page(services: AttachmentResources, query: DomainQuery) -> Page:
    """Read and publish one page of a domain, and save the position behind it."""
    saved = services.eventhouse_positions.get(query.domain)
    page = poll(services.eventhouse, query, position_from_json(saved) if saved else None)
    refused = [*page.refused, *_publish(services, page.events)]
    for row in refused:
        logger.warning("eventhouse_row_refused", domain=query.domain, event_id=row.event_id, reason=row.reason)
        # The id makes it one dead letter, even if the row is read again.
        received = ConsumerRecord(f"eventhouse:{query.domain}", 0, 0, None, None, row.value, ())
        dead_letters = services.settings.topics.events_raw_dlq
        dead_letter_message(services, dead_letters, [(received, RowRejectedError(row))], row.event_id)
    published = len(page.events) + len(page.refused) - len(refused)
    services.eventhouse_positions.advance(
        query.domain, page.position.to_json(), published, len(refused), datetime.now(UTC)
    )
    return page


def _publish(services: AttachmentResources, events: Sequence[PolledEvent]) -> list[RefusedRow]:
    """Publish events, each once; returns those that no topic accepts."""
    topic = services.settings.topics.events_raw

    def send(part: Sequence[PolledEvent]) -> None:
        messages = [
            (one.event_id, ProducerRecord(one.value, one.trace_id.encode(), tracing.publish(topic, one.trace_id)))
            for one in part
        ]
        publish_once(services.writer, services.reader, services.outbox, topic, messages)

    return [
        RefusedRow(event.event_id, reason_of(error), error_class_of(error), event.value)
        for event, error in store_bisecting(events, send, is_item_fault)
    ]
