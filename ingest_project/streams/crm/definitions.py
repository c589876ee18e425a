"""CRM as Dagster sees it: jobs, the sensor, schedules, external assets, and the tables behind the assets."""

import dagster as dg
from pydantic import Field

from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.catalog import SqlTable, StoredTable, topic
from ingest_project.streams.crm.assets import ASSETS_OP, OPPORTUNITIES, PROJECTS, UNIDENTIFIED_MESSAGES, crm_assets
from ingest_project.streams.crm.checks import CHECKS
from ingest_project.streams.crm.sink import retry
from ingest_project.streams.crm.tables import opportunities, projects, unidentified_messages
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.sensor import StreamSensor, stream_sensor, tick

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
