"""CRM, as Dagster sees it."""

from __future__ import annotations

import dagster as dg

from ingest_project.streams.crm.assets import OPPORTUNITIES, PROJECTS, crm_assets
from ingest_project.streams.crm.checks import CHECKS
from ingest_project.streams.crm.jobs import crm_retry_unidentified
from ingest_project.streams.crm.sensors import sales_events_sensor
from ingest_project.streams.crm.unidentified import UNIDENTIFIED_MESSAGES

crm_batch = dg.define_asset_job(
    "crm_batch",
    selection=dg.AssetSelection.assets(OPPORTUNITIES, PROJECTS, UNIDENTIFIED_MESSAGES).without_checks(),
    description="Stores the messages of some offset ranges of sales_events.",
)
crm_checks = dg.define_asset_job(
    "crm_checks",
    selection=dg.AssetSelection.checks(*CHECKS),
    description="Looks at all that is stored: is every offset read once, are amounts and probabilities possible.",
)

crm = dg.Definitions(
    assets=[crm_assets],
    asset_checks=CHECKS,
    jobs=[crm_batch, crm_checks, crm_retry_unidentified],
    schedules=[
        dg.ScheduleDefinition(
            name="crm_checks_every_quarter_hour",
            job=crm_checks,
            cron_schedule="*/15 * * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
    ],
    sensors=[sales_events_sensor(crm_batch)],
)
