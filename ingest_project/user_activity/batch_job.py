"""The job of a batch: like the asset, but over the ranges of a batch, whatever hours their events are of."""

import dagster as dg

from ingest_project.resources import Services
from ingest_project.streams.runs import RangesConfig
from ingest_project.user_activity.user_activity_events import EVENTS_OP, store_batch


@dg.op(name=EVENTS_OP, description="Stores the events of offset ranges of user-activity-events.")
def store_ranges_of_batch(
    context: dg.OpExecutionContext, config: RangesConfig, services: dg.ResourceParam[Services]
) -> None:
    """Read the ranges of this run and append their events to the Delta table, each offset once."""
    store_batch(context, services, config.offsets())


@dg.job(description="Stores the events of some offset ranges of user-activity-events.")
def user_activity_batch() -> None:
    """One step: what it makes is by hours that are known only when it ends."""
    store_ranges_of_batch()
