"""The partitions of attachments: an hour for what arrived and what ended in it, one for each attachment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

from ingest_project.core.hours import hour_key

ATTACHMENTS_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=48), warn_window=timedelta(hours=30))


ATTACHMENTS = "attachments"
FIRST_HOUR = datetime(2026, 1, 1, tzinfo=UTC)

attachments_partitions = dg.DynamicPartitionsDefinition(name=ATTACHMENTS)
# The hour that is going on is a partition too: people want to see what has just arrived.
hourly_partitions = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR, end_offset=1)

ATTACHMENT_EVENTS = dg.AssetKey("attachment_events")
ONELAKE_ATTACHMENTS = dg.AssetKey("onelake_attachments")
ATTACHMENT_RESULTS = dg.AssetKey("attachment_results")

# An attachment's key does not say in which hour its event arrived, nor an hour which attachments ended in it. Without a
# mapping of its own, Dagster would look for an hour that is called like the attachment, and reject every backfill.
EVENTS_OF_ANY_HOUR = dg.AssetDep(ATTACHMENT_EVENTS, partition_mapping=dg.AllPartitionMapping())
ANY_ATTACHMENT = dg.AssetDep(ONELAKE_ATTACHMENTS, partition_mapping=dg.AllPartitionMapping())


def hour_of_arrival(moment: datetime | None, now: datetime) -> str:
    """The hourly partition of a moment; of now, where the moment lies before the first partition or in the future."""
    return hour_key(moment if moment is not None and FIRST_HOUR <= moment <= now else now)
