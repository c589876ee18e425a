"""`attachment_events`: the download tasks that events ask for, announced on `downloads.pending`.

An attachment is entered before it is announced: what comes back over the topic is known then, and whoever else asks for
the same address in the same trace asks for the same attachment.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg

from ingest_project.attachments.catalog import (
    ATTACHMENT_EVENTS,
    ATTACHMENTS,
    ATTACHMENTS_FRESHNESS,
    hourly_partitions,
)
from ingest_project.attachments.extraction import AddressPaths, tasks_of
from ingest_project.attachments.publish_outcomes import publish
from ingest_project.attachments.queue.events import EventRecord, Extracted, HourOfEvents
from ingest_project.attachments.queue.record import TaskArrival
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.core.bisection import store_bisecting
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform.dagster.asset_events import (
    Context,
    PartitionEvents,
    keep_connections_open,
    outputs_without_events,
    report,
)
from ingest_project.platform.dagster.external_assets import topic_key
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.work_queue.item_errors import error_class_of, is_item_fault, reason_of, traceback_of

logger = get_logger(__name__)

# Marks the tasks that we announce ourselves: one of somebody else for a failed attachment asks for another try.
ORIGIN_HEADER = "origin"
ORIGIN = b"ingest_project"
EVENTS_AT_A_TIME = 1_000


@dg.multi_asset(
    name="attachment_intake",
    specs=[
        dg.AssetSpec(
            ATTACHMENT_EVENTS,
            deps=[topic_key("events_raw")],
            description="The events that arrived in an hour, and the download tasks made of them.",
            group_name="attachments",
            kinds={"kafka"},
            partitions_def=hourly_partitions,
            freshness_policy=ATTACHMENTS_FRESHNESS,
            skippable=True,
        )
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def attachment_events(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[AttachmentResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """Take the addresses out of the selected hours' events again: a fixed path may find what was missed."""
    keys = [key for hour in context.partition_keys for key in services.attachment_events.of_hour(hour)]
    extract(context, services, keys, hours=context.partition_keys)
    yield from outputs_without_events(context)


def extract(
    context: Context,
    services: AttachmentResources,
    keys: Sequence[str],
    batch_id: str | None = None,
    hours: Sequence[str] = (),
) -> None:
    """Take the addresses out of events, announce the tasks, and report the hours.

    Args:
        context: of the run.
        services: ledger and Kafka.
        keys: of the events.
        batch_id: of a run that goes on to download what it finds; None leaves that to whoever is asked next.
        hours: reported in any case, also where no event arrived in them.
    """
    keep_connections_open(context.instance)
    paths = AddressPaths(services.settings.attachments.url_paths)
    with bound(run_id=context.run.run_id, batch_id=batch_id):
        touched = set(hours)
        for start in range(0, len(keys), EVENTS_AT_A_TIME):
            part = keys[start : start + EVENTS_AT_A_TIME]
            records = services.attachment_events.start(part, context.run.run_id, datetime.now(UTC))
            _extract(context, services, records, paths, batch_id)
            touched.update(record.hour for record in records)
        report(context, [_hour_report(hour) for hour in services.attachment_events.hours(sorted(touched))])
        services.attachment_events.mark_reported(keys, datetime.now(UTC))


def _extract(
    context: Context,
    services: AttachmentResources,
    records: Sequence[EventRecord],
    paths: AddressPaths,
    batch_id: str | None,
) -> None:
    now = datetime.now(UTC)
    by_event, failures = _tasks_by_event(services, records, paths)
    owners: dict[str, str] = {}

    def enter(event_keys: Sequence[str]) -> None:
        tasks = [task for key in event_keys for task in by_event[key]]
        owners.update(services.attachments.record_extracted(tasks, batch_id, context.run.run_id, now))

    for key, error in store_bisecting(list(by_event), enter, is_item_fault):
        failures[key] = error
        del by_event[key]
    _fail(services, failures, now)
    arrivals = [arrival for tasks in by_event.values() for arrival in tasks]
    ours = {arrival.attachment_key: arrival for arrival in arrivals if owners[arrival.attachment_key] in by_event}
    announce(services, [arrival for arrival in ours.values() if not arrival.task.refused])
    context.instance.add_dynamic_partitions(ATTACHMENTS, list(ours))
    services.attachment_events.finish([_extracted(key, tasks, owners) for key, tasks in by_event.items()], now)
    refused = sum(bool(arrival.task.refused) for arrival in ours.values())
    logger.info(
        "events_extracted", events=len(records), addresses=len(arrivals), attachments=len(ours), refused=refused
    )


def _tasks_by_event(
    services: AttachmentResources, records: Sequence[EventRecord], paths: AddressPaths
) -> tuple[dict[str, list[TaskArrival]], dict[str, Exception]]:
    """The tasks of each event; of those that none can be made of, why."""
    tasks: list[TaskArrival] = []
    by_event: dict[str, list[TaskArrival]] = {}
    failures: dict[str, Exception] = {}
    for record in records:
        try:
            tasks += tasks_of(record, paths, services.destinations)
        except Exception as error:
            if not is_item_fault(error):
                raise
            failures[record.event_key] = error
        else:
            by_event[record.event_key] = []
    for task in services.attachments.under_known_keys(tasks):
        by_event[task.event_key or ""].append(task)
    return by_event, failures


def _fail(services: AttachmentResources, failures: Mapping[str, Exception], now: datetime) -> None:
    for key, error in failures.items():
        logger.error("event_not_extracted", event_key=key, reason=reason_of(error), exc_info=traceback_of(error))
    why = {key: (error_class_of(error), reason_of(error)) for key, error in failures.items()}
    services.attachment_events.fail(why, now)


def announce(services: AttachmentResources, arrivals: Sequence[TaskArrival]) -> None:
    """Publish tasks on `downloads.pending`, each once. One that the broker does not take is downloaded all the same."""
    messages = [
        (f"task/{arrival.attachment_key}", ProducerRecord(arrival.raw.encode(), _key(arrival), _headers(arrival)))
        for arrival in arrivals
    ]
    topic = services.settings.topics.downloads_pending
    for message_id, error in publish(services, topic, messages):
        logger.warning("task_not_announced", message_id=message_id, reason=reason_of(error))


def _key(arrival: TaskArrival) -> bytes:
    return arrival.attachment_key.encode()


def _headers(arrival: TaskArrival) -> tuple[tuple[str, bytes], ...]:
    return (("trace-id", arrival.task.trace_id.encode()), (ORIGIN_HEADER, ORIGIN))


def _extracted(event_key: str, tasks: Sequence[TaskArrival], owners: dict[str, str]) -> Extracted:
    own = {task.attachment_key for task in tasks if owners[task.attachment_key] == event_key}
    return Extracted(event_key, addresses=len(tasks), duplicates=len(tasks) - len(own))


def _hour_report(hour: HourOfEvents) -> PartitionEvents:
    metadata = {
        "events": hour.events,
        "addresses": hour.addresses,
        "tasks": hour.tasks,
        "duplicates": hour.duplicates,
        "events_unfinished": hour.unfinished,
    }
    return PartitionEvents(hour.hour, {ATTACHMENT_EVENTS: metadata})
