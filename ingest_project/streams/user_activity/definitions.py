"""User activity, as Dagster sees it."""

from __future__ import annotations

import dagster as dg

from ingest_project.streams.user_activity.assets import user_activity_events, user_activity_hourly
from ingest_project.streams.user_activity.checks import CHECKS
from ingest_project.streams.user_activity.hourly_sensor import user_activity_hourly_sensor
from ingest_project.streams.user_activity.jobs import (
    user_activity_batch,
    user_activity_hourly_batch,
    user_activity_maintenance,
)
from ingest_project.streams.user_activity.sensors import user_activity_events_sensor

user_activity_checks = dg.define_asset_job(
    "user_activity_checks",
    selection=dg.AssetSelection.checks(*CHECKS),
    description="Looks at what is stored: is every offset there once, can the events' times be.",
)

user_activity = dg.Definitions(
    assets=[user_activity_events, user_activity_hourly],
    asset_checks=CHECKS,
    jobs=[user_activity_batch, user_activity_hourly_batch, user_activity_checks, user_activity_maintenance],
    schedules=[
        dg.ScheduleDefinition(
            name="user_activity_checks_every_quarter_hour",
            job=user_activity_checks,
            cron_schedule="11,26,41,56 * * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        ),
        dg.ScheduleDefinition(
            name="user_activity_maintenance_every_ten_minutes",
            job=user_activity_maintenance,
            cron_schedule="4-59/10 * * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        ),
    ],
    sensors=[
        user_activity_events_sensor(user_activity_batch.name),
        user_activity_hourly_sensor(user_activity_hourly_batch.name),
    ],
)
