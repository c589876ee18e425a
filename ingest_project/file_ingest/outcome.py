"""What became of one file, whichever step decided it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ingest_project.errors import FileRejected, IngestError, TransientError
from ingest_project.file_ingest.aggregation import NO_SUMMARIES, NONE_SHARED, SharedInstants, SummaryCounts
from ingest_project.ledger.states import FileState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ingest_project.ledger.file_record import FileRecord
    from ingest_project.stores.landing import Landed


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Args:
        record: the ledger's record of it, as it was when work began.
        state: where it ends: ingested, quarantined, duplicate, failed; pending where it will be tried again.
        landed: its bytes in the landing store, where they got that far.
        profile: name of the reader profile.
        rows_read: readings found in the file, bad ones too.
        rows_quarantined: readings of it that broke a rule.
        summaries: how many its metrics are.
        rule_counts: how often each rule was broken.
        reason: one sentence, where it was not simply ingested.
        error_class: name of the error behind the reason.
        duplicate_of: key of the file with the same content whose rows stand for this one's.
        sample: some quarantined rows, for the UI: line_number, raw_text, reasons.
        unknown_columns: columns of the file that its profile does not know, and that were left out.
        instants: how many of its accepted readings share device, sensor type and time with another.
        kept_at: where the quarantine keeps the bytes of a file that was refused whole.
    """

    record: FileRecord
    state: FileState
    landed: Landed | None = None
    profile: str = ""
    rows_read: int = 0
    rows_quarantined: int = 0
    summaries: SummaryCounts = NO_SUMMARIES
    rule_counts: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None
    error_class: str | None = None
    duplicate_of: str | None = None
    sample: Sequence[Mapping[str, Any]] = ()
    unknown_columns: Sequence[str] = ()
    instants: SharedInstants = NONE_SHARED
    kept_at: str | None = None

    @property
    def rows_accepted(self) -> int:
        """Readings that are stored: none, unless the file was ingested."""
        return self.rows_read - self.rows_quarantined if self.state is FileState.INGESTED else 0


def outcome_of_error(record: FileRecord, error: IngestError, landed: Landed | None = None, **known: Any) -> Outcome:  # noqa: ANN401
    """Where an error leaves a file: tried again, quarantined for what it holds, or failed for where it is.

    Args:
        record: the file.
        error: what stopped it.
        landed: its bytes, where they got that far.
        known: further fields of the outcome.
    """
    if isinstance(error, TransientError):
        state = FileState.PENDING
    elif isinstance(error, FileRejected):
        state = FileState.QUARANTINED
        known.setdefault("rule_counts", {error.rule: 1})
    else:
        state = FileState.FAILED
    return Outcome(record, state, landed, reason=str(error), error_class=error.error_class, **known)
