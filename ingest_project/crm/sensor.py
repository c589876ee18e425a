"""The sensor on `sales_events`: what waits becomes offset ranges in the ledger, and a few runs over them.

A tick reads no message. It plans ranges from the ledger's last one, or the saved cursor where there is none, and asks
for runs over what is due. Killed before Dagster has saved its requests, the next tick finds the ranges planned and asks
for them again; killed after that, Dagster starts the runs itself. What a dead run left is due again after a pause.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from ingest_project.batches import BATCH_ID_TAG, BATCH_SIZE_TAG, BATCH_TAG, release_abandoned
from ingest_project.crm.assets import run_config
from ingest_project.crm.ranges import Batch, batches_of, plan
from ingest_project.kafka.positions import Positions
from ingest_project.logs import get_logger
from ingest_project.resources import Services

if TYPE_CHECKING:
    from ingest_project.kafka.offset_ranges import Backlog

logger = get_logger(__name__)

CRM = "crm"
MOST_DUE = 1_000


def sales_events_sensor(job: dg.UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """The sensor that stores CRM messages.

    Args:
        job: that stores a batch of ranges.
    """

    @dg.sensor(
        name="sales_events_sensor",
        job=job,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks for runs over the messages that arrive on sales_events.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
    ) -> dg.SensorResult | dg.SkipReason:
        if hindrance := services.what_hinders():
            return dg.SkipReason(hindrance)
        return tick(context, services)

    return sensor


def tick(context: dg.SensorEvaluationContext, services: Services) -> dg.SensorResult | dg.SkipReason:
    """Plan what waits, and ask for runs over what is due."""
    settings = services.settings
    topic, ledger = settings.topics.sales_events, services.stream_ranges
    saved = Positions.from_cursor(context.cursor)
    backlog = services.range_reader.backlog(topic, saved, settings.file_ingest.tick_wait_seconds)
    if backlog is None:
        return dg.SkipReason(f"Topic {topic} does not exist yet.")
    if saved is not None:
        services.reader.commit(topic, saved)
    for notice in backlog.notices:
        logger.warning("topic_notice", topic=topic, notice=notice)
    positions = _plan(services, topic, saved, backlog)
    release_abandoned(context.instance, ledger, topic, settings.retries)
    most = 2 * settings.crm.max_parallel_batches
    room = services.room_beside(services.stream_ranges.in_flight_batches(topic), most)
    requests = request_due(services, topic, room.batches)
    skip_reason = None if requests else room.reason or f"Nothing new on {topic}."
    return dg.SensorResult(run_requests=requests, cursor=positions.to_cursor(), skip_reason=skip_reason)


def _plan(services: Services, topic: str, saved: Positions | None, backlog: Backlog) -> Positions:
    """Enter in the ledger what is to be read; returns the positions to save."""
    ledger, now = services.stream_ranges, datetime.now(UTC)
    generation = backlog.generation or ledger.latest_life(topic, backlog.ends)
    same_life = saved is not None and saved.generation == backlog.generation
    ledger.reopen_unsaved(topic, generation, saved.next_offsets if saved and same_life else {}, now)
    planned_ends = ledger.planned_ends(topic, generation, backlog.starts)
    planned = plan(topic, generation, backlog, planned_ends, services.settings.crm.batch_messages)
    ledger.plan(planned.ranges, planned.lost, now)
    return Positions(backlog.generation, planned.next_offsets)


def request_due(services: Services, topic: str, free: int) -> list[dg.RunRequest]:
    """Ask for runs over ranges that are due, at most so many."""
    if not free:
        return []
    settings, ledger = services.settings.crm, services.stream_ranges
    now = datetime.now(UTC)
    due = ledger.get_many([range_.key for range_ in ledger.due(topic, limit=MOST_DUE, now=now)])
    batches = batches_of(due, settings.batch_messages, settings.max_parallel_batches)[:free]
    # All or none: whoever else looks after this topic can only have taken the whole batch.
    return [_run_request(one) for one in batches if len(ledger.request(one.batch_id, one.keys, now)) == len(one.keys)]


def _run_request(batch: Batch) -> dg.RunRequest:
    tags = {BATCH_TAG: CRM, BATCH_ID_TAG: batch.batch_id, BATCH_SIZE_TAG: str(batch.offsets)}
    config = run_config([record.offsets for record in batch.records])
    return dg.RunRequest(run_key=batch.batch_id, run_config=config, tags=tags)
