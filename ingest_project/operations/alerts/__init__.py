"""Alerts: conditions of a snapshot become incidents, and incidents become messages on channels.

`conditions.py` finds problems, `incidents.py` stores incidents in the database, `watch.py` does both regularly in the
monitor (or in a sensor if no monitor runs), and this module has the channels that send the messages. The webhook and
plug-ins get all messages, Apprise addresses those of their owner. An Apprise address (slack://, msteams://, mailto://,
pagerduty://, ...) is a trusted setting, like the webhook's, and usually a secret: channels are therefore named by their
position in the settings and their service.

Another package adds a channel by an entry point in the group `ingest_project.alert_channels`; its name is listed in
INGEST_ALERT_CHANNELS, its value an `AlertChannel`.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from http import HTTPStatus
from typing import Any

import msgspec
from pydantic import SecretStr

from ingest_project.core import plugins
from ingest_project.core.console import moment
from ingest_project.core.errors import AddressRejectedError, PermanentError, SettingsError, TransientError
from ingest_project.core.logging import printable
from ingest_project.core.secrets import SecretReference, is_in_vault
from ingest_project.core.settings import Settings
from ingest_project.core.settings.alerts import CONDITIONS, SCHEME
from ingest_project.core.yaml_models import nearest

MAX_TEXT = 500
SHOWN_EXAMPLES = 3
SHOWN_CONDITIONS = 5
DOCUMENTATION = "docs/monitoring.md#conditions"


class Alert(msgspec.Struct, frozen=True):
    """One alert of a message.

    Args:
        status: `firing`, `resolved`, `reminder` or `test`.
        incident: stable name of the incident, e.g. `sensor/polling_queue_sensor`.
        summary: one sentence for a person.
        link: address of a page about it.
        ended_at: end of a resolved incident.
        value, threshold: last measured value, and the value from which it is an incident.
        examples: examples of one line, each with a link.
        remedy: the fix.
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
    """A channel did not accept the alerts. The message does not repeat its address, which is usually a secret."""

    def __init__(self, cause: str, channel: str = "INGEST_ALERT_WEBHOOK_URL") -> None:
        self.cause, self.channel = cause, channel
        super().__init__(f"{channel} did not accept the alerts: {cause}. They are sent again.")


AlertChannel = Callable[[Settings, Sequence[Alert]], None]
"""Sends alerts, or raises: they are then sent again later."""


def plain(text: object, length: int = MAX_TEXT) -> str:
    """Return untrusted text as one line that no chat program interprets as a mention, a link or markup."""
    shown = " ".join(printable(text).split()).translate(_HARMLESS).replace("](", "] (")
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


# A zero-width space breaks a mention; angle brackets are links and mentions in Slack, and tags elsewhere.
_HARMLESS = str.maketrans({"<": "\u2039", ">": "\u203a", "@": "@\u200b"})


def title_of(environment: str, alerts: Sequence[Alert]) -> str:
    """Return a subject line: the alert, or the number of alerts of each status with their conditions."""
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
    """Format the alerts for people: summary, times, examples and remedy."""
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
    measured = "" if alert.value is None else f", {_measurement(alert)}"
    owner = f", owner {plain(alert.owner, 100)}" if alert.owner else ""
    yield f"  {alert.severity.capitalize()} since {moment(alert.since)}{measured}{owner}."
    yield from (f"  - {example}" for example in alert.examples[:SHOWN_EXAMPLES])
    if alert.remedy:
        yield f"  {alert.remedy} ({DOCUMENTATION})"


def _measurement(alert: Alert) -> str:
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


CONNECT_SECONDS, RESPONSE_SECONDS = 5.0, 10.0
WEBHOOK = "webhook"
SHORTEST_SECRET = 3
MAX_REASON = 200

CHANNELS: plugins.Plugins[AlertChannel] = plugins.Plugins(
    plugins.ALERT_CHANNELS, {WEBHOOK: "ingest_project.operations.alerts:send_to_webhook"}
)


