"""Asset checks of crm. Each looks at what is stored now, never at a remembered answer."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from ingest_project.crm.opportunities import OPPORTUNITIES
from ingest_project.crm.projects import PROJECTS
from ingest_project.crm.unidentified_messages import UNIDENTIFIED_MESSAGES
from ingest_project.database.engine import reading
from ingest_project.ledger.stream_ranges import OffsetRange, RangeRecord, RangeState
from ingest_project.messages.crm_event import CrmKind
from ingest_project.resources import Services
from ingest_project.stores.crm_records import count, out_of_range

RECENT = timedelta(hours=24)
MOST_SHOWN = 20


@dg.asset_check(
    asset=UNIDENTIFIED_MESSAGES,
    description="Every offset up to the cursor is planned to be read, none waits too long, was given up or got lost.",
)
def no_gap_in_offsets(services: dg.ResourceParam[Services]) -> dg.AssetCheckResult:
    """Look for offsets between two ranges, and for ranges that were not read."""
    topic, ledger, now = services.settings.topics.sales_events, services.stream_ranges, datetime.now(UTC)
    gaps = [
        OffsetRange(one.topic, one.generation, one.partition, expected, one.first)
        for one, expected in ledger.seams(topic)
        if one.first > expected
    ]
    failed = ledger.list(topic, [RangeState.FAILED], MOST_SHOWN)
    late = ledger.unfinished_since(
        topic, now - timedelta(seconds=services.settings.crm.max_unfinished_seconds), MOST_SHOWN
    )
    lost = ledger.list(topic, [RangeState.LOST], MOST_SHOWN, since=now - RECENT)
    return dg.AssetCheckResult(
        passed=not (gaps or failed or late or lost),
        # What retention has removed cannot be had back: a person should know, and that is all.
        severity=dg.AssetCheckSeverity.ERROR if gaps or failed or late else dg.AssetCheckSeverity.WARN,
        metadata={"gaps": [str(gap) for gap in gaps[:MOST_SHOWN]], **_shown(failed=failed, waiting=late, lost=lost)},
    )


@dg.asset_check(asset=UNIDENTIFIED_MESSAGES, description="No offset is planned to be read twice.")
def no_duplicate_offsets(services: dg.ResourceParam[Services]) -> dg.AssetCheckResult:
    """Look for ranges that begin before the one before them ends."""
    seams = services.stream_ranges.seams(services.settings.topics.sales_events)
    twice = [str(one) for one, expected in seams if one.first < expected]
    return dg.AssetCheckResult(passed=not twice, metadata={"ranges": twice[:MOST_SHOWN]})


@dg.asset_check(
    asset=OPPORTUNITIES,
    description="No stored opportunity has a negative amount or a probability outside 0 to 100 per cent.",
)
def amounts_and_probabilities_in_range(services: dg.ResourceParam[Services]) -> dg.AssetCheckResult:
    """Count the opportunities that do."""
    return _in_range(services, CrmKind.OPPORTUNITY)


@dg.asset_check(asset=PROJECTS, description="No stored project has a negative budget.")
def budgets_in_range(services: dg.ResourceParam[Services]) -> dg.AssetCheckResult:
    """Count the projects that do."""
    return _in_range(services, CrmKind.PROJECT)


def _in_range(services: Services, kind: CrmKind) -> dg.AssetCheckResult:
    with reading(services.engine) as connection:
        wrong, records = out_of_range(connection, kind), count(connection, kind)
    metadata = {"records": records, "out_of_range": wrong}
    return dg.AssetCheckResult(passed=not wrong, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)


def _shown(**ranges: tuple[RangeRecord, ...]) -> dict[str, list[str]]:
    return {
        what: [f"{record.offsets}{f': {record.reason}' if record.reason else ''}" for record in records]
        for what, records in ranges.items()
    }


CHECKS = [no_gap_in_offsets, no_duplicate_offsets, amounts_and_probabilities_in_range, budgets_in_range]
