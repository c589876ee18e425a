"""The sensor on `sales_events`: plans offset ranges and requests runs over them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import dagster as dg

from ingest_project.platform.work_queue.sensor import queue_sensor
from ingest_project.streams import ticks
from ingest_project.streams.crm.assets import ASSETS_OP
from ingest_project.streams.crm.resources import CrmResources
from ingest_project.streams.range_record import RangeRecord
from ingest_project.streams.runs import Batch

# Fewer messages than this are stored sooner than a second run has started.
WORTH_SPLITTING = 10_000
# From the third attempt on a range goes alone: it may be the one that takes its run down.
ATTEMPTS_IN_COMPANY = 2


def batches_of(due: Sequence[RangeRecord], size: int, parallel: int) -> list[Batch]:
    """Put due ranges together for runs: about evenly, at most `size` offsets each, and alone what failed repeatedly.

    A batch is of one life of the topic, which its run is told once.
    """
    fresh = [record for record in due if record.attempts < ATTEMPTS_IN_COMPANY]
    total = sum(len(record.offsets) for record in fresh)
    target = min(size, max(-(-total // parallel), WORTH_SPLITTING))
    batches: list[list[RangeRecord]] = []
    room = 0
    for record in fresh:
        if not batches or room < len(record.offsets) or batches[-1][0].offsets.topic_id != record.offsets.topic_id:
            batches.append([])
            room = target
        batches[-1].append(record)
        room -= len(record.offsets)
    alone = [[record] for record in due if record.attempts >= ATTEMPTS_IN_COMPANY]
    return [Batch(tuple(records)) for records in (*batches, *alone)]


CRM = "crm"
MOST_DUE = 1_000
# A tick ends in time however far behind the topic is: the next one goes on.
MOST_RANGES_PER_TICK = 400


def sales_events_sensor(job: dg.UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """The sensor that stores CRM messages.

    Args:
        job: that stores a batch of ranges.
    """
    return queue_sensor(
        "sales_events_sensor",
        job.name,
        "Asks for runs over the messages that arrive on sales_events.",
        tick,
    )


def tick(context: dg.SensorEvaluationContext, services: CrmResources) -> dg.SensorResult | dg.SkipReason:
    """Plan what waits, and ask for runs over what is due."""
    settings, topic, ledger = services.settings, services.settings.topics.sales_events, services.stream_ranges

    def batches(now: datetime) -> list[Batch]:
        due = ledger.get_many([range_.key for range_ in ledger.due(topic, limit=MOST_DUE, now=now)])
        return batches_of(due, settings.crm.batch_messages, settings.crm.max_parallel_batches)

    intake = ticks.StreamConfig(
        topic=topic,
        what=CRM,
        op=ASSETS_OP,
        range_messages=settings.crm.batch_messages,
        most_ranges=MOST_RANGES_PER_TICK,
        retries=settings.retries,
        most_batches=2 * settings.crm.max_parallel_batches,
        batches=batches,
    )
    return ticks.tick(context, services, intake)
