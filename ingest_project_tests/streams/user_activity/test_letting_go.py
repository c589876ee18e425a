"""Offset ranges of long ago go, by the nightly retention; events stay exactly once, and hours can be rebuilt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa

from ingest_project.operations.metric_rollup import RunningTotals
from ingest_project.operations.retention import plan_purge
from ingest_project.platform.capability import PurgeStep
from ingest_project.platform.database.engine import writing
from ingest_project.streams.capability import STREAM_MESSAGES
from ingest_project.streams.tables import stream_ranges
from ingest_project.streams.user_activity.stream import USER_ACTIVITY_EVENTS
from ingest_project_tests.journeys.system import changed
from ingest_project_tests.streams.user_activity.events import event
from ingest_project_tests.streams.user_activity.system import BATCH, SENSOR, ActivitySystem

HOUR = "2026-01-15-10:00"
CHECKS = ("no_gap_in_offsets", "no_duplicate_offsets")


@pytest.fixture
def request_of_long_ago(activity: ActivitySystem) -> dg.RunRequest:
    """The run that stored 50 events in 5 ranges, forty days ago."""
    activity.settings = changed(activity.settings, "user_activity", range_messages=10)
    activity.restart()
    activity.put(*(event(f"e{number}") for number in range(50)))
    (request,) = activity.requests(SENSOR)
    assert activity.execute(BATCH, request).success
    activity.drive()
    with writing(activity.services.engine) as connection:
        for row in connection.execute(sa.select(stream_ranges)).all():
            earlier = {name: getattr(row, name) - timedelta(days=40) for name in ("created_at", "updated_at")}
            this = stream_ranges.c.range_key == row.range_key
            connection.execute(sa.update(stream_ranges).where(this).values(**earlier))
    return request


def old_ranges(activity: ActivitySystem) -> PurgeStep:
    found = plan_purge(activity.services, activity.instance, datetime.now(UTC))
    return next(removal for removal in found if removal.what == "offset ranges")


def test_ranges_go_and_every_later_event_is_stored_once_and_the_checks_see_no_gap(
    activity: ActivitySystem, request_of_long_ago: dg.RunRequest
) -> None:
    ranges, found = activity.services.stream_ranges, old_ranges(activity)
    assert (found.number, len(ranges.list(activity.topic))) == (4, 5)
    found.remove()
    assert (old_ranges(activity).number, len(ranges.list(activity.topic))) == (0, 1)
    assert [activity.check(name).passed for name in CHECKS] == [True, True]

    activity.put(*(event(f"e{number}") for number in range(50, 75)))
    activity.drive()
    assert activity.execute(BATCH, request_of_long_ago).success
    assert [row["event_id"] for row in activity.rows()] == [f"e{number}" for number in range(75)]
    assert [activity.check(name).passed for name in CHECKS] == [True, True]


@pytest.mark.usefixtures("request_of_long_ago")
def test_an_hour_whose_ranges_are_gone_is_rebuilt_from_the_topic(activity: ActivitySystem) -> None:
    old_ranges(activity).remove()
    before = activity.rows()
    assert activity.materialize_hour(USER_ACTIVITY_EVENTS, HOUR).success
    assert activity.metadata(USER_ACTIVITY_EVENTS, HOUR)["offsets_read_again"] == 50
    assert activity.rows() == before
    assert [activity.check(name).passed for name in CHECKS] == [True, True]


@pytest.mark.usefixtures("request_of_long_ago")
def test_what_goes_has_been_counted_before(activity: ActivitySystem) -> None:
    old_ranges(activity).remove()
    totals = RunningTotals(activity.services.engine)
    totals.catch_up(datetime.now(UTC))
    assert totals.totals()[STREAM_MESSAGES, (activity.topic, "events")] == 50
