"""Step 3, `quarantined_files` and the tables: store accepted and rejected rows together with the state of the files.

All of it is one transaction, and every write replaces the rows of an earlier attempt at the same files: a retry ends in
the same state, and a killed run leaves nothing behind. Duplicate contents and newer versions of a file are detected
here, where no two runs can both be first.

A transaction that fails is bisected down to the file that it fails for: the others are stored at once. Only while the
database does not answer are all of them retried later.

The quarantine store keeps the bytes of a file that is rejected as a whole, next to a JSON with the reason; single
rejected rows are in `quarantined_rows`. A second write for the same file replaces the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import polars as pl
import stamina

from ingest_project.core.batches import store_bisecting
from ingest_project.core.errors import DatabaseUnavailableError, IngestError, StoreUnavailableError, TransientError
from ingest_project.core.local_files import FileFingerprint, LocalFile
from ingest_project.core.logging import get_logger
from ingest_project.file_ingest.catalog import QUARANTINED_FILES, files_partitions
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import FileResult, error_of, outcome_of_error, panics_as_errors, traceback_of
from ingest_project.file_ingest.tables import FileState
from ingest_project.file_ingest.validate_files import CheckedGroup
from ingest_project.file_ingest.versions import settle
from ingest_project.file_ingest.warehouse import WarehouseTransaction
from ingest_project.file_ingest.warehouse.sql import CLAIMS, FINISHED, VERSIONS
from ingest_project.platform.database.errors import sqlstate
from ingest_project.platform.object_store.content_store import LandingStore, QuarantineStore

quarantined_files = dg.AssetSpec(
    QUARANTINED_FILES,
    deps=["raw_files"],
    description="What was refused of the file, whole or by row, with reasons; 0 rows where nothing was.",
    group_name="file_ingest",
    kinds={"file", "table"},
    partitions_def=files_partitions,
    skippable=True,
)
logger = get_logger(__name__)
# A run waits for the end of a short outage; after a longer one its files are claimed again later.
STORE_ATTEMPTS = 3
STORE_WAIT_SECONDS, LONGEST_STORE_WAIT_SECONDS = 0.5, 2.0
# PostgreSQL's classes of errors that are about tables and rights and never about rows: no table, no permission.
SCHEMA_ERRORS = ("42", "3D", "3F", "0A", "25", "26")
MISSES_BEFORE_AWAY = 3


@dataclass
class Storing:
    """One group on its way into the warehouse.

    Args:
        group: what is to be stored.
        services: where to.
        run_id: of the Dagster run.
        done: results of the files so far, and of the versions that were replaced.
        busy: files of whose location another transaction stores a version now.
    """

    group: CheckedGroup
    services: FileIngestResources
    run_id: str
    done: list[FileResult] = field(default_factory=list)
    busy: list[FileResult] = field(default_factory=list)
    _failed_before: bool = False

    def store(self, outcomes: Sequence[FileResult]) -> None:
        """Store these files, all or none. The first failure is waited out, the others are worth no pause."""
        attempts = 1 if self._failed_before else STORE_ATTEMPTS
        try:
            with panics_as_errors():
                retrying = stamina.RetryingCaller(
                    attempts=attempts,
                    timeout=None,
                    wait_initial=STORE_WAIT_SECONDS,
                    wait_max=LONGEST_STORE_WAIT_SECONDS,
                    wait_exp_base=4,
                    wait_jitter=0,
                )
                stored = retrying(TransientError, lambda: self._store_at_once(outcomes, wait=False))
        except Exception:
            self._failed_before = True
            raise
        settled = {outcome.record.file_key for outcome in stored}
        self.done += stored
        self.busy += [outcome for outcome in outcomes if outcome.record.file_key not in settled]

    def store_busy(self, outcomes: Sequence[FileResult]) -> None:
        """Store one file once the other version of its location is stored."""
        with panics_as_errors():
            self.done += self._store_at_once(outcomes, wait=True)

    def _store_at_once(self, outcomes: Sequence[FileResult], *, wait: bool) -> list[FileResult]:
        try:
            return store_at_once(only(self.group, outcomes), self.services, self.run_id, wait=wait)
        except TransientError as error:
            logger.warning("store_failed", files=len(outcomes), reason=str(error))
            raise

    def is_file_fault(self, error: Exception) -> bool:
        """Tell a file that cannot be stored from a database that stores nothing."""
        if isinstance(error, DatabaseUnavailableError):
            # One file may cost the server a connection; a server that is away answers nobody.
            return answers(self.services)
        return not blames_the_tables(error)


def store(group: CheckedGroup, services: FileIngestResources, run_id: str) -> list[FileResult]:
    """Store a group of files and finish their queue entries.

    Args:
        group: outcomes of all its files, and the frames of the ingested ones.
        services: where to.
        run_id: of the Dagster run.

    Returns:
        the result of each file: as given, or duplicate, replaced or failed, or pending where it is to be retried; and
        of each other version that was replaced by one of them.

    Raises:
        Exception: the tables are not as they should be; nothing can be stored.
    """
    kept = keep_refused(group.outcomes, services, run_id)
    storing = Storing(group, services, run_id)
    requeue_later = [o for o in kept if o.state is FileState.PENDING or o.leaves_what_is_stored]
    to_store = [o for o in kept if not (o.state is FileState.PENDING or o.leaves_what_is_stored)]
    try:
        failures = store_bisecting(to_store, storing.store, storing.is_file_fault)
        for outcome in storing.busy:
            failures += store_bisecting([outcome], storing.store_busy, storing.is_file_fault)
    except TransientError as error:
        settled = {outcome.record.file_key for outcome in storing.done}
        left = [outcome for outcome in to_store if outcome.record.file_key not in settled]
        return (
            requeue_later + storing.done + [outcome_of_error(outcome.record, error, outcome.landed) for outcome in left]
        )
    return requeue_later + storing.done + [not_stored(outcome, error, services, run_id) for outcome, error in failures]


def blames_the_tables(error: Exception) -> bool:
    """Tell a database that is not as it should be, where halving a batch would fail every file of it."""
    return sqlstate(getattr(error, "orig", None) or error).startswith(SCHEMA_ERRORS)


def answers(services: FileIngestResources) -> bool:
    """Tell whether the warehouse takes transactions at all."""
    try:
        with services.warehouse.transaction() as transaction:
            transaction.versions_at([""])
    except IngestError:
        return False
    return True


def not_stored(outcome: FileResult, cause: Exception, services: FileIngestResources, run_id: str) -> FileResult:
    """Record why one file cannot be stored: for good, or for now."""
    error = error_of("Storing the file", cause)
    key = outcome.record.file_key
    logger.warning("file_not_stored", partition_key=key, reason=str(error), traceback=traceback_of(cause))
    refused = outcome_of_error(outcome.record, error, outcome.landed, profile=outcome.profile)
    if refused.state is FileState.PENDING or refused.leaves_what_is_stored:
        return refused
    try:
        with services.warehouse.transaction() as transaction:
            finish(transaction, [refused], run_id)
    except TransientError as trouble:
        return outcome_of_error(outcome.record, trouble, outcome.landed)
    return refused


def only(group: CheckedGroup, outcomes: Sequence[FileResult]) -> CheckedGroup:
    """Return the part of a group that belongs to some of its files."""
    if len(outcomes) == len(group.outcomes):
        return replace(group, outcomes=outcomes)
    own = pl.col("file_key").is_in([outcome.record.file_key for outcome in outcomes])
    return replace(
        group,
        outcomes=outcomes,
        accepted=group.accepted.filter(own),
        quarantined=group.quarantined.filter(own),
        metrics=group.metrics.filter(own),
    )


def store_at_once(group: CheckedGroup, services: FileIngestResources, run_id: str, *, wait: bool) -> list[FileResult]:
    """Store a group in one transaction.

    Args:
        group: of files.
        services: where to.
        run_id: of the Dagster run.
        wait: for other transactions that store versions of the same locations; else those files are left out.

    Returns:
        the result of each file that was not left out, and of the versions they replaced.
    """
    with services.warehouse.transaction() as transaction:
        outcomes = hold_locations(transaction, group.outcomes, wait=wait)
        outcomes, replaced = settle_versions(transaction, outcomes, run_id)
        outcomes = without_duplicates(transaction, outcomes)
        transaction.replace_files([outcome.record.file_key for outcome in outcomes] + list(replaced))
        accepted, quarantined, metrics = stored_frames(group, outcomes)
        transaction.append_readings(accepted)
        transaction.append_quarantined(quarantined)
        transaction.put_metrics(metrics)
        for outcome in outcomes:
            leave_quarantine(outcome, services.quarantine)
        finish(transaction, outcomes, run_id)
    return outcomes + replaced_outcomes(services, replaced)


def hold_locations(
    transaction: WarehouseTransaction, outcomes: Sequence[FileResult], *, wait: bool
) -> list[FileResult]:
    """Decide about the versions of these files alone until the transaction ends; returns those it can decide about."""
    held = transaction.lock_locations([outcome.record.location_key for outcome in outcomes], wait=wait)
    return [outcome for outcome in outcomes if outcome.record.location_key in held]


def settle_versions(
    transaction: WarehouseTransaction, outcomes: Sequence[FileResult], run_id: str
) -> tuple[list[FileResult], tuple[str, ...]]:
    """Let the newest version of each location count.

    Returns:
        the outcomes, those that do not count as replaced; and the keys of other versions that they replace.
    """
    settled = settle(outcomes, transaction.versions_at([outcome.record.location_key for outcome in outcomes]))
    if settled.replaced:
        # Their contents are free for the successors, and for files that were duplicates of them.
        transaction.release_contents(list(settled.replaced))
        transaction.replace_versions(settled.replaced, run_id)
    return list(settled.outcomes), tuple(settled.replaced)


def replaced_outcomes(services: FileIngestResources, file_keys: Sequence[str]) -> list[FileResult]:
    """Return the results of the versions that were replaced, except those that a run or a queue holds."""
    records = services.files.get_many(file_keys) if file_keys else ()
    return [
        FileResult(record, record.state, profile=record.profile, reason=record.reason, replaced_by=record.replaced_by)
        for record in records
        if record.state is FileState.REPLACED
    ]


def stored_frames(group: CheckedGroup, outcomes: Sequence[FileResult]) -> Iterable[pl.DataFrame]:
    """Readings, refused rows and metrics of the files that are ingested, and of no others."""
    frames = (group.accepted, group.quarantined, group.metrics)
    ingested = [outcome.record.file_key for outcome in outcomes if outcome.state is FileState.INGESTED]
    before = sum(outcome.state is FileState.INGESTED for outcome in group.outcomes)
    if len(ingested) == before:
        return frames
    return tuple(frame.filter(pl.col("file_key").is_in(ingested)) for frame in frames)


def without_duplicates(transaction: WarehouseTransaction, outcomes: Sequence[FileResult]) -> list[FileResult]:
    """Claim the content of each ingested file; where another file already stands for it, this one is a duplicate."""
    claims = [
        (outcome.record.file_key, outcome.landed.sha256, outcome.meaning)
        for outcome in outcomes
        if outcome.state is FileState.INGESTED and outcome.landed is not None
    ]
    owners = transaction.claim_contents(pl.DataFrame(claims, schema=CLAIMS, orient="row"))
    return [
        outcome
        if (owner := owners.get(outcome.record.file_key, outcome.record.file_key)) == outcome.record.file_key
        else replace(
            outcome, state=FileState.DUPLICATE, duplicate_of=owner, reason=f"The same content as {owner}.", sample=()
        )
        for outcome in outcomes
    ]


def finish(transaction: WarehouseTransaction, outcomes: Sequence[FileResult], run_id: str) -> None:
    """Finish the queue entry of each file, inside the transaction that stores its rows."""
    transaction.release_contents(
        [o.record.file_key for o in outcomes if o.state not in {FileState.INGESTED, FileState.DUPLICATE}]
    )
    transaction.finish_files(pl.DataFrame([_finished(outcome, run_id) for outcome in outcomes], schema=FINISHED))
    transaction.pin_versions(
        pl.DataFrame(
            [_version(outcome) for outcome in outcomes if outcome.landed is not None and not outcome.record.pinned],
            schema=VERSIONS,
        )
    )


def _finished(outcome: FileResult, run_id: str) -> Mapping[str, object]:
    return {
        "file_key": outcome.record.file_key,
        "state": outcome.state.value,
        "reason": _storable(outcome.reason),
        "error_class": outcome.error_class,
        "run_id": run_id,
        "sha256": outcome.landed.sha256 if outcome.landed else None,
        "landed_bytes": outcome.landed.size_bytes if outcome.landed else None,
        "profile": outcome.profile or outcome.record.profile,
        "duplicate_of": outcome.duplicate_of,
        "replaced_by": outcome.replaced_by,
        "rows_read": outcome.rows_read,
        "rows_accepted": outcome.rows_accepted,
        "rows_quarantined": outcome.rows_quarantined,
        "rule_counts": json.dumps(outcome.rule_counts),
    }


def _version(outcome: FileResult) -> Mapping[str, object]:
    event = outcome.record.event
    return {
        "file_key": outcome.record.file_key,
        "size_bytes": event.size_bytes,
        "modified_at": event.modified_at,
        "etag": _storable(event.etag),
        "version_at": outcome.record.version_at,
    }


def _storable(text: str | None) -> str | None:
    """Drop lone surrogates, which a reason may quote from a file's name and UTF-8 cannot write."""
    return None if text is None else text.encode("utf-8", "replace").decode()


