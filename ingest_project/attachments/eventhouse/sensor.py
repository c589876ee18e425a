"""The sensor that polls Eventhouse: each new row of a domain's query becomes an event on `events.raw`, once.

A page is published under the ids of its events before the position behind it is saved: killed in between, the next tick
reads the same page and publishes what is missing of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import dagster as dg

from ingest_project.attachments.eventhouse.polling import Page, poll, position_from_json
from ingest_project.attachments.eventhouse.queries import DomainQuery, PolledEvent, RefusedRow, load_queries
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.core.batches import store_bisecting
from ingest_project.core.errors import PermanentError, SettingsError
from ingest_project.core.logging import get_logger
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.kafka.publisher import publish_once
from ingest_project.platform.work_queue.consume import dead_letter_message
from ingest_project.platform.work_queue.item_errors import error_class_of, is_item_fault, reason_of, traceback_of
from ingest_project.platform.work_queue.sensor import queue_sensor

logger = get_logger(__name__)

# A query may take 35 seconds, a tick 60: none is begun later than this.
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
    problems: list[SettingsError] = []
    queries = load_queries(settings.eventhouse.queries, problems)
    for problem in problems:
        logger.error("eventhouse_query_left_out", reason=str(problem))
    if problems and not queries:
        raise problems[0]
    published, more = poll_domains(services, queries.values())
    notes = [f"{published} events published.", *(f"Left out: {problem}" for problem in problems)]
    return dg.SensorResult(skip_reason=" ".join(notes), cursor=None if more else str(now.timestamp()))


eventhouse_sensor = queue_sensor(
    "eventhouse_sensor",
    None,
    "Reads new events from Eventhouse and publishes them on events.raw, where EVENT_SOURCE=eventhouse.",
    tick,
    every_seconds=5,
)


def is_due(cursor: str | None, now: datetime, poll_seconds: float) -> bool:
    """Test whether the next poll is due; a last one that lies in the future was by a clock set back since."""
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
        # A dead letter, once however often the row is read.
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
            (one.event_id, ProducerRecord(one.value, (id_ := one.trace_id.encode()), (("trace-id", id_),)))
            for one in part
        ]
        publish_once(services.writer, services.reader, services.outbox, topic, messages)

    return [
        RefusedRow(event.event_id, reason_of(error), error_class_of(error), event.value)
        for event, error in store_bisecting(events, send, is_item_fault)
    ]
