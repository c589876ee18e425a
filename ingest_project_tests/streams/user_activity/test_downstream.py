"""The hours of user activity as inputs of downstream assets."""

from __future__ import annotations

import pandas as pd
import polars as pl

from ingest_project.streams.delta.definitions import hourly_partitions
from ingest_project.streams.user_activity.definitions import USER_ACTIVITY_EVENTS, USER_ACTIVITY_HOURLY
from ingest_project_tests.platform.dagster.test_catalog import loaded
from ingest_project_tests.streams.user_activity.events import event
from ingest_project_tests.streams.user_activity.system import ActivitySystem


def test_hours_of_the_delta_table_and_of_its_statistics(activity: ActivitySystem) -> None:
    activity.put(*(event(f"e{hour}", timestamp=f"2026-01-15T{hour:02d}:30:00Z") for hour in (9, 10, 10, 11)))
    activity.drive()
    hour = "2026-01-15-10:00"
    events = loaded(activity, USER_ACTIVITY_EVENTS, pl.DataFrame, hourly_partitions, partition_key=hour)
    assert events["event_id"].to_list() == ["e10", "e10"]
    sums = loaded(activity, USER_ACTIVITY_HOURLY, pd.DataFrame, hourly_partitions, partition_key=hour)
    assert list(sums["events"]) == [1]