def keep_refused(outcomes: Sequence[FileResult], services: FileIngestResources, run_id: str) -> list[FileResult]:
    """Store the bytes of refused files in quarantine; a file that cannot be kept there is retried later, or failed."""
    kept: list[FileResult] = []
    misses_in_a_row = 0
    trouble: IngestError | None = None
    for outcome in outcomes:
        if outcome.state is not FileState.QUARANTINED:
            kept.append(outcome)
            continue
        # A store that is away is not tried for each file: every request may take as long as its time-out.
        if trouble is None or misses_in_a_row < MISSES_BEFORE_AWAY:
            trouble = None
            try:
                with panics_as_errors():
                    kept.append(quarantine_file(outcome, services.landing, services.quarantine, run_id))
                misses_in_a_row = 0
                continue
            except Exception as cause:  # noqa: BLE001 - one file's failure is its own
                trouble = error_of("Quarantining the file", cause)
                misses_in_a_row = misses_in_a_row + 1 if isinstance(trouble, StoreUnavailableError) else 0
                key = outcome.record.file_key
                trace = traceback_of(cause)
                logger.warning("file_not_quarantined", partition_key=key, reason=str(trouble), traceback=trace)
        kept.append(outcome_of_error(outcome.record, trouble, outcome.landed, profile=outcome.profile))
    return kept


