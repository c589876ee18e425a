"""Alerts: find failing sensors, schedules and jobs and full disks, and send one message per incident by webhook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import (
    UTC,
    datetime,
)
from typing import NamedTuple

import dagster as dg
import msgspec
from pydantic import SecretStr

from ingest_project.core.errors import AddressRejectedError, TransientError
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.dagster.failures import failing_instigators
from ingest_project.platform.work_queue.capacity import fullest_disk


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
    """Something that has been wrong since a time, and of which somebody was told."""

    summary: str
    link: str
    since: datetime


class Alert(msgspec.Struct, frozen=True):
    """One thing to tell.

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
    known: Mapping[str, Incident], alert_conditions: Sequence[AlertCondition], now: datetime
) -> tuple[dict[str, Incident], list[Alert]]:
    """What is to be remembered from now on, and what is to be told.

    Args:
        known: incidents that somebody was told of.
        alert_conditions: what is wrong now.
        now: when that was seen.

    Returns:
        the incidents of now, each since it began, and an alert for each that began or is over.
    """
    found = {trouble.incident: trouble for trouble in alert_conditions}
    incidents = {
        name: known.get(name) or Incident(trouble.summary, trouble.link, now) for name, trouble in found.items()
    }
    begun = [_alert("firing", name, incidents[name]) for name in found if name not in known]
    over = [_alert("resolved", name, incident, now) for name, incident in known.items() if name not in found]
    return incidents, begun + over


def _alert(status: str, name: str, incident: Incident, ended_at: datetime | None = None) -> Alert:
    return Alert(status, name, incident.summary, incident.link, incident.since, ended_at)


ENDED_RUNS = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
LONGEST_REASON = 300


def troubles_of(
    instance: dg.DagsterInstance, job_names: Sequence[str], failures_in_a_row: int, site: str
) -> list[AlertCondition]:
    """Everything that is wrong now.

    Args:
        instance: Dagster's records.
        job_names: jobs to look at.
        failures_in_a_row: ticks that must have failed one after the other.
        site: address of the Dagster UI, for links.
    """
    return [*_failing_ticks(instance, failures_in_a_row, site), *_failed_jobs(instance, job_names, site)]


def _failing_ticks(instance: dg.DagsterInstance, failures_in_a_row: int, site: str) -> Iterator[AlertCondition]:
    for kind, name, reason in failing_instigators(instance, failures_in_a_row):
        yield AlertCondition(
            f"{kind}/{name}",
            f"The {kind} {name} failed {failures_in_a_row} times in a row: {reason[:LONGEST_REASON]}",
            f"{site}/overview/{kind}s",
        )


def _failed_jobs(instance: dg.DagsterInstance, job_names: Sequence[str], site: str) -> Iterator[AlertCondition]:
    for job_name in job_names:
        runs = instance.get_runs(filters=dg.RunsFilter(job_name=job_name, statuses=ENDED_RUNS), limit=1)
        if runs and runs[0].status is dg.DagsterRunStatus.FAILURE:
            run_id = runs[0].run_id
            yield AlertCondition(f"job/{job_name}", f"The last run of {job_name} failed.", f"{site}/runs/{run_id}")


CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 10.0
FIRST_GOOD, LAST_GOOD = 200, 299


class AlertDeliveryError(TransientError):
    """The webhook did not take the alerts. Its address is not repeated: it usually is a secret."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"INGEST_ALERT_WEBHOOK_URL did not take the alerts: {cause}. They are sent again.")


def deliver(url: SecretStr, environment: str, alerts: Sequence[Alert]) -> None:
    """Post alerts in one request; `text` is what chat programs show.

    Raises:
        AlertDeliveryError: no answer, or one that says no.
    """
    import requests  # noqa: PLC0415 - most ticks have nothing to tell

    from ingest_project.platform.http.pinned_transport import BoundSession  # noqa: PLC0415 - as above
    from ingest_project.platform.http.urls import parse_url  # noqa: PLC0415

    body = {"environment": environment, "text": text_of(environment, alerts), "alerts": msgspec.to_builtins(alerts)}
    try:
        address = parse_url(url.get_secret_value())
        with BoundSession([address]) as session:
            timeouts = (CONNECT_SECONDS, ANSWER_SECONDS)
            # Unread: nothing in the answer matters but its status, and it may be endless.
            answer = session.post(address.url, json=body, timeout=timeouts, allow_redirects=False, stream=True)
    except AddressRejectedError as error:
        raise AlertDeliveryError(error.rule) from None
    except requests.RequestException as error:
        raise AlertDeliveryError(type(error).__name__) from None
    if not FIRST_GOOD <= answer.status_code <= LAST_GOOD:
        raise AlertDeliveryError(f"it answered {answer.status_code}")


def text_of(environment: str, alerts: Sequence[Alert]) -> str:
    """The alerts for a person, one a line."""
    return "\n".join(
        f"[{environment}] {'OVER: ' if alert.status == 'resolved' else ''}{alert.summary} {alert.link}".strip()
        for alert in alerts
    )


NAME = "alerts_sensor"


@dg.sensor(
    name=NAME,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells INGEST_ALERT_WEBHOOK_URL when a sensor, schedule or job begins to fail, or a disk is full.",
)
def alerts_sensor(context: dg.SensorEvaluationContext, services: dg.ResourceParam[SystemResources]) -> dg.SensorResult:
    """Compare what is wrong with what was told. A message that is not taken is sent again with the next tick."""
    settings = services.settings
    if settings.alerts.webhook_url is None:
        return dg.SensorResult(skip_reason="INGEST_ALERT_WEBHOOK_URL is not set: nobody is told of failures.")
    jobs = [job.name for job in context.repository_def.get_all_jobs()] if context.repository_def else []
    site = settings.dagster.webserver_url.rstrip("/")
    alert_conditions = troubles_of(context.instance, jobs, settings.alerts.failures_in_a_row, site)
    others = [trouble for trouble in alert_conditions if trouble.incident != f"sensor/{NAME}"]
    disk = fullest_disk(settings)
    if disk.is_nearly_full:
        others.append(AlertCondition("disk", str(disk), f"{site}/automation"))
    incidents, alerts = compare(_told(context.cursor), others, datetime.now(UTC))
    if alerts:
        deliver(settings.alerts.webhook_url, settings.environment, alerts)
    return dg.SensorResult(
        cursor=msgspec.json.encode(incidents).decode(),
        skip_reason=f"{len(incidents)} incidents, {len(alerts)} alerts sent.",
    )


def _told(cursor: str | None) -> dict[str, Incident]:
    return msgspec.json.decode(cursor, type=dict[str, Incident]) if cursor else {}


alerts = dg.Definitions(sensors=[alerts_sensor])
