"""Retention, as Dagster sees it."""

from __future__ import annotations

import dagster as dg

from ingest_project.retention.job import retention_job

retention = dg.Definitions(
    jobs=[retention_job],
    schedules=[
        dg.ScheduleDefinition(
            name="retention_every_night",
            job=retention_job,
            cron_schedule="40 2 * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
    ],
)
