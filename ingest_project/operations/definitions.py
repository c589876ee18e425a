"""Operations as Dagster sees them: the sensor that alerts, and the nightly job that purges expired records.

Alerts are one message per incident by webhook: failing sensors, schedules and jobs, and full disks. The job purges
partitions, runs, message ids, and what each capability purges of its own. Only what ended well expires; what failed, is
in quarantine, waits or is leased by a run is kept. Another package adds a way to send alerts by an entry point in the
group `ingest_project.alert_channels`; its name is listed in INGEST_ALERT_CHANNELS, its value an `AlertChannel`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import NamedTuple

import dagster as dg
import msgspec
import sqlalchemy as sa
from pydantic import SecretStr

from ingest_project.core import plugins
from ingest_project.core.errors import AddressRejectedError, PermanentError, TransientError
from ingest_project.core.settings import Settings
from ingest_project.operations import CAPABILITIES, SystemResources
from ingest_project.operations.snapshot import DagsterState, Sample, SystemSnapshot
from ingest_project.platform.capability import PurgeStep, QueueView
from ingest_project.platform.dagster.run_records import DagsterRecords
from ingest_project.platform.database import reading, writing
from ingest_project.platform.database.sql import in_parts
from ingest_project.platform.kafka.publisher import SENT, outbox
from ingest_project.platform.work_queue.sensor import BATCH_TAG

ALERTS_SENSOR = "alerts_sensor"
ENDED_RUNS = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
CONNECT_SECONDS, RESPONSE_SECONDS = 5.0, 10.0
MAX_PARTITIONS = 10_000
MAX_RUNS = 2_000
SHOWN = 10
PARTITION_TAG = "dagster/partition"


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
        if ticks.in_a_row >= limit and name != ALERTS_SENSOR
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
    """A channel did not accept the alerts. Its address is not repeated: it usually is a secret."""

    def __init__(self, cause: str, channel: str = "INGEST_ALERT_WEBHOOK_URL") -> None:
        self.cause, self.channel = cause, channel
        super().__init__(f"{channel} did not accept the alerts: {cause}. They are sent again.")


AlertChannel = Callable[[Settings, Sequence[Alert]], None]
"""Sends alerts, or raises: they are then sent again with the next tick, by every channel."""

CHANNELS: plugins.Plugins[AlertChannel] = plugins.plugins(
    plugins.ALERT_CHANNELS, {"webhook": "ingest_project.operations.definitions:send_to_webhook"}
)


def send(settings: Settings, alerts: Sequence[Alert]) -> None:
    """Send alerts by every channel, whichever of them fail.

    Raises:
        AlertDeliveryError: some did not accept them.
    """
    failed: list[AlertDeliveryError] = []
    for name in settings.alerts.channels:
        try:
            CHANNELS.named(name, "alert channel")(settings, alerts)
        except AlertDeliveryError as error:
            failed.append(error)
        except PermanentError as error:
            failed.append(AlertDeliveryError(str(error), name))
        except Exception as error:  # noqa: BLE001 - another package may raise anything, with its address in the text
            failed.append(AlertDeliveryError(type(error).__name__, name))
    if failed:
        causes = "; ".join(error.cause for error in failed)
        raise AlertDeliveryError(causes, " and ".join(error.channel for error in failed))


def send_to_webhook(settings: Settings, alerts: Sequence[Alert]) -> None:
    """Post alerts to INGEST_ALERT_WEBHOOK_URL; do nothing where it is not set.

    Raises:
        AlertDeliveryError: no response, or one that rejects them.
    """
    if settings.alerts.webhook_url is not None:
        deliver(settings.alerts.webhook_url, settings.environment, alerts)


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
            response.close()
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
    name=ALERTS_SENSOR,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Alerts INGEST_ALERT_WEBHOOK_URL when a sensor, schedule or job begins to fail, or a disk is full.",
)
def alerts_sensor(context: dg.SensorEvaluationContext, services: dg.ResourceParam[SystemResources]) -> dg.SensorResult:
    """Report what began and what is over. A message that is not accepted is sent again with the next tick."""
    settings = services.settings
    if settings.alerts.webhook_url is None and {*settings.alerts.channels} <= {"webhook"}:
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
        send(settings, alerts)
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


def plan_purge(services: SystemResources, instance: dg.DagsterInstance, now: datetime) -> list[PurgeStep]:
    """Find everything that has expired; remove nothing.

    Args:
        services: work queues and stores.
        instance: Dagster's records.
        now: from which the days of the settings are counted.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: the database does not answer.
    """
    settings, engine = services.settings.retention, services.engine
    partitions = now - settings.partitions

    return [
        *_partition_steps(engine, instance, partitions),
        _runs(engine, instance, now - timedelta(days=settings.run_days), partitions),
        _published_messages(engine, now - timedelta(days=settings.outbox_days)),
        *(step for one in CAPABILITIES for step in one.purge_steps(services, now)),
    ]


def _partitioned_queues() -> list[QueueView]:
    """Return the work queues whose entries are partitions in Dagster."""
    return [queue for capability in CAPABILITIES for queue in capability.queues if queue.partitions]


def _partition_steps(engine: sa.Engine, instance: dg.DagsterInstance, cutoff: datetime) -> list[PurgeStep]:
    with reading(engine) as connection:
        sets = [(queue, name) for queue in _partitioned_queues() for name in queue.partition_sets(connection)]
    return [_partitions(engine, instance, queue, name, cutoff) for queue, name in sets]


def _partitions(
    engine: sa.Engine, instance: dg.DagsterInstance, queue: QueueView, partitions: str, cutoff: datetime
) -> PurgeStep:
    known = list(instance.get_dynamic_partitions(partitions))
    expired: set[str] = set()
    with reading(engine) as connection:
        for part in in_parts(known):
            query = sa.select(queue.key).where(queue.key.in_(part), queue.has_expired(cutoff))
            expired.update(connection.execute(query).scalars())
    keys = [key for key in known if key in expired][:MAX_PARTITIONS]

    def remove() -> None:
        for key in keys:
            instance.delete_dynamic_partition(partitions, key)

    return PurgeStep(f"partitions of {partitions}", len(keys), keys[:SHOWN], remove)


def _runs(engine: sa.Engine, instance: dg.DagsterInstance, cutoff: datetime, partitions_cutoff: datetime) -> PurgeStep:
    """Find runs without partitions after their days, and runs that made partitions when all of those have expired."""
    records = instance.get_run_records(
        filters=dg.RunsFilter(statuses=[*ENDED_RUNS, dg.DagsterRunStatus.CANCELED], updated_before=cutoff),
        limit=MAX_RUNS,
        ascending=True,
    )
    runs = [record.dagster_run for record in records]
    made_partitions = {run.run_id for run in runs if BATCH_TAG in run.tags or PARTITION_TAG in run.tags}
    newest_expired = partitions_cutoff.timestamp()
    recent = {one.dagster_run.run_id for one in records if one.update_timestamp.timestamp() >= newest_expired}
    needed = _needed_runs(engine, list(made_partitions), partitions_cutoff) | (recent & made_partitions)
    run_ids = [run.run_id for run in runs if run.run_id not in needed]

    def remove() -> None:
        for run_id in run_ids:
            instance.delete_run(run_id)

    return PurgeStep("finished runs", len(run_ids), run_ids[:SHOWN], remove)


def _needed_runs(engine: sa.Engine, run_ids: Sequence[str], cutoff: datetime) -> set[str]:
    """Return those of the runs that were the last to work on an entry that has not expired."""
    needed: set[str] = set()
    with reading(engine) as connection:
        for queue in _partitioned_queues():
            run_id = queue.table.c.run_id
            for part in in_parts(run_ids):
                query = sa.select(run_id).where(run_id.in_(part), ~queue.has_expired(cutoff)).distinct()
                needed.update(connection.execute(query).scalars())
    return needed


def _published_messages(engine: sa.Engine, cutoff: datetime) -> PurgeStep:
    """Find ids of messages that were published long ago: published again, they would be on their topic twice."""
    old = sa.and_(outbox.c.state == SENT, outbox.c.created_at < cutoff)
    with reading(engine) as connection:
        number = int(connection.execute(sa.select(sa.func.count()).where(old)).scalar_one())

    def remove() -> None:
        with writing(engine) as connection:
            connection.execute(sa.delete(outbox).where(old))

    return PurgeStep("ids of published messages", number, [], remove)


class RetentionConfig(dg.Config):
    """With `dry_run`, the run only logs what it would remove."""

    dry_run: bool = False


@dg.op(description="Purges expired records; see the settings under `retention`.")
def purge(context: dg.OpExecutionContext, config: RetentionConfig, services: dg.ResourceParam[SystemResources]) -> None:
    """Remove one kind after the other, and log each."""
    for step in plan_purge(services, context.instance, datetime.now(UTC)):
        if not config.dry_run:
            step.remove()
        verb = "would be removed" if config.dry_run else "removed"
        context.log.info("%d %s %s.", step.number, step.what, verb)


@dg.job(name="retention", description="Purges expired partitions, runs, bytes and message ids.")
def retention_job() -> None:
    """Purge every kind."""
    purge()


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
