"""CRM as Dagster sees it: assets, checks, jobs, the sensor, schedules, external assets, and the tables of the assets.

The three assets of `sales_events` are stored in one pass: each message belongs to exactly one of them. A run that a
tick requests stores each partition up to the offsets in its configuration; one that a person starts without them stores
all. Each check reads what is stored now.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
from pydantic import Field

from ingest_project.contracts.crm_event import CrmKind
from ingest_project.core.logging import bound
from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.asset_events import keep_connections_open
from ingest_project.platform.dagster.catalog import SqlTable, StoredTable, topic, topic_key
from ingest_project.platform.database import reading
from ingest_project.platform.work_queue.sensor import BATCH_ID_TAG, DATABASE_POOL
from ingest_project.streams.crm.records import count, opportunities, out_of_range, projects, unidentified_messages
from ingest_project.streams.crm.sink import CrmSink, retry
from ingest_project.streams.crm.unidentified import count_open
from ingest_project.streams.engine import StreamResources, StreamRun, health_of, settle, store_stream
from ingest_project.streams.sensor import StreamRunConfig, StreamSensor, stream_sensor, tick

ASSETS_OP = "crm"
OPPORTUNITIES = dg.AssetKey("opportunities")
PROJECTS = dg.AssetKey("projects")
UNIDENTIFIED_MESSAGES = dg.AssetKey("unidentified_messages")
STREAM_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(hours=12))


def _spec(asset: dg.AssetKey, description: str, freshness: dg.FreshnessPolicy | None = None) -> dg.AssetSpec:
    return dg.AssetSpec(
        asset,
        deps=[topic_key("sales_events")],
        description=description,
        group_name="crm",
        kinds={"postgres"},
        skippable=True,
        freshness_policy=freshness,
    )


@dg.multi_asset(
    name=ASSETS_OP,
    specs=[
        _spec(
            OPPORTUNITIES,
            "Each opportunity in its newest version; an older one never overwrites a newer one.",
            STREAM_FRESHNESS,
        ),
        _spec(
            PROJECTS,
            "Each project in its newest version; an older one never overwrites a newer one.",
            STREAM_FRESHNESS,
        ),
        _spec(
            UNIDENTIFIED_MESSAGES,
            "Messages of sales_events that are neither opportunity nor project, whole, each with its reason.",
        ),
    ],
    pool=DATABASE_POOL,
)
def crm_assets(
    context: dg.AssetExecutionContext, config: StreamRunConfig, services: dg.ResourceParam[StreamResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """Store each message in the table it belongs to."""
    keep_connections_open(context.instance)
    positions, run_id = services.crm_positions, context.run.run_id
    with bound(run_id=run_id, batch_id=context.run.tags.get(BATCH_ID_TAG)):
        run = store_stream(services, positions, CrmSink(services), run_id=run_id, ends=config.ends)
        if run.stored or not run.failure:
            for asset, metadata in _metadata(services, run).items():
                yield dg.MaterializeResult(asset_key=asset, metadata=metadata)
        settle(services, positions, run)
    if run.failure:
        error_class = run.failure.error_class
        raise dg.Failure(description=str(run.failure), metadata={"error_class": error_class}, allow_retries=False)


def _metadata(services: StreamResources, run: StreamRun) -> dict[dg.AssetKey, dict[str, Any]]:
    outcome, common = run.outcome, run.metadata()
    if outcome["lost"]:
        common["offsets_lost"] = outcome["lost"]
    with reading(services.engine) as connection:
        still_open = count_open(connection)
    return {
        **{
            asset: {
                "messages": outcome[f"{kind}_messages"],
                "rows_changed": outcome[f"{kind}_rows_changed"],
                **common,
            }
            for asset, kind in ((OPPORTUNITIES, CrmKind.OPPORTUNITY), (PROJECTS, CrmKind.PROJECT))
        },
        UNIDENTIFIED_MESSAGES: {"messages": outcome["unidentified"], "open_messages": still_open, **common},
    }


@dg.asset_check(
    asset=UNIDENTIFIED_MESSAGES,
    description="No partition waits too long or keeps failing, and no offset got lost of late.",
)
def no_gap_in_offsets(services: dg.ResourceParam[StreamResources]) -> dg.AssetCheckResult:
    """Find partitions that do not progress, and offsets that were lost."""
    health = health_of(services, services.crm_positions, services.settings.crm.max_unfinished_seconds)
    wrong = bool(health.failing or health.late)
    return dg.AssetCheckResult(
        passed=not (wrong or health.lost),
        # What retention has removed cannot be recovered: it is worth a warning only.
        severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
        metadata=health.metadata(),
    )


@dg.asset_check(asset=UNIDENTIFIED_MESSAGES, description="No partition has stored more messages than it has offsets.")
def no_duplicate_offsets(services: dg.ResourceParam[StreamResources]) -> dg.AssetCheckResult:
    """Find partitions that counted an offset twice."""
    twice = []
    for one in services.crm_positions.all():
        stored = sum(one.outcome.get(name, 0) for name in ("opportunity_messages", "project_messages", "unidentified"))
        passed = one.next_offset - one.first_offset
        if stored + one.outcome.get("lost", 0) > passed:
            twice.append(f"{one}: {stored} messages of {passed} offsets")
    return dg.AssetCheckResult(passed=not twice, metadata={"partitions": twice})


@dg.asset_check(
    asset=OPPORTUNITIES,
    description="No stored opportunity has a negative amount or a probability outside 0 to 100 per cent.",
)
def amounts_and_probabilities_in_range(services: dg.ResourceParam[StreamResources]) -> dg.AssetCheckResult:
    """Count the opportunities that do."""
    return _in_range(services, CrmKind.OPPORTUNITY)


@dg.asset_check(asset=PROJECTS, description="No stored project has a negative budget.")
def budgets_in_range(services: dg.ResourceParam[StreamResources]) -> dg.AssetCheckResult:
    """Count the projects that do."""
    return _in_range(services, CrmKind.PROJECT)


CHECKS = [no_gap_in_offsets, no_duplicate_offsets, amounts_and_probabilities_in_range, budgets_in_range]


def _in_range(services: StreamResources, kind: CrmKind) -> dg.AssetCheckResult:
    with reading(services.engine) as connection:
        wrong, records = out_of_range(connection, kind), count(connection, kind)
    metadata = {"records": records, "out_of_range": wrong}
    return dg.AssetCheckResult(passed=not wrong, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)


# Fewer messages than this are stored sooner than a second run has started.
WORTH_SPLITTING = 10_000

STORED: dict[dg.AssetKey, StoredTable] = {
    OPPORTUNITIES: SqlTable(opportunities),
    PROJECTS: SqlTable(projects),
    UNIDENTIFIED_MESSAGES: SqlTable(unidentified_messages),
}


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the topic of CRM messages."""
    return [topic(settings, "sales_events", group="crm")]