def channels(settings: Settings, owner: str | None = None) -> dict[str, AlertChannel]:
    """Return all channels by name, or only those of one owner."""
    alerts = settings.alerts
    found: dict[str, AlertChannel] = {}
    if owner is None:
        named = (name for name in alerts.channels if name != WEBHOOK or alerts.webhook_url is not None)
        found = {name: partial(_send_named, name) for name in named}
        found |= _addresses("", alerts.urls)
    for name, urls in alerts.owners.items():
        if owner in {None, name}:
            found |= _addresses(name, urls)
    return found


def channels_of(settings: Settings, owner: str | None) -> Collection[str]:
    """Return the names of the channels for an owner's alerts: those for everybody, and the owner's addresses.

    If the owner has no addresses, the addresses without an owner get the alerts.
    """
    alerts = settings.alerts
    own = alerts.owners.get(owner or "")
    shared = [name for name in alerts.channels if name != WEBHOOK or alerts.webhook_url is not None]
    return [*shared, *(_addresses(owner or "", own) if own else _addresses("", alerts.urls))]


def require_usable(settings: Settings) -> None:
    """Check the addresses of Apprise.

    Raises:
        SettingsError: Apprise does not know a service, or cannot use an address, which the message does not repeat.
    """
    alerts = settings.alerts
    each = [
        ("INGEST_ALERT_URLS", alerts.urls),
        *((f"INGEST_ALERT_OWNERS, {name}", one) for name, one in alerts.owners.items()),
    ]
    for where, urls in each:
        for number, url in enumerate(urls, 1):
            # Do not contact a vault before there is something to send.
            if not is_in_vault(url) and (problem := _problem(url)):
                raise SettingsError(f"{where}, address {number}: {problem}")


def send(settings: Settings, name: str, channel: AlertChannel, alerts: Sequence[Alert]) -> None:
    """Send alerts through one channel.

    Raises:
        AlertDeliveryError: the channel raised any exception; the message contains no secret.
    """
    try:
        channel(settings, alerts)
    except AlertDeliveryError as error:
        raise AlertDeliveryError(error.cause, name) from None
    except PermanentError as error:
        raise AlertDeliveryError(str(error), name) from None
    except Exception as error:  # noqa: BLE001 - another package may raise anything, with its address in the text
        raise AlertDeliveryError(type(error).__name__, name) from None


def _send_named(name: str, settings: Settings, alerts: Sequence[Alert]) -> None:
    CHANNELS.named(name, "alert channel")(settings, alerts)


def _addresses(owner: str, urls: Sequence[SecretStr]) -> dict[str, AlertChannel]:
    place = f"owners.{owner}" if owner else "urls"
    return {f"{place}.{number}.{_service(url)}": partial(send_to_url, url) for number, url in enumerate(urls, 1)}


def _service(url: SecretStr) -> str:
    if isinstance(url, SecretReference):
        return "reference"
    found = SCHEME.match(url.get_secret_value())
    return found[1].lower() if found else "unknown"


def send_to_webhook(settings: Settings, alerts: Sequence[Alert]) -> None:
    """Post alerts to INGEST_ALERT_WEBHOOK_URL; do nothing if it is not set.

    Raises:
        AlertDeliveryError: no response, or one that rejects them.
    """
    if settings.alerts.webhook_url is not None:
        deliver(settings.alerts.webhook_url, settings.environment, alerts)


def deliver(url: SecretStr, environment: str, alerts: Sequence[Alert]) -> None:
    """Post alerts in one request; chat programs show the field `text`.

    Raises:
        AlertDeliveryError: no response, or one that rejects them.
    """
    import requests  # most processes have nothing to send

    from ingest_project.platform.http import parse_url
    from ingest_project.platform.http.pinned_transport import BoundSession  # as above

    body = {"environment": environment, "text": text_of(environment, alerts), "alerts": msgspec.to_builtins(alerts)}
    try:
        address = parse_url(url.get_secret_value())
        with BoundSession([address]) as session:
            timeouts = (CONNECT_SECONDS, RESPONSE_SECONDS)
            # Leave the body unread: only the status matters, and the body may be endless.
            response = session.post(address.url, json=body, timeout=timeouts, allow_redirects=False, stream=True)
            response.close()
    except AddressRejectedError as error:
        raise AlertDeliveryError(error.rule) from None
    except requests.RequestException as error:
        raise AlertDeliveryError(type(error).__name__) from None
    if not HTTPStatus.OK <= response.status_code < HTTPStatus.MULTIPLE_CHOICES:
        raise AlertDeliveryError(f"it answered {response.status_code}")


