"""The partitions of attachments: an hour for what arrived and what ended in it, one for each attachment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from collections.abc import Iterable

ATTACHMENTS = "attachments"
FIRST_HOUR = datetime(2026, 1, 1, tzinfo=UTC)
_HOUR = "%Y-%m-%d-%H:00"

attachments_partitions = dg.DynamicPartitionsDefinition(name=ATTACHMENTS)
# The hour that is going on is a partition too: people want to see what has just arrived.
hourly_partitions = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR, end_offset=1)

ATTACHMENT_EVENTS = dg.AssetKey("attachment_events")
ONELAKE_ATTACHMENTS = dg.AssetKey("onelake_attachments")
ATTACHMENT_RESULTS = dg.AssetKey("attachment_results")


def hour_of(moment: datetime | None, now: datetime) -> str:
    """The hourly partition of a moment; of now, where the moment lies before the first partition or in the future."""
    if moment is None or not FIRST_HOUR <= moment <= now:
        moment = now
    return moment.astimezone(UTC).strftime(_HOUR)


def hours_of(moments: Iterable[datetime]) -> list[str]:
    """The hourly partitions of these moments, each once, in order."""
    return sorted({moment.astimezone(UTC).strftime(_HOUR) for moment in moments})


def bounds_of(hour: str) -> tuple[datetime, datetime]:
    """When an hourly partition begins, and when the next one does."""
    begin = datetime.strptime(hour, _HOUR).replace(tzinfo=UTC)
    return begin, begin + timedelta(hours=1)