class RetryConfig(dg.Config):
    """Which messages: their ids, or none for all that are open."""

    message_ids: list[str] = Field(default_factory=list)


@dg.op(description="Identifies unidentified messages again, by today's rules.")
def retry_unidentified_messages(
    context: dg.OpExecutionContext, config: RetryConfig, services: dg.ResourceParam[StreamResources]
) -> None:
    """Try again, and show the result on the assets."""
    done = retry(services.engine, config.message_ids or None)
    metadata = {"retried_and_identified": len(done.identified), "retried_and_still_not": len(done.unidentified)}
    context.log.info("%d identified, %d still not.", len(done.identified), len(done.unidentified))
    changed = [OPPORTUNITIES, PROJECTS] if done.identified else []
    for asset in (*changed, UNIDENTIFIED_MESSAGES):
        context.log_event(dg.AssetMaterialization(asset, metadata=metadata))


@dg.job(
    name="crm_retry_unidentified",
    description="Tries unidentified messages again after a fix: all that are open, or the ids in the configuration.",
)
def crm_retry_unidentified() -> None:
    """One step."""
    retry_unidentified_messages()


crm_batch = dg.define_asset_job(
    "crm_batch",
    selection=dg.AssetSelection.assets(OPPORTUNITIES, PROJECTS, UNIDENTIFIED_MESSAGES).without_checks(),
    description="Stores messages of sales_events up to the offsets in its configuration.",
)
crm_checks = dg.define_asset_job(
    "crm_checks",
    selection=dg.AssetSelection.checks(*CHECKS),
    description="Checks whether every offset is stored once, and amounts and probabilities are possible.",
)


def sales_events_tick(
    context: dg.SensorEvaluationContext, services: StreamResources
) -> dg.SensorResult | dg.SkipReason:
    """Request runs over new messages."""
    settings = services.settings.crm
    stream = StreamSensor(
        crm_batch.name, ASSETS_OP, settings.batch_messages, settings.max_parallel_batches, WORTH_SPLITTING
    )
    return tick(context, services, services.crm_positions, stream)


crm = dg.Definitions(
    assets=[crm_assets],
    asset_checks=CHECKS,
    jobs=[crm_batch, crm_checks, crm_retry_unidentified],
    schedules=[
        dg.ScheduleDefinition(
            name="crm_checks_every_quarter_hour",
            job=crm_checks,
            cron_schedule="*/15 * * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
    ],
    sensors=[stream_sensor("sales_events_sensor", crm_batch.name, sales_events_tick)],
)
