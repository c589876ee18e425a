"""How far the topics are that are read in offset ranges: ranges by state, and hours whose statistics are to be made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from ingest_project.cli.output import counted
from ingest_project.ledger.range_record import RangeState
from ingest_project.monitor.intakes import intakes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ingest_project.resources import Services

MOST_HOURS = 1_000


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Offset ranges by state, and hours.

    Args:
        ranges: by topic.
        hours_due: hours of user activity whose statistics are to be made now; those that are made again after a pause,
            as their events keep coming, are no work until then.
    """

    ranges: Mapping[str, Mapping[RangeState, int]]
    hours_due: int = 0

    @property
    def in_hand(self) -> int:
        """Ranges that are asked for, or in a run's hands."""
        counts = self.ranges.values()
        return sum(of[state] for of in counts for state in (RangeState.REQUESTED, RangeState.RUNNING))

    @property
    def going_on(self) -> Iterator[str]:
        """What is not finished, a phrase for each."""
        for topic, counts in self.ranges.items():
            for state, number in counts.items():
                if number and not state.finished:
                    yield f"{counted(number, 'offset range')} of {topic} {state}"
        if self.hours_due:
            yield f"{counted(self.hours_due, 'hour')} of user activity to be counted"


def stream_status(services: Services) -> StreamStatus:
    """Count ranges and hours.

    Raises:
        DatabaseUnavailable, TransactionConflict: they could not be counted.
    """
    settings = services.settings
    pause = timedelta(seconds=settings.user_activity.hourly_refresh_seconds)
    return StreamStatus(
        ranges={one.topic: services.stream_ranges.counts_by_state(one.topic) for one in intakes(settings).streams},
        # After the ranges: a range that was finished meanwhile has marked its hours before.
        hours_due=len(services.activity_hours.due(datetime.now(UTC), pause, MOST_HOURS)),
    )
