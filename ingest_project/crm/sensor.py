"""The sensor on `sales_events`: what waits becomes offset ranges in the ledger, and a few runs over them.

A tick reads no message. It plans ranges from the ledger's last one, or the saved cursor where there is none, and asks
for runs over what is due. Killed before Dagster has saved its requests, the next tick finds the ranges planned and asks
for them again; killed after that, Dagster starts the runs itself. What a dead run left is due again after a pause.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from ingest_project.batches import release_abandoned
from ingest_project.crm.assets import ASSETS_OP
from ingest_project.crm.ranges import batches_of
from ingest_project.kafka.positions import Positions
from ingest_project.streams.planning import plan_backlog
from ingest_project.streams.runs import run_request
from ingest_project.ticking import ticking_sensor

if TYPE_CHECKING:
    from ingest_project.resources import Services

CRM = "crm"
MOST_DUE = 1_000
# A tick ends in time however far behind the topic is: the next one goes on.
MOST_RANGES_PER_TICK = 400


def sales_events_sensor(job: dg.UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """The sensor that stores CRM messages.

    Args:
        job: that stores a batch of ranges.
    """
    return ticking_sensor(
        "sales_events_sensor",
        job.name,
        "Asks for runs over the messages that arrive on sales_events.",
        tick,
    )


def tick(context: dg.SensorEvaluationContext, services: Services) -> dg.SensorResult | dg.SkipReason:
    """Plan what waits, and ask for runs over what is due."""
    settings, topic = services.settings, services.settings.topics.sales_events
    positions = plan_backlog(
        services,
        topic,
        Positions.from_cursor(context.cursor),
        size=settings.crm.batch_messages,
        most=MOST_RANGES_PER_TICK,
        wait_seconds=settings.file_ingest.tick_wait_seconds,
    )
    if positions is None:
        return dg.SkipReason(f"Topic {topic} does not exist yet.")
    release_abandoned(context.instance, services.stream_ranges, topic, settings.retries)
    most = 2 * settings.crm.max_parallel_batches
    room = services.room_beside(services.stream_ranges.in_flight_batches(topic), most)
    requests = request_due(services, topic, room.batches)
    skip_reason = None if requests else room.reason or f"Nothing new on {topic}."
    return dg.SensorResult(run_requests=requests, cursor=positions.to_cursor(), skip_reason=skip_reason)


def request_due(services: Services, topic: str, free: int) -> list[dg.RunRequest]:
    """Ask for runs over ranges that are due, at most so many."""
    if not free:
        return []
    settings, ledger = services.settings.crm, services.stream_ranges
    now = datetime.now(UTC)
    due = ledger.get_many([range_.key for range_ in ledger.due(topic, limit=MOST_DUE, now=now)])
    batches = batches_of(due, settings.batch_messages, settings.max_parallel_batches)[:free]
    # All or none: whoever else looks after this topic can only have taken the whole batch.
    taken = [one for one in batches if len(ledger.request(one.batch_id, one.keys, now)) == len(one.keys)]
    return [run_request(CRM, ASSETS_OP, one) for one in taken]
