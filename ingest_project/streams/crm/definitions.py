"""CRM as Dagster sees it: the declared stream with its three assets, its checks of values, and the job that retries.

The three assets of `sales_events` are stored in one pass: each message belongs to exactly one of them.
"""

from dataclasses import replace
from typing import Any

import dagster as dg
from pydantic import Field

from ingest_project.contracts.crm_event import CrmKind
from ingest_project.platform.dagster.catalog import SqlTable, StoredTable
from ingest_project.platform.database import reading
from ingest_project.streams.crm.records import count, opportunities, out_of_range, projects, unidentified_messages
from ingest_project.streams.crm.sink import retry
from ingest_project.streams.crm.unidentified import count_open
from ingest_project.streams.engine import StreamRun
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.sql.definitions import SqlParts, sql_definitions

OPPORTUNITIES = dg.AssetKey("opportunities")
PROJECTS = dg.AssetKey("projects")
UNIDENTIFIED_MESSAGES = dg.AssetKey("unidentified_messages")

STORED: dict[dg.AssetKey, StoredTable] = {
    OPPORTUNITIES: SqlTable(opportunities),
    PROJECTS: SqlTable(projects),
    UNIDENTIFIED_MESSAGES: SqlTable(unidentified_messages),
}


def _metadata(services: StreamResources, run: StreamRun) -> dict[dg.AssetKey, dict[str, Any]]:
    outcome, common = run.outcome, run.metadata()
    if outcome["lost"]:
        common["offsets_lost"] = outcome["lost"]
    with reading(services.engine) as connection:
        still_open = count_open(connection)
    return {
        **{
            asset: {"messages": outcome[f"{kind}_messages"], "rows_changed": outcome[f"{kind}_rows_changed"], **common}
            for asset, kind in ((OPPORTUNITIES, CrmKind.OPPORTUNITY), (PROJECTS, CrmKind.PROJECT))
        },
        UNIDENTIFIED_MESSAGES: {"messages": outcome["unidentified"], "open_messages": still_open, **common},
    }


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


def _in_range(services: StreamResources, kind: CrmKind) -> dg.AssetCheckResult:
    with reading(services.engine) as connection:
        wrong, records = out_of_range(connection, kind), count(connection, kind)
    metadata = {"records": records, "out_of_range": wrong}
    return dg.AssetCheckResult(passed=not wrong, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)


class RetryConfig(dg.Config):
    """Messages to retry: their ids, or none for all open ones."""

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


def definitions_of(parts: SqlParts) -> dg.Definitions:
    """Return the Dagster definitions of the stream, its checks of values, and the job that retries."""
    (of_stream,) = parts.specs
    each = of_stream.replace_attributes(kinds={"postgres"})
    newest = "in its newest version; an older one never overwrites a newer one."
    kept = "Messages of sales_events that are neither opportunity nor project, whole, each with its reason."
    specs = [
        each.replace_attributes(key=OPPORTUNITIES, description=f"Each opportunity {newest}"),
        each.replace_attributes(key=PROJECTS, description=f"Each project {newest}"),
        each.replace_attributes(key=UNIDENTIFIED_MESSAGES, description=kept, freshness_policy=None),
    ]
    own = replace(
        parts,
        specs=specs,
        checked=UNIDENTIFIED_MESSAGES,
        stored_outcomes=("opportunity_messages", "project_messages", "unidentified"),
        metadata=_metadata,
        checks=(amounts_and_probabilities_in_range, budgets_in_range),
    )
    return dg.Definitions.merge(sql_definitions(own), dg.Definitions(jobs=[crm_retry_unidentified]))
