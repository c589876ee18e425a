"""What became of one file, whichever step decided it."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ingest_project.core.errors import (
    FileRejectedError,
    IngestError,
    TransientError,
    UnexpectedError,
    VersionSupersededError,
    WorkerExhaustedError,
)
from ingest_project.file_ingest.aggregation import NO_SUMMARIES, NONE_SHARED, SharedInstants, SummaryCounts
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.tables import FileState
from ingest_project.platform.object_store.content_store import Landed

# Each library of Rust's has a class of its own of this name, which no `except Exception` catches.
PANIC = "PanicException"
TRACEBACK_FRAMES = 12
LONGEST_TRACEBACK = 4_000


@dataclass(frozen=True)
class FileResult:
    """What became of one file.

    Args:
        record: the ledger's record of it, as it was when work began.
        state: where it ends; pending where it will be tried again.
        landed: its bytes in the landing store, where they got that far.
        profile: name of the reader profile.
        meaning: hash of what decides, beside its bytes, which rows it holds.
        rows_read: readings found in the file, bad ones too.
        rows_quarantined: readings of it that broke a rule.
        summaries: how many its metrics are.
        rule_counts: how often each rule was broken.
        reason: one sentence, where it was not simply ingested.
        error_class: name of the error behind the reason.
        duplicate_of: key of the file with the same content whose rows stand for this one's.
        replaced_by: key of the newer version that counts in this one's place.
        sample: some quarantined rows, for the UI: line_number, raw_text, reasons.
        preview: the first accepted rows, for the UI: timestamp, device_id, sensor_type, value, unit, line_number.
        metrics_shown: the first summaries, for the UI: device_id, sensor_type, min, max, mean, count, stddev.
        unknown_columns: columns of the file that its profile does not know, and that were left out.
        instants: how many of its accepted readings share device, sensor type and time with another.
        kept_at: where the quarantine keeps the bytes of a file that was refused whole.
    """

    record: FileRecord
    state: FileState
    landed: Landed | None = None
    profile: str = ""
    meaning: str = ""
    rows_read: int = 0
    rows_quarantined: int = 0
    summaries: SummaryCounts = NO_SUMMARIES
    rule_counts: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None
    error_class: str | None = None
    duplicate_of: str | None = None
    replaced_by: str | None = None
    sample: Sequence[Mapping[str, Any]] = ()
    preview: Sequence[Mapping[str, Any]] = ()
    metrics_shown: Sequence[Mapping[str, Any]] = ()
    unknown_columns: Sequence[str] = ()
    instants: SharedInstants = NONE_SHARED
    kept_at: str | None = None

    @property
    def rows_accepted(self) -> int:
        """Readings that are stored: none, unless the file was ingested."""
        return self.rows_read - self.rows_quarantined if self.state is FileState.INGESTED else 0

    @property
    def leaves_what_is_stored(self) -> bool:
        """Whether the file was stored before and could not be had, or stored, again: its rows stay."""
        return self.record.stands and self.state in {FileState.FAILED, FileState.SUPERSEDED}


# What a process runs out of over one file; another file, or the same one later, may find enough.
SHORTAGES = frozenset({errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})


def error_of(doing: str, cause: BaseException) -> IngestError:
    """Name what one file brought to light, so that it ends that file's work and no other's.

    Args:
        doing: what was being done, e.g. "Reading the file".
        cause: what was raised; an error of ours is its own name.

    Raises:
        BaseException: the cause, where it is no failure but the end of this run.
    """
    if isinstance(cause, IngestError):
        return cause
    if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in SHORTAGES):
        return WorkerExhaustedError(doing, cause)
    if isinstance(cause, Exception) or type(cause).__name__ == PANIC:
        return UnexpectedError(doing, cause)
    raise cause


def traceback_of(cause: BaseException) -> str:
    """The end of an exception's traceback, for the log: what is tried in halves is raised again and again."""
    return "".join(traceback.format_exception(cause, limit=-TRACEBACK_FRAMES, chain=False))[-LONGEST_TRACEBACK:]


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise what a library written in Rust panics with as an ordinary exception: Python's own it is not."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise error_of("It", error) from error


def outcome_of_error(record: FileRecord, error: IngestError, landed: Landed | None = None, **known: Any) -> FileResult:  # noqa: ANN401
    """Where an error leaves a file: tried again, quarantined for what it holds, or failed for where it is.

    Args:
        record: the file.
        error: what stopped it.
        landed: its bytes, where they got that far.
        known: further fields of the outcome.
    """
    if isinstance(error, TransientError):
        state = FileState.PENDING
    elif isinstance(error, FileRejectedError):
        state = FileState.QUARANTINED
        known.setdefault("rule_counts", {error.rule: 1})
    elif isinstance(error, VersionSupersededError):
        state = FileState.SUPERSEDED
    else:
        state = FileState.FAILED
    return FileResult(record, state, landed, reason=str(error), error_class=error.error_class, **known)