def quarantine_file(outcome: FileResult, landing: LandingStore, quarantine: QuarantineStore, run_id: str) -> FileResult:
    """Keep a rejected file's bytes and the reason; returns the result with the location of the bytes."""
    note = reason_note(outcome, run_id)
    if outcome.landed is None:
        # It was rejected for its size, before a byte of it was copied: only the reason is kept.
        quarantine.put(outcome.record.file_key, b"", note)
        return outcome
    with landing.local_path(outcome.landed.sha256) as path:
        # The landed bytes are verified: a store on the same disk links them unread.
        file = LocalFile(path, outcome.landed.size_bytes, outcome.landed.sha256, FileFingerprint.of(path.stat()))
        kept = quarantine.put(outcome.record.file_key, file, note)
    return replace(outcome, kept_at=kept.location)


def leave_quarantine(outcome: FileResult, quarantine: QuarantineStore) -> None:
    """Remove an accepted file from quarantine.

    Done before its rows are stored: if that fails, the file is accepted or rejected again.
    """
    # Only a file with a recorded reason can be there: to look for each one would cost S3 two requests a file.
    if outcome.state in {FileState.INGESTED, FileState.DUPLICATE} and outcome.record.reason is not None:
        quarantine.remove(outcome.record.file_key)


def reason_note(outcome: FileResult, run_id: str) -> dict[str, Any]:
    """Return the content of the JSON next to a rejected file."""
    record = outcome.record
    return {
        "file_key": record.file_key,
        "reason": outcome.reason,
        "rules": dict(outcome.rule_counts),
        "source": record.location,
        "sha256": outcome.landed.sha256 if outcome.landed else None,
        "size_bytes": outcome.landed.size_bytes if outcome.landed else None,
        "profile": outcome.profile or record.profile,
        "rows_read": outcome.rows_read,
        "rows_bad": outcome.rows_quarantined,
        "sample": [dict(row) for row in outcome.sample],
        "kafka": str(record.intake),
        "trace_id": record.event.trace_id,
        "job_id": record.event.job_id,
        "run_id": run_id,
        "quarantined_at": datetime.now(UTC).isoformat(),
    }
