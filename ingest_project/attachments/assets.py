"""The assets of attachments: events to download tasks, attachments to stored files, attempts to a Delta table.

`attachment_events`: an attachment is recorded before its task is published: the task is known when it comes back over
the topic, and any other task for the same address in the same trace means the same attachment.

`onelake_attachments`: the result of an attempt is recorded in the work queue, then published to Kafka and Dagster, and
committed to Delta at the end of the run. A run that is killed in between leaves a result that was not published or not
committed; the next run of the attachment continues there, without downloading again. An error in recording, publishing
or reporting one attachment does not affect the others: see `bisection`.

`attachment_results`: runs commit their own rows; this asset commits the rest.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import dagster as dg

from ingest_project.attachments import AttachmentResources
from ingest_project.attachments.attempts import AttemptResult
from ingest_project.attachments.catalog import (
    ANY_ATTACHMENT,
    ATTACHMENT_EVENTS,
    ATTACHMENT_RESULTS,
    ATTACHMENTS,
    ATTACHMENTS_FRESHNESS,
    EVENTS_OF_ANY_HOUR,
    ONELAKE_ATTACHMENTS,
    attachment_report,
    attachments_partitions,
    hourly_partitions,
    results_reports,
)
from ingest_project.attachments.downloading import Postponed, attempts, cache_path, download_at, store_at, unrecordable
from ingest_project.attachments.extraction import AddressPaths, tasks_of
from ingest_project.attachments.queue import AttachmentRecord, EventRecord, HourOfEvents, TaskArrival
from ingest_project.attachments.results import commit_results, publish, publish_cached, publish_outcomes
from ingest_project.contracts.attachments import DownloadStatus
from ingest_project.core.items import grouped, store_bisecting
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform import tracing
from ingest_project.platform.dagster.asset_events import (
    Context,
    PartitionEvents,
    keep_connections_open,
    outputs_without_events,
    partitions_of_run,
    report,
)
from ingest_project.platform.dagster.catalog import topic_key
from ingest_project.platform.errors import error_class_of, is_item_fault, reason_of, traceback_of
from ingest_project.platform.http import redacted_url
from ingest_project.platform.kafka.consumer import Headers
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.tracing import Item
from ingest_project.platform.work_queue.queue import JobState
from ingest_project.platform.work_queue.sensor import BATCH_ID_TAG, ONELAKE_POOL, keys_of_run

logger = get_logger(__name__)

# Marks the tasks that we publish: a task of another producer for a failed attachment requests another attempt.
ORIGIN_HEADER = "origin"
ORIGIN = b"ingest_project"
EVENTS_AT_A_TIME = 1_000

_spec = partial(dg.AssetSpec, group_name="attachments", freshness_policy=ATTACHMENTS_FRESHNESS, skippable=True)


@dg.multi_asset(
    name="attachment_intake",
    specs=[
        _spec(
            ATTACHMENT_EVENTS,
            deps=[topic_key("events_raw")],
            description="The events that arrived in an hour, and the download tasks made of them.",
            kinds={"kafka"},
            partitions_def=hourly_partitions,
        )
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def attachment_events(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[AttachmentResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """Extract the addresses of the selected hours' events again: a corrected path may find missed ones."""
    hours = partitions_of_run(context)
    extract(context, services, [key for hour in hours for key in services.attachment_events.of_hour(hour)], hours=hours)
    yield from outputs_without_events(context)


def extract(
    context: Context,
    services: AttachmentResources,
    keys: Sequence[str],
    batch_id: str | None = None,
    hours: Sequence[str] = (),
) -> None:
    """Extract addresses from events, publish the tasks, and report the hours.

    Args:
        context: context of the run.
        services: work queues and Kafka.
        keys: keys of the events.
        batch_id: id of a run that continues with the downloads; None leaves these to the next batch.
        hours: reported in any case, also without events.
    """
    keep_connections_open(context.instance)
    paths = AddressPaths(services.settings.attachments.url_paths)
    with bound(run_id=context.run.run_id, batch_id=batch_id):
        touched = set(hours)
        for start in range(0, len(keys), EVENTS_AT_A_TIME):
            part = keys[start : start + EVENTS_AT_A_TIME]
            records = services.attachment_events.begin(part, context.run.run_id, datetime.now(UTC))
            traced = ((one.event_key, one.kafka_position.context, {"trace_id": one.trace_id}) for one in records)
            with tracing.items("extract attachments", traced):
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
    publish_tasks(services, [arrival for arrival in ours.values() if not arrival.task.refused])
    context.instance.add_dynamic_partitions(ATTACHMENTS, list(ours))
    extracted = {key: _extraction_counts(key, tasks, owners) for key, tasks in by_event.items()}
    services.attachment_events.finish(extracted, JobState.DONE, now)
    refused = sum(bool(arrival.task.refused) for arrival in ours.values())
    logger.info(
        "events_extracted", events=len(records), addresses=len(arrivals), attachments=len(ours), refused=refused
    )


