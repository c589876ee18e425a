"""The sensor on `events.raw`, or the event hub in its place: what arrives becomes runs that go on to the store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import dagster as dg

from ingest_project.attachments.catalog import hour_of_arrival
from ingest_project.attachments.queue.events import EventArrival
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.contracts.attachments import AttachmentEvent, decode_attachment_event
from ingest_project.core.keys import digest_of
from ingest_project.platform.kafka.consumer import TopicReader
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.work_queue.batches import request_batches, requeue_orphaned, split_evenly
from ingest_project.platform.work_queue.consume import ConsumedMessage, Queue, consume
from ingest_project.platform.work_queue.sensor import queue_sensor

EVENTS = "attachment_events"
SMALLEST_BATCH_WORTH_SPLITTING = 200
# What Dagster is never told twice: a batch has no partition of its own, also when it is of a single event.


def attachment_events_sensor(job_name: str) -> dg.SensorDefinition:
    """The sensor that takes attachment events.

    Args:
        job_name: of the job that takes their addresses out, downloads and stores.
    """
    return queue_sensor(
        "attachment_events_sensor",
        job_name,
        "Asks for runs over the events that arrive on events.raw, or on the event hub in its place.",
        tick,
    )


def tick(context: dg.SensorEvaluationContext, services: AttachmentResources) -> dg.SensorResult | dg.SkipReason:
    """Take what has arrived, and ask for runs over what is due."""
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
    positions = consume(services, queue, Positions.from_cursor(context.cursor), partial(_store, services))
    requeue_orphaned(context.instance, services.attachment_events, topic, settings.retries)
    most = 2 * settings.attachments.max_parallel_batches
    room = services.available_slots(services.attachment_events.in_flight_batches(topic), most)
    requests = request_due(services, topic, room.batches)
    return dg.SensorResult(
        run_requests=requests,
        cursor=positions.to_cursor(),
        skip_reason=None if requests else room.reason or f"Nothing new on {topic}.",
    )


def _store(services: AttachmentResources, arrived: Sequence[ConsumedMessage[AttachmentEvent]]) -> None:
    now = datetime.now(UTC)
    services.attachment_events.record([arrival_of(one, now) for one in arrived], now)


def topic_and_reader(services: AttachmentResources) -> tuple[str, TopicReader]:
    """Where events are read: `events.raw` of the main cluster, or the event hub in its place."""
    if services.settings.attachments.event_source == "eventhub":
        return services.event_hub.topic, services.event_hub_reader
    return services.settings.topics.events_raw, services.reader


def arrival_of(arrived: ConsumedMessage[AttachmentEvent], now: datetime) -> EventArrival:
    """An event as the ledger keeps it, under a key made of its position: read again, it is the same event."""
    event, intake = arrived.message, arrived.intake
    return EventArrival(
        event_key=digest_of(*intake.position),
        hour=hour_of_arrival(intake.at, now),
        trace_id=event.trace_id,
        domain=event.domain,
        event_type=event.event_type,
        body=(arrived.received.value or b"").decode("utf-8", "replace"),
        intake=intake,
    )


def request_due(services: AttachmentResources, topic: str, free: int) -> list[dg.RunRequest]:
    """Ask for runs over events that are due, at most so many."""
    if not free:
        return []
    settings = services.settings.attachments
    now = datetime.now(UTC)
    due = [e.key for e in services.attachment_events.due(topic, limit=free * settings.batch_events, now=now)]
    batches = split_evenly(due, settings.batch_events, settings.max_parallel_batches, SMALLEST_BATCH_WORTH_SPLITTING)
    return request_batches(EVENTS, services.attachment_events, batches[:free], now, partitioned=False)
