"""The three assets of `sales_events`, made in one pass: each message belongs to exactly one of them.

A run is told its ranges in its configuration and reads just these, however often. A person who materialises the assets
without naming ranges gets everything that is due, and what was given up before.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import dagster as dg

from ingest_project.contracts.crm_event import CrmKind
from ingest_project.core.batches import prefetch
from ingest_project.core.errors import IngestError, TransientError
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform.dagster.asset_events import keep_connections_open
from ingest_project.platform.dagster.external_assets import topic_key
from ingest_project.platform.database.engine import reading
from ingest_project.platform.kafka.offset_ranges import Chunk, OpenRanges
from ingest_project.platform.work_queue.batches import BATCH_ID_TAG, DATABASE_POOL, new_batch_id
from ingest_project.streams.crm.classify import Identified, identify
from ingest_project.streams.crm.resources import CrmResources
from ingest_project.streams.crm.unidentified import UNIDENTIFIED_MESSAGES, unidentified_messages
from ingest_project.streams.crm.unidentified_store import count_open
from ingest_project.streams.crm.upsert import jittered, retried, store
from ingest_project.streams.range_record import OffsetRange, RangeRecord, RangeState
from ingest_project.streams.runs import RangesConfig, claim, trouble_of
from ingest_project.streams.ticks import lag

STREAM_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(hours=12))


OPPORTUNITIES = dg.AssetKey("opportunities")

opportunities = dg.AssetSpec(
    OPPORTUNITIES,
    deps=[topic_key("sales_events")],
    description="Each opportunity in its newest version; an older one never overwrites a newer one.",
    group_name="crm",
    kinds={"postgres"},
    skippable=True,
    freshness_policy=STREAM_FRESHNESS,
)


PROJECTS = dg.AssetKey("projects")

projects = dg.AssetSpec(
    PROJECTS,
    deps=[topic_key("sales_events")],
    description="Each project in its newest version; an older one never overwrites a newer one.",
    group_name="crm",
    kinds={"postgres"},
    skippable=True,
    freshness_policy=STREAM_FRESHNESS,
)


logger = get_logger(__name__)

ASSETS_OP = "crm"
CHUNK_MESSAGES = 5_000
CHUNK_BYTES = 16 * 1024**2
MOST_BY_HAND = 1_000


@dataclass
class Progress:
    """How far a run has come in one range."""

    next_offset: int
    messages: int = 0
    lost: int = 0
    outcome: Counter[str] = field(default_factory=Counter)


@dg.multi_asset(name=ASSETS_OP, specs=[opportunities, projects, unidentified_messages], pool=DATABASE_POOL)
def crm_assets(
    context: dg.AssetExecutionContext, config: RangesConfig, services: dg.ResourceParam[CrmResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """Read the ranges of this run, and store each message in the table it belongs to."""
    keep_connections_open(context.instance)
    ledger, topic = services.stream_ranges, services.settings.topics.sales_events
    with bound(run_id=context.run.run_id, batch_id=context.run.tags.get(BATCH_ID_TAG)):
        keys = [one.key for one in config.offsets()] or _claim_due(services, topic)
        records = claim(context, services, keys)
        total, done, trouble = _store_ranges(services, records)
        if done or not trouble:
            for asset, metadata in _metadata(services, total, done).items():
                yield dg.MaterializeResult(asset_key=asset, metadata=metadata)
            ledger.mark_reported([record.range_key for record in done], datetime.now(UTC))
    if trouble:
        raise dg.Failure(description=str(trouble), metadata={"error_class": trouble.error_class}, allow_retries=False)


def _claim_due(services: CrmResources, topic: str) -> list[str]:
    """What a person who names no ranges gets."""
    ledger, now = services.stream_ranges, datetime.now(UTC)
    ledger.reopen(topic, [RangeState.FAILED], now)
    due = [entry.key for entry in ledger.due(topic, MOST_BY_HAND, now)]
    return list(ledger.claim(new_batch_id(), due, now))


def _store_ranges(
    services: CrmResources, records: Sequence[RangeRecord]
) -> tuple[Progress, list[RangeRecord], IngestError | None]:
    """Store range after range; at the first trouble that does not pass, give back what is not done, with the reason."""
    ledger, total = services.stream_ranges, Progress(0)
    done: list[RangeRecord] = []
    with services.range_reader.opened() as ranges:
        for record in records:
            progress = Progress(record.offsets.first)
            try:
                retried(partial(_advance, services, ranges, record.offsets, progress), services.settings.retries)
                ledger.finish(record.range_key, progress.messages, progress.lost, progress.outcome, datetime.now(UTC))
            except Exception as error:  # noqa: BLE001 - whatever it is, the ledger must say so
                trouble = trouble_of(error, f"Storing {record.offsets}")
                logger.warning("range_not_done", range=str(record.offsets), reason=str(trouble))
                _requeue(services, [one.range_key for one in records if one not in done], trouble)
                return total, done, trouble
            logger.info("range_done", range=str(record.offsets), messages=progress.messages, **progress.outcome)
            total.messages += progress.messages
            total.lost += progress.lost
            total.outcome += progress.outcome
            done.append(record)
    return total, done, None


def _advance(services: CrmResources, ranges: OpenRanges, offsets: OffsetRange, progress: Progress) -> None:
    """Read on in a range from where it was left, and store each chunk in a transaction."""
    epoch = services.stream_ranges.epochs(offsets.topic).get(offsets.topic_id, 0)
    with prefetch(_identified(ranges, offsets, progress.next_offset, epoch)) as chunks:
        for chunk, found in chunks:
            progress.outcome += store(services.engine, found, services.settings.logging.file)
            progress.messages += len(chunk.messages)
            progress.lost += chunk.lost
            progress.next_offset = chunk.next_offset


def _identified(
    ranges: OpenRanges, offsets: OffsetRange, first: int, epoch: int
) -> Generator[tuple[Chunk, Identified], None, None]:
    """What is left of a range, and which of its messages is what."""
    for chunk in ranges.read(*offsets.topic_partition, first, offsets.end, CHUNK_MESSAGES, CHUNK_BYTES):
        yield chunk, identify(chunk.messages, offsets.topic_id, epoch)


def _requeue(services: CrmResources, keys: Sequence[str], error: IngestError) -> None:
    retries = services.settings.retries
    jittery = retries.model_copy(update={"delay_seconds": retries.delay_seconds * jittered(1.0)})
    try:
        services.stream_ranges.requeue_later(keys, str(error), error.error_class, jittery, datetime.now(UTC))
    except TransientError as away:
        # The database itself is what is away: a tick takes back what this run holds once it is there again.
        logger.warning("ranges_not_given_back", reason=str(away))


def _metadata(
    services: CrmResources, total: Progress, done: Sequence[RangeRecord]
) -> dict[dg.AssetKey, dict[str, Any]]:
    common: dict[str, Any] = {
        "messages_read": total.messages,
        "ranges": len(done),
        **({"offsets": ", ".join(str(record.offsets) for record in done[:20])} if done else {}),
        **({"offsets_lost": total.lost} if total.lost else {}),
        **_lag(services, done),
    }
    with reading(services.engine) as connection:
        still_open = count_open(connection)
    return {
        **{
            asset: {
                "messages": total.outcome[f"{kind}_messages"],
                "rows_changed": total.outcome[f"{kind}_rows_changed"],
                **common,
            }
            for asset, kind in ((OPPORTUNITIES, CrmKind.OPPORTUNITY), (PROJECTS, CrmKind.PROJECT))
        },
        UNIDENTIFIED_MESSAGES: {"messages": total.outcome["unidentified"], "open_messages": still_open, **common},
    }


def _lag(services: CrmResources, done: Sequence[RangeRecord]) -> dict[str, Any]:
    """How many offsets wait on the topic or in the ledger; nothing where the broker cannot be asked now."""
    waiting = lag(services, done[-1].offsets.topic, done[-1].offsets.topic_id) if done else None
    return {} if waiting is None else {"consumer_lag": waiting}
