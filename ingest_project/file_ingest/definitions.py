"""File ingest, as Dagster sees it."""

from __future__ import annotations

import dagster as dg

from ingest_project.file_ingest.assets import file_ingest_assets
from ingest_project.file_ingest.catalog import (
    AGGREGATED_METRICS,
    QUARANTINED_FILES,
    RAW_FILES,
    VALIDATED_SENSOR_DATA,
)
from ingest_project.file_ingest.checks import CHECKS, CHECKS_OF_ALL_FILES
from ingest_project.file_ingest.sensors import file_events_sensor

# Without the checks: the batch reports the contract of each file itself, see `reports`.
file_batch = dg.define_asset_job(
    "file_batch",
    selection=dg.AssetSelection.assets(
        RAW_FILES, VALIDATED_SENSOR_DATA, QUARANTINED_FILES, AGGREGATED_METRICS
    ).without_checks(),
    description="Lands, reads, checks and stores a batch of files.",
)
file_checks = dg.define_asset_job(
    "file_checks",
    selection=dg.AssetSelection.checks(*CHECKS_OF_ALL_FILES),
    description="Looks at what is stored of all files: do rows add up, is too much refused, does anything wait.",
)

file_ingest = dg.Definitions(
    assets=[file_ingest_assets],
    asset_checks=CHECKS,
    jobs=[file_batch, file_checks],
    schedules=[
        dg.ScheduleDefinition(
            name="file_checks_every_quarter_hour",
            job=file_checks,
            cron_schedule="*/15 * * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
    ],
    sensors=[
        file_events_sensor("file_event_queue_sensor", lambda topics: topics.file_event_queue, file_batch),
        file_events_sensor("file_events_sensor", lambda topics: topics.file_events, file_batch),
    ],
)