def _tasks_by_event(
    services: AttachmentResources, records: Sequence[EventRecord], paths: AddressPaths
) -> tuple[dict[str, list[TaskArrival]], dict[str, Exception]]:
    """Return the tasks of each event, and the error of each event that no task can be made of."""
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
    for task in tasks:
        by_event[task.event_key or ""].append(task)
    return by_event, failures


def _fail(services: AttachmentResources, failures: Mapping[str, Exception], now: datetime) -> None:
    for key, error in failures.items():
        logger.error("event_not_extracted", event_key=key, reason=reason_of(error), exc_info=traceback_of(error))
        tracing.finish(key, (error_class_of(error), reason_of(error)))
        services.attachment_events.fail([key], reason_of(error), error_class_of(error), now)


def publish_tasks(services: AttachmentResources, arrivals: Sequence[TaskArrival]) -> None:
    """Publish tasks on `downloads.pending`, each once. One that the broker refuses is downloaded nevertheless."""
    messages = [
        (
            f"task/{arrival.attachment_key}",
            ProducerRecord(arrival.raw.encode(), arrival.attachment_key.encode(), _headers(arrival)),
        )
        for arrival in arrivals
    ]
    topic = services.settings.topics.downloads_pending
    for message_id, error in publish(services, topic, messages):
        logger.warning("task_not_announced", message_id=message_id, reason=reason_of(error))


def _headers(arrival: TaskArrival) -> Headers:
    return (*tracing.message_headers(arrival.task.trace_id, arrival.event_key or ""), (ORIGIN_HEADER, ORIGIN))


def _extraction_counts(event_key: str, tasks: Sequence[TaskArrival], owners: dict[str, str]) -> dict[str, int]:
    own = {task.attachment_key for task in tasks if owners[task.attachment_key] == event_key}
    return {"addresses": len(tasks), "duplicates": len(tasks) - len(own)}


def _hour_report(hour: HourOfEvents) -> PartitionEvents:
    metadata = {
        "events": hour.events,
        "addresses": hour.addresses,
        "tasks": hour.tasks,
        "duplicates": hour.duplicates,
        "events_unfinished": hour.unfinished,
    }
    return PartitionEvents(hour.hour, {ATTACHMENT_EVENTS: metadata})


PARTITIONS_PER_BACKFILL_RUN = 500