def send_to_url(url: SecretStr, settings: Settings, alerts: Sequence[Alert]) -> None:
    """Send alerts to an Apprise address.

    Raises:
        AlertDeliveryError: the service did not accept them, with the reason that Apprise logs.
        SettingsError: Apprise cannot use the address.
    """
    import apprise  # takes 0.5 s and imports many packages that most systems do not need

    if problem := _problem(url):
        raise SettingsError(problem)
    severities = {alert.severity for alert in alerts if alert.status in {"firing", "reminder"}}
    kind = "failure" if "critical" in severities else "warning" if severities else "info"
    if all(alert.status == "resolved" for alert in alerts):
        kind = "success"
    service = apprise.Apprise(asset=apprise.AppriseAsset(**_options()))
    service.add(url.get_secret_value().strip())
    reasons = _reasons()
    reasons.begin()
    sent = service.notify(
        body=text_of(settings.environment, alerts),
        title=title_of(settings.environment, alerts),
        notify_type=apprise.NotifyType(kind),
        # Escape the text for services that interpret markup.
        body_format=apprise.NotifyFormat.TEXT,
    )
    if not sent:
        raise AlertDeliveryError(_without_secrets(reasons.last() or "the service did not accept them", url))


def _problem(url: SecretStr) -> str:
    """Return why Apprise cannot use an address, without its text; empty if it can."""
    import apprise  # see above

    _reasons()
    asset, address = apprise.AppriseAsset(**_options()), url.get_secret_value().strip()
    if apprise.Apprise.instantiate(address, asset=asset, suppress_exceptions=True) is not None:
        return ""
    schemas = [schema for one in apprise.Apprise().details()["schemas"] for schema in _schemas(one)]
    service = url.get_secret_value().partition("://")[0].strip().lower()
    if service not in schemas:
        return f"Apprise knows no service {service!r}{nearest(service, schemas) or '.'}"
    return f"Apprise cannot use it as an address of {service}: see the documentation of Apprise for its parts."


def _schemas(details: Mapping[str, object]) -> list[str]:
    both = (details.get("protocols"), details.get("secure_protocols"))
    return [str(schema) for protocols in both if isinstance(protocols, list | tuple) for schema in protocols]


def _options() -> dict[str, Any]:
    import apprise  # see above

    return {
        "app_id": "ingest_project",
        "app_desc": "ingest_project",
        "app_url": "",
        "async_mode": False,
        # Disable escapes, emojis and templates in untrusted text, and redirects.
        "interpret_escapes": False,
        "interpret_emojis": False,
        "http_redirects": False,
        "allow_templates": False,
        "storage_mode": apprise.PersistentStoreMode.MEMORY,
        # Send in this thread, whose warnings are recorded; its starter waits only a bounded time.
        "service_timeout": 0,
    }


class _Reasons(logging.Handler):
    """Keeps the last warning that Apprise logged in this thread: Apprise returns no reasons, and may log addresses."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._of_thread = threading.local()

    def begin(self) -> None:
        """Discard the last warning."""
        self._of_thread.text = ""

    def last(self) -> str:
        """Return the last warning since `begin`."""
        return str(self._of_thread.text)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self._of_thread.text = " ".join(record.getMessage().split())


@cache
def _reasons() -> _Reasons:
    handler = _Reasons()
    logger = logging.getLogger("apprise")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    return handler


def _without_secrets(reason: str, url: SecretStr) -> str:
    """Return a reason without any part of the address."""
    _, _, rest = url.get_secret_value().partition("://")
    for part in sorted(re.split(r"[/@:?&=,;]+", rest), key=len, reverse=True):
        if len(part) >= SHORTEST_SECRET:
            reason = reason.replace(part, "***")
    return reason[:MAX_REASON]
