"""Polling, as Dagster sees it."""

from __future__ import annotations

import dagster as dg

from ingest_project.polling.assets import DISCOVERED_FILES, discovered_files
from ingest_project.polling.scheduled_polls import standing_jobs_sensor
from ingest_project.polling.sensors import polling_queue_sensor

polling_batch = dg.define_asset_job(
    "polling_batch",
    selection=dg.AssetSelection.assets(DISCOVERED_FILES),
    description="Looks in the source of each polling job and announces the files it finds.",
)

SENSORS = [polling_queue_sensor(polling_batch), standing_jobs_sensor(polling_batch)]

polling = dg.Definitions(assets=[discovered_files], jobs=[polling_batch], sensors=SENSORS)
