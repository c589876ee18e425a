"""Step 3, `quarantined_files` and the tables: store accepted and rejected rows together with the state of the files.

All of it is one transaction, and every write replaces the rows of an earlier attempt at the same files: a retry ends in
the same state, and a killed run leaves nothing behind. Duplicate contents and newer versions of a file are detected
here, where no two runs can both be first.

Of one location the newest accepted version counts, whatever the order in which versions arrive. That is decided inside
the transaction that stores a version, while no other transaction decides about the same location. Rows of an older
version are removed in the transaction that adds the newer one's; an older version that comes later is read, and not
stored.

A transaction that fails is bisected down to the file that causes it: the others are stored immediately. Only while the
database does not answer are all of them retried later.

The quarantine store keeps the bytes of a file that is rejected as a whole, next to a JSON with the reason; single
rejected rows are in `quarantined_rows`. A second write for the same file replaces the first.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import polars as pl
import sqlalchemy as sa
import stamina

from ingest_project.core.console import data_text
from ingest_project.core.errors import (
    DatabaseUnavailableError,
    FileRejectedError,
    IngestError,
    StoreUnavailableError,
    TransientError,
)
from ingest_project.core.items import store_bisecting
from ingest_project.core.local_files import FileFingerprint, LocalFile
from ingest_project.core.logging import get_logger
from ingest_project.file_ingest.contract import Contract
from ingest_project.file_ingest.file_queue import VersionOrder
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import (
    FileResult,
    error_of,
    is_schema_error,
    panics_as_errors,
    result_of_error,
    traceback_of,
)
from ingest_project.file_ingest.tables import FileState
from ingest_project.file_ingest.validate_files import CheckedGroup
from ingest_project.file_ingest.warehouse import REPLACEABLE_STATES, VersionRow, WarehouseTransaction
from ingest_project.file_ingest.warehouse.baselines import sample_order_of
from ingest_project.file_ingest.warehouse.sql import CLAIMS, FINISHED, STATISTICS, VERSIONS
from ingest_project.platform.database import reading
from ingest_project.platform.errors import first_line_of, storable
from ingest_project.platform.http import without_query
from ingest_project.platform.object_store.content_store import LandingStore, QuarantineStore

logger = get_logger(__name__)
# A run waits for the end of a short outage; after a longer one its files are claimed again later.
STORE_ATTEMPTS = 3
STORE_WAIT_SECONDS, MAX_STORE_WAIT_SECONDS = 0.5, 2.0
MAX_CONSECUTIVE_FAILURES = 3
KEYS_AT_A_TIME = 500
MAX_SHOWN_KEY = 200


@dataclass
class GroupLoad:
    """One group on its way into the warehouse.

    Args:
        group: the validated group to store.
        services: warehouse and stores.
        contract: contract of the dataset.
        run_id: id of the Dagster run.
        done: results of the files so far, and of the versions that were replaced.
        busy: files whose location another transaction has locked.
    """

    group: CheckedGroup
    services: FileIngestResources
    contract: Contract
    run_id: str
    done: list[FileResult] = field(default_factory=list)
    busy: list[FileResult] = field(default_factory=list)
    _failed_before: bool = False
    _attempted: set[str] = field(default_factory=set)

    def store(self, results: Sequence[FileResult]) -> None:
        """Store these files, all or none. Only the first failure is retried after a pause."""
        attempts = 1 if self._failed_before else STORE_ATTEMPTS
        try:
            with panics_as_errors():
                retrying = stamina.RetryingCaller(
                    attempts=attempts,
                    timeout=None,
                    wait_initial=STORE_WAIT_SECONDS,
                    wait_max=MAX_STORE_WAIT_SECONDS,
                    wait_exp_base=4,
                    wait_jitter=0,
                )
                stored = retrying(TransientError, lambda: self._store_at_once(results, wait=False))
        except Exception:
            self._failed_before = True
            raise
        settled = {result.record.file_key for result in stored}
        self.done += stored
        self.busy += [result for result in results if result.record.file_key not in settled]

    def store_busy(self, results: Sequence[FileResult]) -> None:
        """Store one file once the other version of its location is stored."""
        with panics_as_errors():
            self.done += self._store_at_once(results, wait=True)

    def _store_at_once(self, results: Sequence[FileResult], *, wait: bool) -> list[FileResult]:
        try:
            group = subset(self.group, results)
            if unknown := evolving_names(group):
                tables = self.contract.widened(self.services.engine, unknown)
                # Where a whole group has too many columns, a part of it may have others.
                schema = {name: kind for name, kind in tables.row_schema.items() if name in group.accepted.columns}
                group = replace(group, tables=replace(tables, row_schema=schema))
            return store_at_once(group, self.services, self.run_id, self._attempted, wait=wait)
        except TransientError as error:
            logger.warning("store_failed", files=len(results), reason=str(error))
            raise

    def store_failed(self, result: FileResult, error: Exception) -> list[FileResult]:
        """Store that one file cannot be stored: rejected for its keys, or failed."""
        if not isinstance(error, StoredKeyError):
            return [record_failure(result, error, self.services, self.run_id)]
        refused = rejected_for_stored_key(result, error, self.services)
        (kept,) = quarantine_rejected([refused], self.services, self.run_id)
        if kept.state is not FileState.QUARANTINED:
            return [kept]
        group = self.group
        nothing = (group.accepted.clear(), group.quarantined.clear(), group.metrics.clear())
        rejected = CheckedGroup([kept], *nothing, group.tables)
        return store_at_once(rejected, self.services, self.run_id, self._attempted, wait=True)

    def is_file_fault(self, error: Exception) -> bool:
        """Return True if one file may have caused the error, False for an error of the database itself."""
        if isinstance(error, DatabaseUnavailableError):
            # One file may break a connection; a server that is away does not answer other requests either.
            return accepts_transactions(self.services)
        return not is_schema_error(error)


def store(group: CheckedGroup, services: FileIngestResources, contract: Contract, run_id: str) -> list[FileResult]:
    """Store a group of files and finish their queue entries.

    Args:
        group: results of all its files, and the frames of the ingested ones.
        services: warehouse and stores.
        contract: contract of the dataset.
        run_id: id of the Dagster run.

    Returns:
        the result of each file: as given, or duplicate, replaced or failed, or pending where it is to be retried; and
        of each other version that was replaced by one of them.

    """
    kept = quarantine_rejected(group.results, services, run_id)
    storing = GroupLoad(group, services, contract, run_id)
    requeue_later = [o for o in kept if o.state is FileState.PENDING or o.keeps_stored_rows]
    to_store = [o for o in kept if not (o.state is FileState.PENDING or o.keeps_stored_rows)]
    try:
        failures = store_bisecting(to_store, storing.store, storing.is_file_fault)
        for result in storing.busy:
            failures += store_bisecting([result], storing.store_busy, storing.is_file_fault)
    except Exception as cause:
        if not (isinstance(cause, TransientError) or is_schema_error(cause)):
            raise
        error = error_of("Storing the files", cause)
        settled = {result.record.file_key for result in storing.done}
        left = [result for result in to_store if result.record.file_key not in settled]
        return requeue_later + storing.done + [result_of_error(result.record, error, result.landed) for result in left]
    failed = [one for result, error in failures for one in storing.store_failed(result, error)]
    return requeue_later + storing.done + failed


def accepts_transactions(services: FileIngestResources) -> bool:
    """Return True if the warehouse accepts a transaction."""
    try:
        with services.warehouse.transaction() as transaction:
            transaction.versions_at([""])
    except IngestError:
        return False
    return True


def record_failure(result: FileResult, cause: Exception, services: FileIngestResources, run_id: str) -> FileResult:
    """Record why one file cannot be stored, permanently or for now."""
    error = error_of("Storing the file", cause)
    key = result.record.file_key
    logger.warning("file_not_stored", partition_key=key, reason=str(error), traceback=traceback_of(cause))
    failed = result_of_error(result.record, error, result.landed, profile=result.profile)
    if failed.state is FileState.PENDING or failed.keeps_stored_rows:
        return failed
    try:
        with services.warehouse.transaction() as transaction:
            finish(transaction, [failed], run_id)
    except TransientError as failure:
        return result_of_error(result.record, failure, result.landed)
    return failed


class StoredKeyError(Exception):
    """A row has a key that must be unique in its table, and that a row of another file has.

    Args:
        rows: one of which it is.
        table: the table that has the other.
    """

    def __init__(self, rows: pl.DataFrame, table: sa.Table) -> None:
        super().__init__("A key is stored already.")
        self.rows, self.table = rows, table


def append_accepted(transaction: WarehouseTransaction, rows: pl.DataFrame, table: sa.Table | None) -> None:
    """Store accepted rows.

    Raises:
        StoredKeyError: one of their keys is already stored.
    """
    try:
        transaction.append_rows(rows)
    except Exception as error:
        reason = first_line_of(error)
        keys = [str(index.name) for index in table.indexes if index.unique] if table is not None else []
        # SQLite names the columns and not the index.
        if table is None or not any(text in reason for text in (*keys, "UNIQUE constraint failed")):
            raise
        raise StoredKeyError(rows, table) from error


def rejected_for_stored_key(result: FileResult, error: StoredKeyError, services: FileIngestResources) -> FileResult:
    """Return the result of a file with a key that is stored already; its reason names the key and the other file."""
    found = _first_stored_key(error, services.engine)
    reason = (
        f"{found or 'A key of the file is stored already, of another file'}; keys are declared unique in the table."
    )
    known = {"profile": result.profile, "rows_read": result.rows_read, "drift": result.drift, "policy": result.policy}
    return result_of_error(result.record, FileRejectedError("stored_key", reason), result.landed, **known)


def _first_stored_key(error: StoredKeyError, engine: sa.Engine) -> str:
    """Name the first row whose key another file stored, and that file; empty if no file has it any more."""
    stored = error.table.c
    names = [column.name for index in error.table.indexes if index.unique for column in index.columns]
    columns = [stored[name] for name in names]
    keys = error.rows.select("line_number", *names).drop_nulls()
    with reading(engine) as connection:
        for part in keys.iter_slices(KEYS_AT_A_TIME):
            wanted = [key for _, *key in part.iter_rows()]
            query = sa.select(stored.file_key, *columns).where(sa.tuple_(*columns).in_(wanted))
            owners = {tuple(key): owner for owner, *key in connection.execute(query)}
            for line, *key in part.iter_rows():
                if owner := owners.get(tuple(key)):
                    pairs = (f"{name} {data_text(value)}" for name, value in zip(names, key, strict=True))
                    shown = textwrap.shorten(", ".join(pairs), MAX_SHOWN_KEY, placeholder=" …")
                    return f"The key of line {line} ({shown}) is stored already, of the file {owner}"
    return ""


def evolving_names(group: CheckedGroup) -> list[str]:
    """Return the undeclared columns of the ingested files of a group."""
    ingested = (result for result in group.results if result.state is FileState.INGESTED)
    named = (name for result in ingested for name in result.drift.unknown if name not in result.drift.rescued)
    return [*dict.fromkeys(named)]


def subset(group: CheckedGroup, results: Sequence[FileResult]) -> CheckedGroup:
    """Return the part of a group that belongs to some of its files."""
    if len(results) == len(group.results):
        return replace(group, results=results)
    own = pl.col("file_key").is_in([result.record.file_key for result in results])
    return replace(
        group,
        results=results,
        accepted=group.accepted.filter(own),
        quarantined=group.quarantined.filter(own),
        metrics=group.metrics.filter(own),
    )


def store_at_once(
    group: CheckedGroup, services: FileIngestResources, run_id: str, attempted: set[str], *, wait: bool
) -> list[FileResult]:
    """Store a group in one transaction.

    Args:
        group: files to store.
        services: warehouse and stores.
        run_id: id of the Dagster run.
        attempted: keys of files that this run has tried to store; those of this group are added.
        wait: for other transactions that store versions of the same locations; else those files are left out.

    Returns:
        the result of each file that was not left out, and of the versions they replaced.
    """
    with services.warehouse.of(group.tables).transaction() as transaction:
        results = lock_locations_of(transaction, group.results, wait=wait)
        results, replaced = settle_versions(transaction, results, run_id)
        results = without_duplicates(transaction, results)
        unstored = unstored_files(results, attempted)
        transaction.replace_files([result.record.file_key for result in results] + list(replaced), unstored)
        accepted, quarantined, metrics = ingested_frames(group, results)
        append_accepted(transaction, accepted, group.tables.rows)
        transaction.append_quarantined(quarantined)
        transaction.put_metrics(metrics)
        for result in results:
            leave_quarantine(result, services.quarantine)
        finish(transaction, results, run_id)
    return results + replaced_results(services, replaced)


def unstored_files(results: Sequence[FileResult], attempted: set[str]) -> set[str]:
    """Return the keys of the files of which no row can be stored, and note that they are about to be stored."""
    keys = {result.record.file_key for result in results if result.record.begun <= 1} - attempted
    attempted.update(result.record.file_key for result in results)
    return keys


def lock_locations_of(
    transaction: WarehouseTransaction, results: Sequence[FileResult], *, wait: bool
) -> list[FileResult]:
    """Lock the locations of these files until the transaction ends; return the files whose locations are locked."""
    locked = transaction.lock_locations([result.record.location_key for result in results], wait=wait)
    return [result for result in results if result.record.location_key in locked]


def settle_versions(
    transaction: WarehouseTransaction, results: Sequence[FileResult], run_id: str
) -> tuple[list[FileResult], tuple[str, ...]]:
    """Make the newest version of each location the one that counts.

    Returns:
        the results, those that do not count as replaced; and the keys of other versions that they replace.
    """
    stored = transaction.versions_at([result.record.location_key for result in results])
    own = {result.record.file_key for result in results}
    others = [(row, VersionOrder(*row[3:])) for row in stored if row.file_key not in own]
    newest = _newest_accepted(results, others)
    replaced = {
        row.file_key: successor.file_key
        for row, order in others
        if (successor := newest.get(row.location_key)) is not None
        and successor.file_key in own
        and order < successor
        and (row.stands or row.state in REPLACEABLE_STATES)
    }
    if replaced:
        # Their contents are free for the successors, and for files that were duplicates of them.
        transaction.release_contents(list(replaced))
        transaction.replace_versions(replaced, run_id)
        transaction.put_statistics(pl.DataFrame(schema=STATISTICS), list(replaced))
    return [_replaced_if_older(result, newest.get(result.record.location_key)) for result in results], tuple(replaced)


def _newest_accepted(
    results: Sequence[FileResult], others: Sequence[tuple[VersionRow, VersionOrder]]
) -> dict[str, VersionOrder]:
    """Return the newest accepted version of each location, of the results and of other versions."""
    candidates = [(o.record.location_key, o.record.order) for o in results if o.state is FileState.INGESTED]
    candidates += [(row.location_key, order) for row, order in others if row.stands]
    newest: dict[str, VersionOrder] = {}
    for location_key, order in candidates:
        newest[location_key] = max(order, newest.get(location_key, order))
    return newest


def _replaced_if_older(result: FileResult, newest: VersionOrder | None) -> FileResult:
    if newest is None or result.record.order >= newest or result.state not in REPLACEABLE_STATES:
        return result
    before = "" if result.state is FileState.INGESTED else f" It would have been {result.state}: {result.reason}"
    reason = f"{newest.file_key} is newer and counts instead.{before}"
    return replace(result, state=FileState.REPLACED, replaced_by=newest.file_key, reason=reason, sample=())


def replaced_results(services: FileIngestResources, file_keys: Sequence[str]) -> list[FileResult]:
    """Return the results of the versions that were replaced, except those that are leased."""
    records = services.files.get_many(file_keys) if file_keys else ()
    return [
        FileResult(record, record.state, profile=record.profile, reason=record.reason, replaced_by=record.replaced_by)
        for record in records
        if record.state is FileState.REPLACED
    ]


def ingested_frames(group: CheckedGroup, results: Sequence[FileResult]) -> Iterable[pl.DataFrame]:
    """Return accepted rows, rejected rows and metrics of the ingested files only."""
    frames = (group.accepted, group.quarantined, group.metrics)
    ingested = [result.record.file_key for result in results if result.state is FileState.INGESTED]
    before = sum(result.state is FileState.INGESTED for result in group.results)
    if len(ingested) == before:
        return frames
    return tuple(frame.filter(pl.col("file_key").is_in(ingested)) for frame in frames)


def without_duplicates(transaction: WarehouseTransaction, results: Sequence[FileResult]) -> list[FileResult]:
    """Claim the content of each ingested file; where another file already represents it, this one is a duplicate."""
    claims = [
        (result.record.file_key, result.landed.sha256, result.meaning)
        for result in results
        if result.state is FileState.INGESTED and result.landed is not None
    ]
    owners = transaction.claim_contents(pl.DataFrame(claims, schema=CLAIMS, orient="row"))
    return [
        result
        if (owner := owners.get(result.record.file_key, result.record.file_key)) == result.record.file_key
        else replace(
            result, state=FileState.DUPLICATE, duplicate_of=owner, reason=f"The same content as {owner}.", sample=()
        )
        for result in results
    ]


def finish(transaction: WarehouseTransaction, results: Sequence[FileResult], run_id: str) -> None:
    """Finish the queue entry of each file, inside the transaction that stores its rows."""
    transaction.release_contents(
        [o.record.file_key for o in results if o.state not in {FileState.INGESTED, FileState.DUPLICATE}]
    )
    transaction.finish_files(pl.DataFrame([_finished(result, run_id) for result in results], schema=FINISHED))
    transaction.put_statistics(
        pl.DataFrame(
            [_statistics(result) for result in results if result.state is FileState.INGESTED], schema=STATISTICS
        ),
        [o.record.file_key for o in results if o.state is not FileState.INGESTED and o.record.begun > 1],
    )
    transaction.pin_versions(
        pl.DataFrame(
            [_version(result) for result in results if result.landed is not None and not result.record.pinned],
            schema=VERSIONS,
        )
    )


def _finished(result: FileResult, run_id: str) -> Mapping[str, object]:
    return {
        "file_key": result.record.file_key,
        "state": result.state.value,
        "reason": result.reason and storable(result.reason),
        "error_class": result.error_class,
        "run_id": run_id,
        # Bytes that an earlier attempt landed are still there: used if the source is gone, and purged by retention.
        "sha256": result.landed.sha256 if result.landed else result.record.sha256,
        "landed_bytes": result.landed.size_bytes if result.landed else result.record.landed_bytes,
        "profile": result.profile or result.record.profile,
        "duplicate_of": result.duplicate_of,
        "replaced_by": result.replaced_by,
        "rows_read": result.rows_read,
        "rows_accepted": result.rows_accepted,
        "rows_quarantined": result.rows_quarantined,
        "rule_counts": json.dumps(result.rule_counts),
        "drifted": result.drift.found or None,
    }


def _statistics(result: FileResult) -> Mapping[str, object]:
    found = result.statistics
    return {
        **msgspec.structs.asdict(found),
        "sample_order": sample_order_of(found.file_key),
        "null_counts": json.dumps(found.null_counts),
    }


def _version(result: FileResult) -> Mapping[str, object]:
    event = result.record.event
    return {
        "file_key": result.record.file_key,
        "size_bytes": event.size_bytes,
        "modified_at": event.modified_at,
        "etag": event.etag and storable(event.etag),
        "version_at": result.record.version_at,
    }


def quarantine_rejected(results: Sequence[FileResult], services: FileIngestResources, run_id: str) -> list[FileResult]:
    """Store the bytes of rejected files in quarantine; a file that cannot be stored there is retried or failed."""
    kept: list[FileResult] = []
    consecutive_failures = 0
    failure: IngestError | None = None
    for result in results:
        if result.state is not FileState.QUARANTINED:
            kept.append(result)
            continue
        # Do not try an unavailable store for each file: every request may last until its timeout.
        if failure is None or consecutive_failures < MAX_CONSECUTIVE_FAILURES:
            failure = None
            try:
                with panics_as_errors():
                    kept.append(quarantine_file(result, services.landing, services.quarantine, run_id))
                consecutive_failures = 0
                continue
            except Exception as cause:  # noqa: BLE001 - one file's failure is its own
                failure = error_of("Quarantining the file", cause)
                consecutive_failures = consecutive_failures + 1 if isinstance(failure, StoreUnavailableError) else 0
                key = result.record.file_key
                trace = traceback_of(cause)
                logger.warning("file_not_quarantined", partition_key=key, reason=str(failure), traceback=trace)
        kept.append(result_of_error(result.record, failure, result.landed, profile=result.profile))
    return kept


def quarantine_file(result: FileResult, landing: LandingStore, quarantine: QuarantineStore, run_id: str) -> FileResult:
    """Store a rejected file's bytes and the reason; return the result with the location of the bytes."""
    note = reason_note(result, run_id)
    if result.landed is None:
        # The file was rejected for its size before the copy, so that only the reason is kept.
        quarantine.put(result.record.file_key, b"", note)
        return result
    with landing.local_path(result.landed.sha256) as path:
        # The landed bytes are verified: a store on the same disk links them unread. A copy of remote ones is not yet.
        fingerprint = FileFingerprint.of(path.stat()) if str(path) == result.landed.path else None
        file = LocalFile(path, result.landed.size_bytes, result.landed.sha256, fingerprint)
        kept = quarantine.put(result.record.file_key, file, note)
    return replace(result, kept_at=kept.location)


def leave_quarantine(result: FileResult, quarantine: QuarantineStore) -> None:
    """Remove an accepted file from quarantine.

    Done before its rows are stored: if that fails, the file is accepted or rejected again.
    """
    # Only a file with a recorded reason can be there: looking up every file would cost two requests to S3 each.
    if result.state in {FileState.INGESTED, FileState.DUPLICATE} and result.record.reason is not None:
        quarantine.remove(result.record.file_key)


def reason_note(result: FileResult, run_id: str) -> dict[str, Any]:
    """Return the content of the JSON next to a rejected file."""
    record = result.record
    return {
        "file_key": record.file_key,
        "reason": result.reason,
        "rules": dict(result.rule_counts),
        "source": without_query(record.location),
        "sha256": result.landed.sha256 if result.landed else None,
        "size_bytes": result.landed.size_bytes if result.landed else None,
        "profile": result.profile or record.profile,
        "rows_read": result.rows_read,
        "rows_bad": result.rows_quarantined,
        "sample": [dict(row) for row in result.sample],
        "kafka": str(record.kafka_position),
        "trace_id": record.event.trace_id,
        "job_id": record.event.job_id,
        "run_id": run_id,
        "quarantined_at": datetime.now(UTC).isoformat(),
    }
