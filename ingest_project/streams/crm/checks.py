"""Asset checks of CRM. Each reads what is stored now."""

import dagster as dg

from ingest_project.contracts.crm_event import CrmKind
from ingest_project.platform.database.engine import reading
from ingest_project.streams.checks import health_of
from ingest_project.streams.crm.assets import OPPORTUNITIES, PROJECTS, UNIDENTIFIED_MESSAGES
from ingest_project.streams.crm.records import count, out_of_range
from ingest_project.streams.resources import StreamResources


@dg.asset_check(
    asset=UNIDENTIFIED_MESSAGES,
    description="No partition waits too long or keeps failing, and no offset got lost of late.",
)
def no_gap_in_offsets(services: dg.ResourceParam[StreamResources]) -> dg.AssetCheckResult:
    """Look for partitions that stand still, and for offsets that were lost."""
    health = health_of(services, services.crm_positions, services.settings.crm.max_unfinished_seconds)
    wrong = bool(health.failing or health.late)
    return dg.AssetCheckResult(
        passed=not (wrong or health.lost),
        # What retention has removed cannot be had back: a person should know, and that is all.
        severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
        metadata=health.metadata(),
    )


@dg.asset_check(asset=UNIDENTIFIED_MESSAGES, description="No partition has stored more messages than it has offsets.")
def no_duplicate_offsets(services: dg.ResourceParam[StreamResources]) -> dg.AssetCheckResult:
    """Look for partitions that counted an offset twice."""
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
