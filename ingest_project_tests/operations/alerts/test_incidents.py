"""One message when an incident begins and one when it ends, despite flapping, restarts, failures and quiet hours."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from ingest_project.core.settings import Settings
from ingest_project.core.settings.alerts import Policy
from ingest_project.operations.alerts.incidents import (
    LEASE_SECONDS,
    Claimed,
    Finding,
    IncidentBook,
    claim,
    drop_messages,
    lead,
    read_alerts,
    recent_incidents,
    record_samples,
    release,
)
from ingest_project.platform.database import open_engine, writing

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """A migrated database of each kind in turn."""
    opened = open_engine(database_url)
    yield opened
    opened.dispose()


def finding(name: str = "lag/x", *, after: float = 0, severity: str = "warning", owner: str | None = None) -> Finding:
    policy = Policy(1.0, None, after, severity, owner, enabled=True)  # type: ignore[arg-type]
    return Finding(name, "lag", f"{name} is wrong.", "http://ui/", policy, owner, 5.0, ("one http://ui/1",))


def step(engine: sa.Engine, now: datetime, *found: Finding, assessed: str = "lag", **alerts: object) -> list[str]:
    """Update the incidents, let the channel `one` accept what is due, and return what it got."""
    settings = Settings.model_validate({"alerts": {"resolve_after_seconds": 60, **alerts}}).alerts
    with writing(engine) as connection:
        IncidentBook(connection, now, settings, lambda owner: [owner or "one"]).update(found, {assessed})
    return accepted(claim(engine, "one", now), now)


def accepted(claimed: Claimed, now: datetime) -> list[str]:
    claimed.record(now, None, lambda _: MINUTE)
    return [f"{message.alert.status} {message.alert.incident}" for message in claimed.messages]


def test_an_incident_is_one_message_and_one_more_when_it_is_over(engine: sa.Engine) -> None:
    assert step(engine, NOW, finding()) == ["firing lag/x"]
    assert step(engine, NOW + MINUTE, finding()) == []
    assert step(engine, NOW + 2 * MINUTE) == []
    assert step(engine, NOW + 3 * MINUTE) == ["resolved lag/x"]
    assert step(engine, NOW + 9 * MINUTE) == []
    (ended,) = recent_incidents(engine, NOW, 10)
    assert (ended.since, ended.resolved_at) == (NOW, NOW + 3 * MINUTE)
    assert read_alerts(engine).incidents == ()


def test_a_condition_that_holds_only_briefly_raises_no_incident(engine: sa.Engine) -> None:
    assert step(engine, NOW, finding(after=60)) == []
    assert step(engine, NOW + 59 * SECOND) == []
    assert step(engine, NOW + 60 * SECOND, finding(after=60)) == []
    assert step(engine, NOW + 120 * SECOND, finding(after=60)) == ["firing lag/x"]


def test_a_condition_that_cannot_be_assessed_leaves_its_incidents_open(engine: sa.Engine) -> None:
    step(engine, NOW, finding())
    for minutes in range(1, 9):
        assert step(engine, NOW + minutes * MINUTE, assessed="disk") == []
    assert [one.name for one in read_alerts(engine).incidents] == ["lag/x"]


def test_a_flapping_condition_is_one_incident_within_the_pause_and_few_beyond_it(engine: sa.Engine) -> None:
    sent = [
        message for second in range(0, 600, 30) for message in step(engine, NOW + second * SECOND, *flap(second, 60))
    ]
    assert sent == ["firing lag/x"]
    later = NOW + HOUR
    sent = [one for minutes in range(0, 240, 2) for one in step(engine, later + minutes * MINUTE, *flap(minutes, 12))]
    assert 2 <= sent.count("firing lag/x") <= 8


def flap(moment: int, period: int) -> list[Finding]:
    return [finding()] if moment % period < period / 2 else []


def test_open_incidents_raised_in_quiet_hours_are_sent_together_when_those_end(engine: sa.Engine) -> None:
    night = {"quiet_hours": "22:00-06:00 Europe/Oslo"}
    evening = datetime(2026, 3, 1, 21, 30, tzinfo=UTC)  # 22:30 in Oslo
    assert step(
        engine, evening, finding("a"), finding("b"), finding("c"), finding("d", severity="critical"), **night
    ) == ["firing d"]
    for hour in range(1, 7):
        assert step(engine, evening + hour * HOUR, finding("a"), finding("b"), finding("d"), **night) == []
    morning = datetime(2026, 3, 2, 5, 0, tzinfo=UTC)
    still = [finding("a"), finding("b"), finding("d", severity="critical")]
    assert step(engine, morning - SECOND, *still, **night) == []
    assert sorted(step(engine, morning, *still, **night)) == ["firing a", "firing b"]
    # It was over before anybody was told.
    assert "c" in {one.name for one in recent_incidents(engine, evening, 10)}
    assert step(engine, morning + HOUR, *still, **night) == []


def test_a_reminder_is_sent_only_where_it_is_set(engine: sa.Engine) -> None:
    assert step(engine, NOW, finding(), reminder_hours=4) == ["firing lag/x"]
    sent = [step(engine, NOW + hour * HOUR, finding(), reminder_hours=4) for hour in range(1, 10)]
    assert sent == [[], [], [], ["reminder lag/x"], [], [], [], ["reminder lag/x"], []]


def test_messages_that_a_channel_rejects_are_sent_again_in_order(engine: sa.Engine) -> None:
    settings = Settings.model_validate({"alerts": {"resolve_after_seconds": 0}})
    with writing(engine) as connection:
        IncidentBook(connection, NOW, settings.alerts, lambda _: ["one", "two"]).update([finding()], {"lag"})
    claim(engine, "one", NOW).record(NOW, "it answered 500", settings.retries.delay)
    (channel,) = read_alerts(engine).failing_channels
    assert str(channel) == "The alert channel one does not accept messages (1 wait): it answered 500"
    assert accepted(claim(engine, "two", NOW), NOW) == ["firing lag/x"]
    with writing(engine) as connection:
        IncidentBook(connection, NOW + SECOND, settings.alerts, lambda _: ["one", "two"]).update([], {"lag"})
    assert accepted(claim(engine, "two", NOW + SECOND), NOW) == ["resolved lag/x"]
    assert claim(engine, "one", NOW + 2 * SECOND).messages == []
    assert accepted(claim(engine, "one", NOW + 5 * SECOND), NOW) == ["firing lag/x", "resolved lag/x"]
    assert read_alerts(engine).failing_channels == ()


def test_a_channel_that_never_accepts_is_given_up_after_a_day(engine: sa.Engine) -> None:
    step_settings = Settings().alerts
    with writing(engine) as connection:
        IncidentBook(connection, NOW, step_settings, lambda _: ["one"]).update([finding()], {"lag"})
    claim(engine, "one", NOW).record(NOW + 25 * HOUR, "it answered 500", lambda _: MINUTE)
    assert claim(engine, "one", NOW + 30 * HOUR).messages == []


def test_messages_of_a_channel_that_is_not_set_any_more_are_dropped(engine: sa.Engine) -> None:
    with writing(engine) as connection:
        IncidentBook(connection, NOW, Settings().alerts, lambda _: ["one", "gone"]).update([finding()], {"lag"})
        drop_messages(connection, ["one"])
    assert claim(engine, "gone", NOW).messages == []
    assert accepted(claim(engine, "one", NOW), NOW) == ["firing lag/x"]


def test_two_monitors_send_a_message_once_and_one_that_was_killed_hands_over(engine: sa.Engine) -> None:
    with writing(engine) as connection:
        assert lead(connection, "a", NOW)
        assert not lead(connection, "b", NOW)
        assert lead(connection, "a", NOW + 30 * SECOND)
        assert not lead(connection, "b", NOW + (LEASE_SECONDS + 1) * SECOND)
        IncidentBook(connection, NOW, Settings().alerts, lambda _: ["one"]).update([finding()], {"lag"})
    claimed = claim(engine, "one", NOW)
    assert len(claimed.messages) == 1
    # Claimed by a process that was killed: by its successor only after a while.
    assert claim(engine, "one", NOW + SECOND).messages == []
    after = NOW + (LEASE_SECONDS + 31) * SECOND
    with writing(engine) as connection:
        assert lead(connection, "b", after)
        assert not lead(connection, "a", after)
    assert accepted(claim(engine, "one", NOW + 3 * MINUTE), NOW) == ["firing lag/x"]
    release(engine, "b")
    with writing(engine) as connection:
        assert lead(connection, "a", after)
    # A lease of a clock that was ahead by an hour.
    with writing(engine) as connection:
        assert lead(connection, "a", after + HOUR)
        assert lead(connection, "b", after)


def test_values_over_time_are_kept_as_steps(engine: sa.Engine) -> None:
    for minute in range(60):
        value = 7.0 if minute < 30 else float(minute)
        with writing(engine) as connection:
            history = record_samples(connection, {"lag/x": value}, NOW + minute * MINUTE, 900)
    end = NOW + 59 * MINUTE
    assert history.value_at("lag/x", end) == 59
    assert history.value_at("lag/x", end - 15 * MINUTE) == 44
    assert history.value_at("lag/x", end - 50 * MINUTE) is None
    assert history.changed_at("lag/x") == end
    for minute in range(60, 90):
        with writing(engine) as connection:
            history = record_samples(connection, {"lag/x": 59.0}, NOW + minute * MINUTE, 900)
    assert history.changed_at("lag/x") == end
    assert history.first("lag/x") == 59
