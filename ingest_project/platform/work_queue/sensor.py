"""What the sensors over intakes have in common: they tick about once a second, and say what hinders them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dagster as dg

from ingest_project.platform.runtime import Runtime

# The second argument is the resources of the sensor's own capability.
Tick = Callable[[dg.SensorEvaluationContext, Any], dg.SensorResult | dg.SkipReason]


def queue_sensor(
    name: str, job_name: str, description: str, tick: Tick, *, every_seconds: int = 1
) -> dg.SensorDefinition:
    """A sensor that is on from the start, and ticks unless something it needs is missing.

    Args:
        name: of the sensor.
        job_name: of the job whose runs it asks for.
        description: one sentence, for the UI.
        tick: one look: what to ask for, and the cursor to save, or why there is nothing to do.
        every_seconds: the least time between two ticks.
    """

    @dg.sensor(
        name=name,
        job_name=job_name,
        minimum_interval_seconds=every_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=description,
    )
    def sensor(
        context: dg.SensorEvaluationContext, services: dg.ResourceParam[Runtime]
    ) -> dg.SensorResult | dg.SkipReason:
        if hindrance := services.blocking_reason():
            return dg.SkipReason(hindrance)
        return tick(context, services)

    return sensor
