"""The example as a code location of its own, next to that of ingest_project: see `workspace.yaml` in this folder."""

import dagster as dg

from examples.device_days.assets import device_days
from ingest_project.definitions import stored_assets, stored_rows
from ingest_project.file_ingest.catalog import VALIDATED_SENSOR_DATA
from ingest_project.platform.dagster.catalog import IO_MANAGER_KEY

defs = dg.Definitions(
    assets=[device_days, *stored_assets(VALIDATED_SENSOR_DATA)],
    resources={IO_MANAGER_KEY: stored_rows},
    sensors=[
        dg.AutomationConditionSensorDefinition(
            "device_days_automation",
            target=[device_days],
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=5,
        )
    ],
)
