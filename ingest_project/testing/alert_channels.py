"""Contract of every alert channel: each alert arrives, and errors do not contain the secret of an address."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from ingest_project.core.settings import Settings
from ingest_project.operations.alerts import Alert, AlertChannel

SINCE = datetime(2026, 1, 1, tzinfo=UTC)
ALERTS = (
    Alert("firing", "job/a", "The last run of a failed: größer 日本.", "http://ui/runs/1", SINCE),
    Alert("resolved", "disk", "The disk is nearly full.", "http://ui/disk", SINCE, datetime(2026, 1, 2, tzinfo=UTC)),
)


class AlertChannelContract:
    """Override the fixtures `channel`, `settings`, `received` and `unreachable`."""

    secret = "secret"  # noqa: S105 - of a test's address
    """A text in the address of `unreachable` that must not appear in an error."""

    @pytest.fixture
    def channel(self) -> AlertChannel:
        """Return the value of the entry point."""
        raise NotImplementedError("Override the fixture `channel`.")

    @pytest.fixture
    def settings(self) -> Settings:
        """Return settings with which alerts arrive."""
        raise NotImplementedError("Override the fixture `settings`.")

    @pytest.fixture
    def received(self) -> Callable[[], str]:
        """Return a function that returns everything that arrived, as one text."""
        raise NotImplementedError("Override the fixture `received`.")

    @pytest.fixture
    def unreachable(self) -> Settings:
        """Return settings with which no alert can arrive."""
        raise NotImplementedError("Override the fixture `unreachable`.")

    def test_every_alert_arrives(self, channel: AlertChannel, settings: Settings, received: Callable[[], str]) -> None:
        channel(settings, ALERTS)
        text = received()
        for alert in ALERTS:
            assert alert.summary in text
            assert alert.link in text

    def test_a_failed_delivery_is_an_error_without_a_secret(self, channel: AlertChannel, unreachable: Settings) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the system takes any exception as a failure
            channel(unreachable, ALERTS)
        assert self.secret not in str(caught.value)
