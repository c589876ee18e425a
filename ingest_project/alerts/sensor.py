"""The sensor that looks for incidents. What it has told is in its cursor, saved after the message was taken."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import msgspec

from ingest_project.alerts.incidents import Incident, Trouble, compare
from ingest_project.alerts.troubles import troubles_of
from ingest_project.alerts.webhook import deliver
from ingest_project.backpressure import fullest_disk
from ingest_project.resources import Services

NAME = "alerts_sensor"


@dg.sensor(
    name=NAME,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells INGEST_ALERT_WEBHOOK_URL when a sensor, schedule or job begins to fail, or a disk is full.",
)
def alerts_sensor(context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]) -> dg.SensorResult:
    """Compare what is wrong with what was told. A message that is not taken is sent again with the next tick."""
    settings = services.settings
    if settings.alerts.webhook_url is None:
        return dg.SensorResult(skip_reason="INGEST_ALERT_WEBHOOK_URL is not set: nobody is told of failures.")
    jobs = [job.name for job in context.repository_def.get_all_jobs()] if context.repository_def else []
    site = settings.dagster.webserver_url.rstrip("/")
    troubles = troubles_of(context.instance, jobs, settings.alerts.failures_in_a_row, site)
    others = [trouble for trouble in troubles if trouble.incident != f"sensor/{NAME}"]
    disk = fullest_disk(settings)
    if disk.is_nearly_full:
        others.append(Trouble("disk", str(disk), f"{site}/automation"))
    incidents, alerts = compare(_told(context.cursor), others, datetime.now(UTC))
    if alerts:
        deliver(settings.alerts.webhook_url, settings.environment, alerts)
    return dg.SensorResult(
        cursor=msgspec.json.encode(incidents).decode(),
        skip_reason=f"{len(incidents)} incidents, {len(alerts)} alerts sent.",
    )


def _told(cursor: str | None) -> dict[str, Incident]:
    return msgspec.json.decode(cursor, type=dict[str, Incident]) if cursor else {}
