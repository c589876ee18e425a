"""The sensor that polls Eventhouse: each new row of a domain's query becomes an event on `events.raw`, once.

A page is published under the ids of its events before the position behind it is saved: killed in between, the next look
reads the same page and publishes what is missing of it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from ingest_project.errors import PermanentError, TransientError
from ingest_project.eventhouse.polling import Page, poll, position_from_json
from ingest_project.eventhouse.queries import DomainQuery, load_queries
from ingest_project.kafka.publishing import publish_once
from ingest_project.kafka.writing import Outgoing
from ingest_project.logs import get_logger
from ingest_project.resources import Services

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = get_logger(__name__)

# A query may take 35 seconds, a tick 60: none is begun later than this.
SECONDS_TO_BEGIN_IN = 15.0


@dg.sensor(
    name="eventhouse_sensor",
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reads new events from Eventhouse and publishes them on events.raw, where EVENT_SOURCE=eventhouse.",
)
def eventhouse_sensor(context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]) -> dg.SensorResult:
    """Look for new events of every domain, where a look is due."""
    settings = services.settings
    if settings.attachments.event_source != "eventhouse":
        return dg.SensorResult(skip_reason="EVENT_SOURCE is not eventhouse.")
    if hindrance := services.what_hinders():
        return dg.SensorResult(skip_reason=hindrance)
    now = datetime.now(UTC)
    if context.cursor and (now.timestamp() - float(context.cursor)) < settings.eventhouse.poll_seconds:
        return dg.SensorResult(skip_reason="The next look is not due yet.", cursor=context.cursor)
    published, more = look(services, load_queries(settings.eventhouse.queries).values())
    return dg.SensorResult(skip_reason=f"{published} events published.", cursor=None if more else str(now.timestamp()))


def look(services: Services, queries: Iterable[DomainQuery]) -> tuple[int, bool]:
    """Publish what is new in each domain, as long as there is time.

    Returns:
        how many events were read, and whether more are known to be there.

    Raises:
        IngestError: no domain could be read; the last reason.
    """
    stop_at = time.monotonic() + SECONDS_TO_BEGIN_IN
    waiting, failures, published, more = list(queries), [], 0, False
    looked_at = len(waiting)
    while waiting:
        if time.monotonic() > stop_at:
            more = True
            break
        query = waiting.pop(0)
        try:
            page = next_page(services, query)
        except (TransientError, PermanentError) as error:
            logger.warning("eventhouse_not_read", domain=query.domain, reason=str(error))
            services.eventhouse_positions.fail(query.domain, str(error), datetime.now(UTC))
            failures.append(error)
            continue
        published += len(page.events)
        if page.more:
            waiting.append(query)  # the domains take turns
    if failures and len(failures) == looked_at:
        raise failures[-1]
    return published, more


def next_page(services: Services, query: DomainQuery) -> Page:
    """Read and publish one page of a domain, and save the position behind it."""
    saved = services.eventhouse_positions.get(query.domain)
    page = poll(services.eventhouse, query, position_from_json(saved) if saved else None)
    messages = [
        (event.event_id, Outgoing(event.value, event.trace_id.encode(), (("trace-id", event.trace_id.encode()),)))
        for event in page.events
    ]
    publish_once(services.writer, services.reader, services.outbox, services.settings.topics.events_raw, messages)
    for row in page.refused:
        logger.warning("eventhouse_row_refused", domain=query.domain, event_id=row.event_id, reason=row.reason)
    services.eventhouse_positions.advance(
        query.domain, page.position.to_json(), len(page.events), len(page.refused), datetime.now(UTC)
    )
    return page
