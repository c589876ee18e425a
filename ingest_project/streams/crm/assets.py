"""The three assets of `sales_events`, stored in one pass: each message belongs to exactly one of them.

A run that a tick requests stores each partition up to the offsets in its configuration; one that a person starts
without them stores all.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dagster as dg

from ingest_project.contracts.crm_event import CrmKind
from ingest_project.core.logging import bound
from ingest_project.platform.dagster.asset_events import keep_connections_open
from ingest_project.platform.dagster.catalog import topic_key
from ingest_project.platform.database.engine import reading
from ingest_project.platform.work_queue.batches import BATCH_ID_TAG, DATABASE_POOL
from ingest_project.streams.crm.sink import CrmSink
from ingest_project.streams.crm.unidentified import count_open
from ingest_project.streams.engine import StreamRun, settle, store_stream
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.sensor import StreamRunConfig

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
