"""Asset checks of CRM. Each reads what is stored now, never a remembered answer."""

import dagster as dg

from ingest_project.contracts.crm_event import CrmKind
from ingest_project.platform.database.engine import reading
from ingest_project.streams.checks import MOST_SHOWN, planned_twice, shown, unread
from ingest_project.streams.crm.assets import OPPORTUNITIES, PROJECTS
from ingest_project.streams.crm.records import count, out_of_range
from ingest_project.streams.crm.resources import CrmResources
from ingest_project.streams.crm.unidentified import UNIDENTIFIED_MESSAGES


@dg.asset_check(
    asset=UNIDENTIFIED_MESSAGES,
    description="Every offset up to the cursor is planned to be read, none waits too long, was given up or got lost.",
)
def no_gap_in_offsets(services: dg.ResourceParam[CrmResources]) -> dg.AssetCheckResult:
    """Look for offsets between two ranges, and for ranges that were not read."""
    patience = services.settings.crm.max_unfinished_seconds
    found = unread(services, services.settings.topics.sales_events, patience)
    wrong = bool(found.gaps or found.given_up or found.late)
    return dg.AssetCheckResult(
        passed=not (wrong or found.lost),
        # What retention has removed cannot be had back: a person should know, and that is all.
        severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
        metadata={
            "gaps": [str(gap) for gap in found.gaps],
            "failed": shown(found.given_up),
            "waiting": shown(found.late),
            "lost": shown(found.lost),
        },
    )


@dg.asset_check(asset=UNIDENTIFIED_MESSAGES, description="No offset is planned to be read twice.")
def no_duplicate_offsets(services: dg.ResourceParam[CrmResources]) -> dg.AssetCheckResult:
    """Look for offsets that are in two ranges."""
    twice = planned_twice(services, services.settings.topics.sales_events)
    return dg.AssetCheckResult(passed=not twice, metadata={"ranges": twice[:MOST_SHOWN]})


@dg.asset_check(
    asset=OPPORTUNITIES,
    description="No stored opportunity has a negative amount or a probability outside 0 to 100 per cent.",
)
def amounts_and_probabilities_in_range(services: dg.ResourceParam[CrmResources]) -> dg.AssetCheckResult:
    """Count the opportunities that do."""
    return _in_range(services, CrmKind.OPPORTUNITY)


@dg.asset_check(asset=PROJECTS, description="No stored project has a negative budget.")
def budgets_in_range(services: dg.ResourceParam[CrmResources]) -> dg.AssetCheckResult:
    """Count the projects that do."""
    return _in_range(services, CrmKind.PROJECT)


def _in_range(services: CrmResources, kind: CrmKind) -> dg.AssetCheckResult:
    with reading(services.engine) as connection:
        wrong, records = out_of_range(connection, kind), count(connection, kind)
    metadata = {"records": records, "out_of_range": wrong}
    return dg.AssetCheckResult(passed=not wrong, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)


CHECKS = [no_gap_in_offsets, no_duplicate_offsets, amounts_and_probabilities_in_range, budgets_in_range]
