"""Alerts to whoever listens, as one JSON message.

The address is the operator's, so that it may be inside the network; what it answers leads nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ingest_project.errors import AddressRefused, TransientError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr

    from ingest_project.alerts.incidents import Alert

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 10.0
FIRST_GOOD, LAST_GOOD = 200, 299


class AlertNotDelivered(TransientError):  # noqa: N818
    """The webhook did not take the alerts. Its address is not repeated: it usually is a secret."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"INGEST_ALERT_WEBHOOK_URL did not take the alerts: {cause}. They are sent again.")


def deliver(url: SecretStr, environment: str, alerts: Sequence[Alert]) -> None:
    """Post alerts in one request; `text` is what chat programs show.

    Raises:
        AlertNotDelivered: no answer, or one that says no.
    """
    import requests  # noqa: PLC0415 - most ticks have nothing to tell

    from ingest_project.web.bound import BoundSession  # noqa: PLC0415 - as above
    from ingest_project.web.urls import parse_url  # noqa: PLC0415

    body = {"environment": environment, "text": text_of(environment, alerts), "alerts": msgspec.to_builtins(alerts)}
    try:
        address = parse_url(url.get_secret_value())
        with BoundSession([address]) as session:
            timeouts = (CONNECT_SECONDS, ANSWER_SECONDS)
            # Unread: nothing in the answer matters but its status, and it may be endless.
            answer = session.post(address.url, json=body, timeout=timeouts, allow_redirects=False, stream=True)
    except AddressRefused as error:
        raise AlertNotDelivered(error.rule) from None
    except requests.RequestException as error:
        raise AlertNotDelivered(type(error).__name__) from None
    if not FIRST_GOOD <= answer.status_code <= LAST_GOOD:
        raise AlertNotDelivered(f"it answered {answer.status_code}")


def text_of(environment: str, alerts: Sequence[Alert]) -> str:
    """The alerts for a person, one a line."""
    return "\n".join(
        f"[{environment}] {'OVER: ' if alert.status == 'resolved' else ''}{alert.summary} {alert.link}".strip()
        for alert in alerts
    )
