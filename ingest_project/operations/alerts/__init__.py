"""Alerts: conditions of a snapshot become incidents, and incidents become messages on channels.

`conditions.py` finds what is wrong, `incidents.py` remembers it in the database, `watch.py` does both regularly in the
monitor (or in a sensor, where no monitor runs), and `channels.py` sends the messages. Another package adds a way to
send them by an entry point in the group `ingest_project.alert_channels`; its name is listed in INGEST_ALERT_CHANNELS,
its value an `AlertChannel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

import msgspec

from ingest_project.core.console import moment
from ingest_project.core.errors import TransientError
from ingest_project.core.logging import printable
from ingest_project.core.settings import Settings
from ingest_project.core.settings.alerts import CONDITIONS

MAX_TEXT = 500
SHOWN_EXAMPLES = 3
SHOWN_CONDITIONS = 5
DOCUMENTATION = "docs/monitoring.md#conditions"


class Alert(msgspec.Struct, frozen=True):
    """One alert of a message.

    Args:
        status: `firing`, `resolved`, `reminder` or `test`.
        incident: stable name of what is wrong, e.g. `sensor/polling_queue_sensor`.
        summary: one sentence for a person.
        link: where to look.
        ended_at: of a resolved one.
        value, threshold: what was measured last, and from which value on it is an incident.
        examples: a line each, with a link.
        remedy: what to do.
    """

    status: str
    incident: str
    summary: str
    link: str
    since: datetime
    ended_at: datetime | None = None
    condition: str = ""
    severity: str = "warning"
    owner: str | None = None
    value: float | None = None
    threshold: float | None = None
    examples: tuple[str, ...] = ()
    remedy: str = ""


class AlertDeliveryError(TransientError):
    """A channel did not accept the alerts. Its address is not repeated: it usually is a secret."""

    def __init__(self, cause: str, channel: str = "INGEST_ALERT_WEBHOOK_URL") -> None:
        self.cause, self.channel = cause, channel
        super().__init__(f"{channel} did not accept the alerts: {cause}. They are sent again.")


AlertChannel = Callable[[Settings, Sequence[Alert]], None]
"""Sends alerts, or raises: they are then sent again later."""


def plain(text: object, length: int = MAX_TEXT) -> str:
    """Return untrusted text that no chat program takes for a mention, a link or markup, on one line of that length."""
    shown = " ".join(printable(text).split()).translate(_HARMLESS).replace("](", "] (")
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


# A zero-width space ends the name of a mention; angle brackets are links and mentions in Slack, tags elsewhere.
_HARMLESS = str.maketrans({"<": "\u2039", ">": "\u203a", "@": "@\u200b"})


def title_of(environment: str, alerts: Sequence[Alert]) -> str:
    """Return a subject line: the alert, or how many of each status, with their conditions."""
    if len(alerts) == 1:
        return f"[{environment}] {_heading(alerts[0])}"
    found = {status: [one for one in alerts if one.status == status] for status in ("firing", "reminder", "resolved")}
    return f"[{environment}] " + "; ".join(
        f"{len(each)} {status}: {_conditions_of(each)}" for status, each in found.items() if each
    )


def _conditions_of(alerts: Sequence[Alert]) -> str:
    names = dict.fromkeys(plain(one.condition or one.incident, 60).replace("_", " ") for one in alerts)
    return ", ".join([*names][:SHOWN_CONDITIONS]) + (", …" if len(names) > SHOWN_CONDITIONS else "")


def text_of(environment: str, alerts: Sequence[Alert]) -> str:
    """Return the alerts for a person: what, since when, examples, and what to do."""
    return "\n".join(line for alert in alerts for line in _lines(environment, alert))


def _heading(alert: Alert) -> str:
    prefix = {"resolved": "OVER: ", "reminder": "STILL: "}.get(alert.status, "")
    return f"{prefix}{alert.summary}"


def _lines(environment: str, alert: Alert) -> Iterable[str]:
    yield f"[{environment}] {_heading(alert)} {alert.link}".strip()
    if alert.status == "test":
        return
    if alert.ended_at:
        yield f"  From {moment(alert.since)} to {moment(alert.ended_at)}."
        return
    measured = "" if alert.value is None else f", {_measured(alert)}"
    owner = f", owner {plain(alert.owner, 100)}" if alert.owner else ""
    yield f"  {alert.severity.capitalize()} since {moment(alert.since)}{measured}{owner}."
    yield from (f"  - {example}" for example in alert.examples[:SHOWN_EXAMPLES])
    if alert.remedy:
        yield f"  {alert.remedy} ({DOCUMENTATION})"


def _measured(alert: Alert) -> str:
    condition = CONDITIONS.get(alert.condition)
    unit = condition.unit if condition else ""
    limit = "" if alert.threshold is None else f" (threshold {amount(alert.threshold, unit)})"
    return f"{amount(alert.value or 0.0, unit)}{limit}"


def amount(value: float, unit: str) -> str:
    """Return a value with its unit, e.g. `12%`, `300 s`, `1,200 messages`."""
    if unit == "share":
        return f"{value:.0%}" if value >= 0.01 or not value else f"{value:.2%}"  # noqa: PLR2004 - less than a percent
    if unit == "seconds":
        return f"{value:,.0f} s"
    return f"{value:,.0f} {unit.removesuffix('s') if round(value) == 1 else unit}".strip()