@dg.multi_asset(
    name="attachment_download",
    specs=[
        _spec(
            ONELAKE_ATTACHMENTS,
            deps=[EVENTS_OF_ANY_HOUR, topic_key("downloads_pending")],
            description="The downloaded file in the attachment store.",
            kinds={"onelake"},
            partitions_def=attachments_partitions,
        )
    ],
    pool=ONELAKE_POOL,
    backfill_policy=dg.BackfillPolicy.multi_run(PARTITIONS_PER_BACKFILL_RUN),
)
def onelake_attachments(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[AttachmentResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """Download and store every attachment of this run, and report each on its own partition."""
    download(context, services, keys_of_run(context, services.attachments.batch))
    yield from outputs_without_events(context)


def download(context: Context, services: AttachmentResources, keys: Sequence[str]) -> None:
    """Download and store attachments, and report each.

    Raises:
        Failure: all of them are dead.
    """
    keep_connections_open(context.instance)
    with bound(run_id=context.run.run_id, batch_id=context.run.tags.get(BATCH_ID_TAG)):
        records = services.attachments.begin(keys, context.run.run_id, datetime.now(UTC))
        with tracing.items("ingest attachment", map(_item, records)):
            dead = sum(_finish(context, services, group) for group in _results(context, services, records))
            report(context, results_reports(services, commit_results(services)))
            services.attachments.mark_reported(keys, datetime.now(UTC))
    if dead and dead == len(keys):
        raise dg.Failure(
            description=f"None of {dead} attachments was stored; their partitions say why.", allow_retries=False
        )


def _item(record: AttachmentRecord) -> Item:
    known = {"trace_id": record.trace_id, "domain": record.domain, "attempt": record.attempt, "replays": record.replays}
    address = redacted_url(record.attachment_url)
    return record.attachment_key, record.kafka_position.context, {**known, "attachment_url": address}


def _results(
    context: Context, services: AttachmentResources, records: Sequence[AttachmentRecord]
) -> Iterator[list[AttemptResult]]:
    """Yield results of attempts: first those of a lost run, then new ones."""
    recovered = services.outcomes.recovered([record.attachment_key for record in records])
    present = {record.identity for record in records}
    _publish_results(context, services, [outcome for outcome in recovered if outcome.identity not in present])
    ended = {outcome.identity: outcome for outcome in recovered if outcome.identity in present}
    yield list(ended.values())
    remaining = [record for record in records if record.identity not in ended]
    downloads = services.settings.downloads
    groups = attempts(
        remaining,
        lambda record: download_at(record, services),
        downloads.concurrency,
        store=lambda cached: store_at(cached, services),
        announce=lambda cached: publish_cached(services, cached),
        per_host=downloads.concurrency_per_host,
        begin_within=timedelta(seconds=downloads.max_seconds),
    )
    unrecorded = {record.attachment_key for record in remaining}
    try:
        for group in groups:
            _postpone(services, [end for end in group if isinstance(end, Postponed)])
            yield [end for end in group if isinstance(end, AttemptResult)]
            unrecorded.difference_update(end.attachment_key for end in group)
    finally:
        # After a failure: the next run, perhaps on another machine, downloads again what this one had in the cache.
        groups.close()
        _remove_cached(services, unrecorded)


def _postpone(services: AttachmentResources, postponed: Sequence[Postponed]) -> None:
    by_reason = grouped(((end.reason, end.until), end.attachment_key) for end in postponed)
    for (reason, until), keys in by_reason.items():
        services.attachments.postpone(keys, reason, until, datetime.now(UTC))


def _remove_cached(services: AttachmentResources, keys: Iterable[str]) -> None:
    for key in keys:
        cache_path(services, key).unlink(missing_ok=True)


def _finish(context: Context, services: AttachmentResources, outcomes: Sequence[AttemptResult]) -> int:
    """Record, publish and report the results of attempts; returns how many attachments are dead after them."""
    if not outcomes:
        return 0
    recorded = _record(services, outcomes, context.run.run_id)
    _remove_cached(services, [outcome.attachment_key for outcome in outcomes])
    _publish_results(context, services, recorded)
    for outcome in recorded:
        result = outcome.result
        error = (result.error_class or result.status.value, result.error or "") if result.error_class else None
        tracing.finish(outcome.attachment_key, error, status=result.status.value, size_bytes=result.size_bytes)
    ended = Counter(outcome.result.status for outcome in recorded)
    logger.info("attempts_ended", **{status.value: count for status, count in ended.items()})
    return ended[DownloadStatus.FAILED_PERMANENT]


def _record(services: AttachmentResources, outcomes: Sequence[AttemptResult], run_id: str) -> list[AttemptResult]:
    """Record results; one that the work queue refuses is recorded as a failure."""
    recorded: list[AttemptResult] = []

    def enter(part: Sequence[AttemptResult]) -> None:
        recorded.extend(services.attachments.finish_attempts(part, run_id, datetime.now(UTC)))

    for outcome, error in store_bisecting(outcomes, enter, is_item_fault):
        logger.error("outcome_not_entered", partition_key=outcome.attachment_key, exc_info=traceback_of(error))
        enter([unrecordable(outcome, error)])
    return recorded


def _publish_results(context: Context, services: AttachmentResources, outcomes: Sequence[AttemptResult]) -> None:
    """Publish results to Kafka and Dagster. Done again, Kafka has each message once."""
    if not outcomes:
        return
    keys = [outcome.attachment_key for outcome in outcomes]
    with tracing.step("publish", keys):
        unpublished = publish_outcomes(services, outcomes)
    reports = [attachment_report(outcome) for outcome in outcomes]
    with tracing.step("report", keys):
        for shown, error in store_bisecting(reports, lambda part: report(context, part), is_item_fault):
            logger.error("attachment_not_shown", partition_key=shown.partition, exc_info=traceback_of(error))
    services.outcomes.mark_published(outcomes, datetime.now(UTC), unpublished)


@dg.multi_asset(
    name="attachment_commit",
    specs=[
        _spec(
            ATTACHMENT_RESULTS,
            deps=[ANY_ATTACHMENT],
            description="The Delta table of how each download attempt ended, by the hour in which it did.",
            kinds={"deltalake"},
            partitions_def=hourly_partitions,
        )
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def attachment_results(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[AttachmentResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """Commit the rows that are in no commit yet, and report the present state of the selected hours."""
    selected = partitions_of_run(context)
    keep_connections_open(context.instance)
    hours = {*commit_results(services), *selected}
    report(context, results_reports(services, sorted(hours)))
    yield from outputs_without_events(context)
