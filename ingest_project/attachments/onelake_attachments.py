"""`onelake_attachments`: every attachment of a run downloaded, verified and stored; how each ended, told to everybody.

The end of an attempt is entered in the ledger, then told to Kafka and to Dagster, and at the end of the run committed
to Delta. A run that is killed in between leaves an end that was not told or not committed; the run that takes the
attachment up next goes on there, without downloading again.

Whatever cannot be entered, told or shown of one attachment costs the others nothing: see `bisection`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from ingest_project.attachments.asset_events import attachment_report, results_reports
from ingest_project.attachments.catalog import (
    ATTACHMENTS_FRESHNESS,
    EVENTS_OF_ANY_HOUR,
    ONELAKE_ATTACHMENTS,
    attachments_partitions,
)
from ingest_project.attachments.downloading import Postponed, attempts, cache_path, download_at, store_at, unrecordable
from ingest_project.attachments.publish_outcomes import publish_outcomes, tell_cached
from ingest_project.attachments.queue.record import AttachmentRecord, AttemptResult
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.attachments.results_table import commit_results
from ingest_project.contracts.download import DownloadStatus
from ingest_project.core.bisection import store_bisecting
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform.dagster.asset_events import Context, keep_connections_open, outputs_without_events, report
from ingest_project.platform.dagster.external_assets import topic_key
from ingest_project.platform.work_queue.batches import BATCH_ID_TAG, ONELAKE_POOL, keys_of_run
from ingest_project.platform.work_queue.item_errors import is_item_fault, traceback_of

logger = get_logger(__name__)

PARTITIONS_PER_BACKFILL_RUN = 500


@dg.multi_asset(
    name="attachment_download",
    specs=[
        dg.AssetSpec(
            ONELAKE_ATTACHMENTS,
            deps=[EVENTS_OF_ANY_HOUR, topic_key("downloads_pending")],
            description="The downloaded file in the attachment store.",
            group_name="attachments",
            kinds={"onelake"},
            partitions_def=attachments_partitions,
            freshness_policy=ATTACHMENTS_FRESHNESS,
            skippable=True,
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
    """Download and store attachments, and say how each ended.

    Raises:
        Failure: all of them are dead.
    """
    keep_connections_open(context.instance)
    with bound(run_id=context.run.run_id, batch_id=context.run.tags.get(BATCH_ID_TAG)):
        records = services.attachments.start(keys, context.run.run_id, datetime.now(UTC))
        dead = sum(_finish(context, services, group) for group in _ends(context, services, records))
        report(context, results_reports(services, commit_results(services)))
        services.attachments.mark_reported(keys, datetime.now(UTC))
    if dead and dead == len(keys):
        raise dg.Failure(
            description=f"None of {dead} attachments was stored; their partitions say why.", allow_retries=False
        )


def _ends(
    context: Context, services: AttachmentResources, records: Sequence[AttachmentRecord]
) -> Iterator[list[AttemptResult]]:
    """How attempts ended: first those that a lost run had made, then new ones."""
    recovered = services.outcomes.recovered([record.attachment_key for record in records])
    present = {(record.attachment_key, record.replays, record.attempt) for record in records}
    _announce(context, services, [outcome for outcome in recovered if outcome.identity not in present])
    ended = {outcome.identity: outcome for outcome in recovered if outcome.identity in present}
    yield list(ended.values())
    remaining = [r for r in records if (r.attachment_key, r.replays, r.attempt) not in ended]
    downloads = services.settings.downloads
    groups = attempts(
        remaining,
        lambda record: download_at(record, services),
        downloads.concurrency,
        store=lambda cached: store_at(cached, services),
        announce=lambda cached: tell_cached(services, cached),
        per_host=downloads.concurrency_per_host,
        begin_within=timedelta(seconds=downloads.max_seconds),
    )
    try:
        for group in groups:
            _postpone(services, [end for end in group if isinstance(end, Postponed)])
            yield [end for end in group if isinstance(end, AttemptResult)]
    finally:
        # Of a run that failed: what it had in the cache is brought again by the next one, perhaps on another machine.
        groups.close()
        _remove_cached(services, [record.attachment_key for record in remaining])


def _postpone(services: AttachmentResources, postponed: Sequence[Postponed]) -> None:
    together: dict[tuple[str, datetime], list[str]] = {}
    for end in postponed:
        together.setdefault((end.reason, end.until), []).append(end.attachment_key)
    for (reason, until), keys in together.items():
        services.attachments.postpone(keys, reason, until, datetime.now(UTC))


def _remove_cached(services: AttachmentResources, keys: Sequence[str]) -> None:
    for key in keys:
        cache_path(services, key).unlink(missing_ok=True)


def _finish(context: Context, services: AttachmentResources, outcomes: Sequence[AttemptResult]) -> int:
    """Enter, tell and show how some attempts ended; returns how many attachments are dead after them."""
    if not outcomes:
        return 0
    holding = _entered(services, outcomes, context.run.run_id)
    _remove_cached(services, [outcome.attachment_key for outcome in outcomes])
    _announce(context, services, holding)
    ended = Counter(outcome.result.status for outcome in holding)
    logger.info("attempts_ended", **{status.value: count for status, count in ended.items()})
    return ended[DownloadStatus.FAILED_PERMANENT]


def _entered(services: AttachmentResources, outcomes: Sequence[AttemptResult], run_id: str) -> list[AttemptResult]:
    """Enter outcomes; one that the ledger does not take is entered as the failure that it is."""
    holding: list[AttemptResult] = []

    def enter(part: Sequence[AttemptResult]) -> None:
        holding.extend(services.attachments.finish(part, run_id, datetime.now(UTC)))

    for outcome, error in store_bisecting(outcomes, enter, is_item_fault):
        logger.error("outcome_not_entered", partition_key=outcome.attachment_key, exc_info=traceback_of(error))
        enter([unrecordable(outcome, error)])
    return holding


def _announce(context: Context, services: AttachmentResources, outcomes: Sequence[AttemptResult]) -> None:
    """Tell Kafka and Dagster how attempts ended. Done again, Kafka has each message once."""
    if not outcomes:
        return
    unpublished = publish_outcomes(services, outcomes)
    reports = [attachment_report(outcome) for outcome in outcomes]
    for shown, error in store_bisecting(reports, lambda part: report(context, part), is_item_fault):
        logger.error("attachment_not_shown", partition_key=shown.partition, exc_info=traceback_of(error))
    services.outcomes.mark_published(outcomes, datetime.now(UTC), unpublished)
