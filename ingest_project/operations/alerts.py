"""Alerts: find failing sensors, schedules and jobs and full disks, and send one message per incident by webhook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple

import dagster as dg
import msgspec
from pydantic import SecretStr

from ingest_project.core.errors import AddressRejectedError, TransientError
from ingest_project.operations import SystemResources
from ingest_project.operations.snapshot import DagsterState, Sample, SystemSnapshot
from ingest_project.platform.dagster.run_records import DagsterRecords

NAME = "alerts_sensor"
ENDED_RUNS = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
CONNECT_SECONDS, RESPONSE_SECONDS = 5.0, 10.0


class AlertCondition(NamedTuple):
    """Something that is wrong now.

    Args:
        incident: stable name of what is wrong, e.g. `sensor/polling_queue_sensor`.
        summary: one sentence for a person.
        link: where to look.
    """

    incident: str
    summary: str
    link: str


class Incident(msgspec.Struct, frozen=True):
    """An alert condition that was reported, and since when it exists."""

    summary: str
    link: str
    since: datetime


class Alert(msgspec.Struct, frozen=True):
    """One alert of a message.

    Args:
        status: `firing` or `resolved`.
        ended_at: of a resolved one.
    """

    status: str
    incident: str
    summary: str
    link: str
    since: datetime
    ended_at: datetime | None = None


def compare(
    known: Mapping[str, Incident], conditions: Sequence[AlertCondition], now: datetime
) -> tuple[dict[str, Incident], list[Alert]]:
    """Compare what is wrong now with the known incidents.

    Args:
        known: incidents that were reported.
        conditions: what is wrong now.
        now: when that was found.

    Returns:
        the incidents of now, each since it began, and an alert for each that began or is over.
    """
    found = {condition.incident: condition for condition in conditions}
    incidents = {name: known.get(name) or Incident(one.summary, one.link, now) for name, one in found.items()}
    begun = [_alert("firing", name, incidents[name]) for name in found if name not in known]
    over = [_alert("resolved", name, incident, now) for name, incident in known.items() if name not in found]
    return incidents, begun + over


def _alert(status: str, name: str, incident: Incident, ended_at: datetime | None = None) -> Alert:
    return Alert(status, name, incident.summary, incident.link, incident.since, ended_at)


def alert_conditions(snapshot: SystemSnapshot, failed_jobs: Mapping[str, str]) -> list[AlertCondition]:
    """Return everything that is wrong now.

    Args:
        snapshot: of Dagster and the disks.
        failed_jobs: jobs whose last run failed, with the id of that run.
    """
    settings = snapshot.settings
    site, limit = settings.dagster.webserver_url.rstrip("/"), settings.alerts.failures_in_a_row
    failing = snapshot.dagster.present.failing if snapshot.dagster.present else {}
    conditions = [
        AlertCondition(
            f"{ticks.kind}/{name}",
            f"The {ticks.kind} {name} failed {limit} times in a row: {ticks.reason}",
            f"{site}/overview/{ticks.kind}s",
        )
        for name, ticks in failing.items()
        # This sensor fails where the webhook does not accept its alerts.
        if ticks.in_a_row >= limit and name != NAME
    ]
    conditions += [
        AlertCondition(f"job/{job}", f"The last run of {job} failed.", f"{site}/runs/{run_id}")
        for job, run_id in failed_jobs.items()
    ]
    disk = snapshot.disk.present
    if disk and disk.is_nearly_full:
        conditions.append(AlertCondition("disk", str(disk), f"{site}/automation"))
    return conditions


class AlertDeliveryError(TransientError):
    """The webhook did not accept the alerts. Its address is not repeated: it usually is a secret."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"INGEST_ALERT_WEBHOOK_URL did not accept the alerts: {cause}. They are sent again.")


def deliver(url: SecretStr, environment: str, alerts: Sequence[Alert]) -> None:
    """Post alerts in one request; `text` is what chat programs show.

    Raises:
        AlertDeliveryError: no response, or one that rejects them.
    """
    import requests  # noqa: PLC0415 - most ticks have nothing to send

    from ingest_project.platform.http import parse_url  # noqa: PLC0415
    from ingest_project.platform.http.pinned_transport import BoundSession  # noqa: PLC0415 - as above

    body = {"environment": environment, "text": text_of(environment, alerts), "alerts": msgspec.to_builtins(alerts)}
    try:
        address = parse_url(url.get_secret_value())
        with BoundSession([address]) as session:
            timeouts = (CONNECT_SECONDS, RESPONSE_SECONDS)
            # Unread: nothing in the response matters but its status, and it may be endless.
            response = session.post(address.url, json=body, timeout=timeouts, allow_redirects=False, stream=True)
    except AddressRejectedError as error:
        raise AlertDeliveryError(error.rule) from None
    except requests.RequestException as error:
        raise AlertDeliveryError(type(error).__name__) from None
    if not HTTPStatus.OK <= response.status_code < HTTPStatus.MULTIPLE_CHOICES:
        raise AlertDeliveryError(f"it answered {response.status_code}")


def text_of(environment: str, alerts: Sequence[Alert]) -> str:
    """Return the alerts for a person, one a line."""
    return "\n".join(
        f"[{environment}] {'OVER: ' if alert.status == 'resolved' else ''}{alert.summary} {alert.link}".strip()
        for alert in alerts
    )


@dg.sensor(
    name=NAME,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Alerts INGEST_ALERT_WEBHOOK_URL when a sensor, schedule or job begins to fail, or a disk is full.",
)
def alerts_sensor(context: dg.SensorEvaluationContext, services: dg.ResourceParam[SystemResources]) -> dg.SensorResult:
    """Report what began and what is over. A message that is not accepted is sent again with the next tick."""
    settings = services.settings
    if settings.alerts.webhook_url is None:
        return dg.SensorResult(skip_reason="INGEST_ALERT_WEBHOOK_URL is not set: failures are not reported.")
    records = DagsterRecords(settings, context.instance)
    snapshot = SystemSnapshot(
        settings=settings,
        at=datetime.now(UTC),
        dagster=Sample(DagsterState(runs=records.runs_in_flight(), failing=records.failing(schedules=True))),
        disk=Sample(services.fullest_disk()),
    )
    jobs = [job.name for job in context.repository_def.get_all_jobs()] if context.repository_def else []
    conditions = alert_conditions(snapshot, _failed_jobs(context.instance, jobs))
    incidents, alerts = compare(_known_incidents(context.cursor), conditions, snapshot.at)
    if alerts:
        deliver(settings.alerts.webhook_url, settings.environment, alerts)
    return dg.SensorResult(
        cursor=msgspec.json.encode(incidents).decode(),
        skip_reason=f"{len(incidents)} incidents, {len(alerts)} alerts sent.",
    )


def _failed_jobs(instance: dg.DagsterInstance, names: Sequence[str]) -> dict[str, str]:
    """Return the jobs whose last ended run failed, with the id of that run."""
    last = {
        name: instance.get_runs(filters=dg.RunsFilter(job_name=name, statuses=ENDED_RUNS), limit=1) for name in names
    }
    return {
        name: runs[0].run_id for name, runs in last.items() if runs and runs[0].status is dg.DagsterRunStatus.FAILURE
    }


def _known_incidents(cursor: str | None) -> dict[str, Incident]:
    return msgspec.json.decode(cursor, type=dict[str, Incident]) if cursor else {}


alerts = dg.Definitions(sensors=[alerts_sensor])
