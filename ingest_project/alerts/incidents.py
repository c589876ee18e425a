"""What is wrong now, what was wrong before, and hence what there is to tell."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the fields' types when it runs
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Trouble(NamedTuple):
    """Something that is wrong now.

    Args:
        incident: stable name of what is wrong, e.g. `sensor/polling_queue_sensor`.
        summary: one sentence for a person.
        link: where to look.
    """

    incident: str
    summary: str
    link: str


class Incident(msgspec.Struct, frozen=True):
    """Something that has been wrong since a time, and of which somebody was told."""

    summary: str
    link: str
    since: datetime


class Alert(msgspec.Struct, frozen=True):
    """One thing to tell.

    Args:
        status: `firing` or `resolved`.
        ended_at: of a resolved one.
    """

    status: str
    incident: str
    summary: str
    link: str
    since: datetime
    ended_at: datetime | None = None


def compare(
    known: Mapping[str, Incident], troubles: Sequence[Trouble], now: datetime
) -> tuple[dict[str, Incident], list[Alert]]:
    """What is to be remembered from now on, and what is to be told.

    Args:
        known: incidents that somebody was told of.
        troubles: what is wrong now.
        now: when that was seen.

    Returns:
        the incidents of now, each since it began, and an alert for each that began or is over.
    """
    found = {trouble.incident: trouble for trouble in troubles}
    incidents = {
        name: known.get(name) or Incident(trouble.summary, trouble.link, now) for name, trouble in found.items()
    }
    begun = [_alert("firing", name, incidents[name]) for name in found if name not in known]
    over = [_alert("resolved", name, incident, now) for name, incident in known.items() if name not in found]
    return incidents, begun + over


def _alert(status: str, name: str, incident: Incident, ended_at: datetime | None = None) -> Alert:
    return Alert(status, name, incident.summary, incident.link, incident.since, ended_at)
