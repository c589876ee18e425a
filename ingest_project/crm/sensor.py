"""The sensor on `sales_events`: what waits becomes offset ranges in the ledger, and a few runs over them.

A tick reads no message. It plans ranges from the ledger's last one, or the saved cursor where there is none, and asks
for runs over what is due. Killed before Dagster has saved its requests, the next tick finds the ranges planned and asks
for them again; killed after that, Dagster starts the runs itself. What a dead run left is due again after a pause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest_project.crm.assets import ASSETS_OP
from ingest_project.crm.ranges import batches_of
from ingest_project.streams import ticks
from ingest_project.ticking import ticking_sensor

if TYPE_CHECKING:
    from datetime import datetime

    import dagster as dg

    from ingest_project.resources import Services
    from ingest_project.streams.runs import Batch

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
    settings, topic, ledger = services.settings, services.settings.topics.sales_events, services.stream_ranges

    def batches(now: datetime) -> list[Batch]:
        due = ledger.get_many([range_.key for range_ in ledger.due(topic, limit=MOST_DUE, now=now)])
        return batches_of(due, settings.crm.batch_messages, settings.crm.max_parallel_batches)

    intake = ticks.Intake(
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
