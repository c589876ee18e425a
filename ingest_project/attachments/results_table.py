"""The Delta table `attachment_results`: one row for how each attempt ended, each exactly once.

A commit's rows are numbered in the ledger before it is made, and the number goes into the commit: whoever finds a
numbered commit that may not have been made makes it again, and the table knows whether it has that number. One process
at a time commits.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from ingest_project.database.locks import exclusive
from ingest_project.hours import partition_of
from ingest_project.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from ingest_project.ledger.attachment_record import Outcome
    from ingest_project.resources import Services

logger = get_logger(__name__)

APPLICATION_ID = "ingest_project/attachment_results"
LOCK = "attachment_results"


def commit_results(services: Services) -> list[str]:
    """Commit every outcome that is in no commit yet, in one commit; first those that a lost run had begun.

    Returns:
        the hours in which the committed attempts ended.

    Raises:
        StoreUnavailable, TransactionConflict: not everything was committed; call again.
    """
    hours: set[str] = set()
    with exclusive(services.engine, LOCK):
        services.outcomes.number_next_commit()
        for number in services.outcomes.open_commits():
            outcomes = services.outcomes.of_commit(number)
            services.attachment_results.append(results_table(outcomes), app_id=APPLICATION_ID, version=number)
            services.outcomes.mark_committed(number, datetime.now(UTC))
            hours.update(partition_of(outcome.result.completed_at) for outcome in outcomes)
            logger.info("results_committed", commit=number, rows=len(outcomes))
    return sorted(hours)


def results_table(outcomes: Sequence[Outcome]) -> pa.Table:
    """Rows of the Delta table: the fields of DownloadResult, and what tells where they belong.

    Times are UTC; `day` is the day on which the attempt ended, `yyyy-mm-dd`.
    """
    import pyarrow as pa  # noqa: PLC0415 - heavy

    schema = pa.schema(
        [
            ("domain", pa.string()),
            ("day", pa.string()),
            ("attachment_key", pa.string()),
            ("trace_id", pa.string()),
            ("event_type", pa.string()),
            ("attachment_url", pa.string()),
            ("status", pa.string()),
            ("http_status", pa.int32()),
            ("error_class", pa.string()),
            ("error", pa.string()),
            ("size_bytes", pa.int64()),
            ("sha256", pa.string()),
            ("content_type", pa.string()),
            ("onelake_path", pa.string()),
            ("attempt", pa.int32()),
            ("replays", pa.int32()),
            ("completed_at", pa.timestamp("us", tz="UTC")),
        ]
    )
    return pa.Table.from_pylist([_row(outcome) for outcome in outcomes], schema=schema)


def _row(outcome: Outcome) -> dict[str, object]:
    result = outcome.result
    completed_at = result.completed_at.astimezone(UTC)
    return {
        **msgspec.structs.asdict(result),
        "status": result.status.value,
        "domain": outcome.domain,
        "day": completed_at.date().isoformat(),
        "attachment_key": outcome.attachment_key,
        "event_type": outcome.event_type,
        "content_type": outcome.content_type,
        "replays": outcome.replays,
        "completed_at": completed_at,
    }
