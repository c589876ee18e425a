"""The Delta table `attachment_results`: one row for how each attempt ended, each exactly once.

A commit's rows are numbered in the ledger before it is made, and the number goes into the commit: whoever finds a
numbered commit that may not have been made makes it again, and the table knows whether it has that number. One process
at a time commits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from ingest_project.attachments.attempts import AttemptResult
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.core.bisection import store_bisecting
from ingest_project.core.errors import StoreUnavailableError, TransactionConflictError
from ingest_project.core.hours import hour_key
from ingest_project.core.logging import get_logger
from ingest_project.platform.database.locks import exclusive
from ingest_project.platform.work_queue.item_errors import is_item_fault, reason_of, traceback_of

if TYPE_CHECKING:
    import pyarrow as pa

logger = get_logger(__name__)

APPLICATION_ID = "ingest_project/attachment_results"
LOCK = "attachment_results"
# Commits in a row that the table refused: so many are not the fault of single rows.
MOST_IN_VAIN = 200
# Full, not to be written, or too many open files.
_OF_THE_STORE = re.compile(r"No space left|Disk quota|Read-only file system|Permission denied|Too many open files")


def commit_results(services: AttachmentResources) -> list[str]:
    """Commit every outcome that is in no commit yet, in one commit; first those that a lost run had begun.

    A row that the table does not take is found by halving: it is marked with the reason, and the others are committed.

    Returns:
        the hours in which the committed attempts ended.

    Raises:
        StoreUnavailableError, TransactionConflictError: not everything was committed; call again.
    """
    hours: set[str] = set()
    with exclusive(services.engine, LOCK):
        services.outcomes.number_next_commit()
        while numbers := services.outcomes.open_commits():
            committing = _Committing(services, numbers[0])
            failures = committing.commit()
            hours.update(hour_key(outcome.result.completed_at) for outcome in committing.committed)
            for outcome, error in failures:
                logger.error("result_not_committed", partition_key=outcome.attachment_key, exc_info=traceback_of(error))
                services.outcomes.mark_uncommittable(outcome, reason_of(error))
            if failures:
                services.outcomes.number_next_commit()
    return sorted(hours)


class _Committing:
    """One numbered commit, and the smaller ones that it is cut into where the table does not take it."""

    def __init__(self, services: AttachmentResources, number: int) -> None:
        self._services = services
        self._number: int | None = number
        self._outcomes = services.outcomes.of_commit(number)
        self._in_vain = 0
        self._is_row_fault = False
        self.committed: list[AttemptResult] = []

    def commit(self) -> list[tuple[AttemptResult, Exception]]:
        """Commit; returns the rows that the table does not take, and why."""
        failures = store_bisecting(self._outcomes, self._store, lambda _: self._is_row_fault)
        if failures and not self.committed and any(isinstance(error, StoreUnavailableError) for _, error in failures):
            raise failures[0][1]
        return failures

    def _store(self, part: Sequence[AttemptResult]) -> None:
        ledger, table = self._services.outcomes, self._services.attachment_results
        number, self._number = self._number, None
        if number is None:
            number = ledger.number_next_commit(part)
        self._is_row_fault = False
        try:
            table.append(results_table(part), app_id=APPLICATION_ID, version=number)
        except Exception as error:
            # Where the store answers it says whether the commit has landed while its answer was lost.
            if not self._may_be_a_row_s(error) or (table.committed_version(APPLICATION_ID) or 0) >= number:
                raise
            ledger.withdraw_commits(number)
            self._in_vain += 1
            self._is_row_fault = True
            raise
        ledger.mark_committed(number, datetime.now(UTC))
        self._in_vain = 0
        self.committed += part
        logger.info("results_committed", commit=number, rows=len(part))

    def _may_be_a_row_s(self, error: Exception) -> bool:
        """Tell what a row may be to blame for from a store that is away or full: it would refuse any other row too."""
        if isinstance(error, TransactionConflictError) or self._in_vain > MOST_IN_VAIN:
            return False
        if not isinstance(error, StoreUnavailableError):
            return is_item_fault(error)
        return not _OF_THE_STORE.search(str(error))


def results_table(outcomes: Sequence[AttemptResult]) -> pa.Table:
    """Rows of the Delta table: the fields of DownloadResult, and what tells where they belong.

    Times are UTC; `day` is the day on which the attempt ended, `yyyy-mm-dd`.
    """
    import pyarrow as pa  # noqa: PLC0415 - heavy

    return pa.Table.from_pylist([_row(outcome) for outcome in outcomes], schema=results_schema())


def results_schema() -> pa.Schema:
    """Return the columns of the Delta table."""
    import pyarrow as pa  # noqa: PLC0415 - heavy

    return pa.schema(
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


def _row(outcome: AttemptResult) -> dict[str, object]:
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
