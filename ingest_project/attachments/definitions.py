"""Dagster definitions of attachments."""

from __future__ import annotations

import dagster as dg

from ingest_project.attachments.assets import attachment_events, attachment_results, onelake_attachments
from ingest_project.attachments.catalog import ONELAKE_ATTACHMENTS
from ingest_project.attachments.checks import CHECKS, CHECKS_OF_ALL_ATTACHMENTS
from ingest_project.attachments.eventhouse.sensor import eventhouse_sensor
from ingest_project.attachments.jobs import attachment_events_batch, attachments_batch, attachments_maintenance
from ingest_project.attachments.queue import PENDING_QUEUE, RETRY_QUEUE
from ingest_project.attachments.sensors import attachment_events_sensor, downloads_sensor

# Without the checks: a batch reports on each attachment itself, see `checks`.
downloads_batch = dg.define_asset_job(
    "downloads_batch",
    selection=dg.AssetSelection.assets(ONELAKE_ATTACHMENTS).without_checks(),
    description="Downloads and stores single attachments, or those that a person selects.",
)
attachment_checks = dg.define_asset_job(
    "attachment_checks",
    selection=dg.AssetSelection.checks(*CHECKS_OF_ALL_ATTACHMENTS),
    description="Checks all attachments: is each accounted for, does anything wait too long, is too much dead.",
)

attachments = dg.Definitions(
    assets=[attachment_events, onelake_attachments, attachment_results],
    asset_checks=CHECKS,
    jobs=[attachment_events_batch, attachments_batch, downloads_batch, attachment_checks, attachments_maintenance],
    schedules=[
        dg.ScheduleDefinition(
            name="attachment_checks_every_quarter_hour",
            job=attachment_checks,
            cron_schedule="7,22,37,52 * * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        ),
        dg.ScheduleDefinition(
            name="attachments_maintenance_every_night",
            job=attachments_maintenance,
            cron_schedule="20 3 * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        ),
    ],
    sensors=[
        eventhouse_sensor,
        attachment_events_sensor(attachment_events_batch.name),
        downloads_sensor("downloads_pending_sensor", PENDING_QUEUE, attachments_batch.name),
        downloads_sensor("downloads_retry_sensor", RETRY_QUEUE, attachments_batch.name),
    ],
)
