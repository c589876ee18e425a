"""How one run carries many partitions: an explicit list of keys in, each partition's own events out.

A run that Dagster would call partitioned reports every output for every one of its partitions; here one file of a batch
may be stored while the next is quarantined. So a batch run has no partition: its keys come from the ledger by batch id,
and each file's materialisations and check results are written by hand, in bulk where the storage can do it. A person
who selects partitions in the UI, and a tick that found a single file, go through the same code with Dagster's own keys.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry

from ingest_project.event_rows import CheckRows, MaterializationRows
from ingest_project.event_storage import BulkEventLogStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingest_project.settings import RetrySettings

BATCH_TAG = "ingest/batch"
BATCH_ID_TAG = "ingest/batch_id"
BATCH_SIZE_TAG = "ingest/batch_size"
# Pools, whose limit is in dagster.yaml: they also bound what people start by hand, which has no batch tag.
DATABASE_POOL = "database"
ONELAKE_POOL = "onelake"

_POOL_RECYCLE_SECONDS = 3_600
_STATEMENT_TIMEOUT_MILLISECONDS = 120_000


@dataclass(frozen=True)
class CheckResult:
    """The result of one partitioned check for one partition."""

    asset: dg.AssetKey
    check: str
    passed: bool
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    description: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> dg.AssetCheckKey:
        """Which check of which asset."""
        return dg.AssetCheckKey(self.asset, self.check)


@dataclass(frozen=True)
class PartitionReport:
    """What happened to one partition: the metadata of each asset that was materialised for it, and its checks."""

    partition: str
    materialized: Mapping[dg.AssetKey, Mapping[str, Any]]
    checks: Sequence[CheckResult] = ()


class RequestLedger(Protocol):
    """What a ledger of files or jobs offers so that runs can be asked for."""

    def request(self, batch_id: str, keys: Sequence[str], now: datetime) -> Sequence[str]:
        """Claim what is still pending for a batch; returns what was claimed."""
        ...


def new_batch_id() -> str:
    """A name no batch ever had: a batch that is asked for again must not be taken for a run that already was."""
    return uuid.uuid4().hex[:16]


def split_evenly(keys: Sequence[str], largest: int, parallel: int, worth_splitting: int) -> list[list[str]]:
    """Cut keys into batches of at most `largest`, and into `parallel` equal ones where each is worth a run's start-up.

    Args:
        keys: what is to be done, in order.
        largest: most keys in one batch.
        parallel: runs that work side by side.
        worth_splitting: fewest keys for which a second run pays for its own start-up.
    """
    if not keys:
        return []
    wanted = max(-(-len(keys) // largest), min(parallel, len(keys) // worth_splitting), 1)
    size = -(-len(keys) // wanted)
    return [list(keys[start : start + size]) for start in range(0, len(keys), size)]


def run_request(kind: str, batch_id: str, keys: Sequence[str], *, partitioned: bool = True) -> dg.RunRequest:
    """Ask for one run over these keys: an ordinary partitioned run for a single key, so that its page shows the file.

    Args:
        kind: what the keys are, e.g. `files`; runs of one kind are limited together in dagster.yaml.
        batch_id: under which the ledger knows the keys; also the run key.
        keys: of the ledger.
        partitioned: whether the keys are partitions.
    """
    tags = {BATCH_TAG: kind, BATCH_ID_TAG: batch_id, BATCH_SIZE_TAG: str(len(keys))}
    partition_key = keys[0] if partitioned and len(keys) == 1 else None
    return dg.RunRequest(run_key=batch_id, partition_key=partition_key, tags=tags)


def request_batches(
    kind: str, ledger: RequestLedger, batches: Sequence[Sequence[str]], now: datetime, *, partitioned: bool = True
) -> list[dg.RunRequest]:
    """Claim each batch in the ledger and ask for its run; what somebody else claimed meanwhile is left out."""
    requests = []
    for keys in batches:
        batch_id = new_batch_id()
        claimed = ledger.request(batch_id, keys, now)
        if claimed:
            requests.append(run_request(kind, batch_id, claimed, partitioned=partitioned))
    return requests


def keys_of_run(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, keys_of_batch: Callable[[str], Sequence[str]]
) -> list[str]:
    """The partitions this run is for.

    Args:
        context: of the run.
        keys_of_batch: asks the ledger for the keys of a batch.

    Returns:
        the keys a person selected, the one key of a single-partition run, or those the ledger holds for the batch.
    """
    if context.has_partition_key or context.has_partition_key_range:
        return list(context.partition_keys)
    batch_id = context.run.tags.get(BATCH_ID_TAG)
    if batch_id is None:
        raise dg.Failure("This run names neither partitions nor a batch. Select partitions and materialise those.")
    return list(keys_of_batch(batch_id))


class Holding(Protocol):
    """Files or jobs that one batch, or one run of it, should be working on."""

    @property
    def batch_id(self) -> str | None:
        """The batch; None where a person took them by hand."""
        ...

    @property
    def run_id(self) -> str | None:
        """The run; None while none has started on them."""
        ...


class Released(Protocol):
    """What became of entries that were given back."""

    @property
    def failed(self) -> Sequence[str]:
        """Keys of those that had no attempt left."""
        ...


class HoldingLedger(Protocol):
    """What a ledger of files or jobs offers so that abandoned work is found and asked for again."""

    def held(self, lane: str, untouched_since: datetime) -> Sequence[Holding]:
        """Groups that some run should be working on and that nothing has touched since then."""
        ...

    def release(  # noqa: PLR0913, PLR0917 - the retry rule is two settings
        self,
        batch_id: str | None,
        run_id: str | None,
        reason: str,
        max_attempts: int,
        delay: Callable[[int], timedelta],
        now: datetime,
    ) -> Released:
        """Back to pending with a pause, or to failed where every attempt is used up."""
        ...


def release_abandoned(
    instance: dg.DagsterInstance, ledger: HoldingLedger, lane: str, retries: RetrySettings
) -> list[str]:
    """Give back what no live run holds: its launch failed, it was killed, or the tick that asked was never saved.

    Args:
        instance: knows the runs.
        ledger: of files or jobs.
        lane: of the asking sensor, usually the topic it reads; each sensor looks after its own.
        retries: how long a run may take to appear, and when what it left is tried again.

    Returns:
        keys of those that had no attempt left and are failed.
    """
    now = datetime.now(UTC)
    failed: list[str] = []
    for holding in ledger.held(lane, now - retries.launch_grace):
        if not _is_alive(instance, holding):
            held_by = f"run {holding.run_id}" if holding.run_id else f"batch {holding.batch_id}"
            released = ledger.release(
                holding.batch_id,
                holding.run_id,
                f"The {held_by} ended before this was done.",
                retries.max_attempts,
                retries.delay,
                now,
            )
            failed += released.failed
    return failed


def _is_alive(instance: dg.DagsterInstance, holding: Holding) -> bool:
    """Whether the run that works on these is there: it, or another attempt at the same batch, is not finished."""
    filters = [dg.RunsFilter(run_ids=[holding.run_id])] if holding.run_id else []
    if holding.batch_id:
        filters.append(dg.RunsFilter(tags={BATCH_ID_TAG: holding.batch_id}))
    return any(not run.is_finished for found in filters for run in instance.get_runs(filters=found, limit=10))


def report_failed(instance: dg.DagsterInstance, result: CheckResult, partition: str) -> None:
    """Show in the UI that a partition failed for good, where no run is left that could say so."""
    evaluation = dg.AssetCheckEvaluation(
        asset_key=result.asset,
        check_name=result.check,
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
        partition=partition,
    )
    instance.report_runless_asset_event(evaluation)


def keep_connections_open(instance: dg.DagsterInstance) -> None:
    """Let this process reuse its connections to Dagster's storage: by default each event opens one of its own."""
    if isinstance(instance.event_log_storage, BulkEventLogStorage):
        return  # they stay open anyway
    instance.optimize_for_webserver(
        statement_timeout=_STATEMENT_TIMEOUT_MILLISECONDS, pool_recycle=_POOL_RECYCLE_SECONDS, max_overflow=5
    )


Context = dg.AssetExecutionContext | dg.AssetCheckExecutionContext | dg.OpExecutionContext


def report(context: Context, reports: Sequence[PartitionReport]) -> None:
    """Write the events of many partitions into Dagster's event log.

    Done a second time it adds the same events again, and the UI shows the newest: the same state.
    """
    targets = _store_materializations(context, reports)
    targets |= _earlier_targets(context.instance, reports)
    _store_checks(context, reports, targets)


Targets = dict[tuple[dg.AssetKey, str], AssetCheckEvaluationTargetMaterializationData]


def _earlier_targets(instance: dg.DagsterInstance, reports: Sequence[PartitionReport]) -> Targets:
    """What checks that stand alone are about: without it Dagster takes them for older than what they looked at."""
    targets: Targets = {}
    for check_report in reports:
        for asset in {check.asset for check in check_report.checks if not check_report.materialized}:
            wanted = dg.AssetRecordsFilter(asset, asset_partitions=[check_report.partition])
            for record in instance.fetch_materializations(wanted, limit=1).records:
                targets[asset, check_report.partition] = AssetCheckEvaluationTargetMaterializationData(
                    storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
                )
    return targets


def _store_materializations(context: Context, reports: Sequence[PartitionReport]) -> Targets:
    """Store the events and say under which id each partition's materialisation is kept."""
    now = time.time()
    told = [
        (asset, report.partition, metadata) for report in reports for asset, metadata in report.materialized.items()
    ]
    storage = context.instance.event_log_storage
    if isinstance(storage, BulkEventLogStorage):
        newest = {asset: position for position, (asset, _, _) in enumerate(told)}
        entries = {position: _materialization_event(context, now, *told[position]) for position in newest.values()}
        rows = {asset: MaterializationRows(entries[position]) for asset, position in newest.items()}
        storage_ids = storage.store_asset_events(
            (rows[asset].row(partition, metadata) for asset, partition, metadata in told), entries
        )
    else:
        storage_ids = [_store_one(context, now, *one) for one in told]
    return {
        (asset, partition): AssetCheckEvaluationTargetMaterializationData(
            storage_id=storage_id, run_id=context.run.run_id, timestamp=now
        )
        for (asset, partition, _), storage_id in zip(told, storage_ids, strict=True)
    }


def _store_one(
    context: Context, timestamp: float, asset: dg.AssetKey, partition: str, metadata: Mapping[str, Any]
) -> int:
    context.instance.handle_new_event(_materialization_event(context, timestamp, asset, partition, metadata))
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[partition])
    stored: int = context.instance.fetch_materializations(wanted, limit=1).records[0].storage_id
    return stored


def _store_checks(context: Context, reports: Sequence[PartitionReport], targets: Targets) -> None:
    now = time.time()
    told = [
        (report.partition, result, targets.get((result.asset, report.partition)))
        for report in reports
        for result in report.checks
    ]
    storage = context.instance.event_log_storage
    if isinstance(storage, BulkEventLogStorage):
        examples = {result.key: (partition, result, target) for partition, result, target in told}
        rows = {key: CheckRows(_check_event(context, now, *example), key) for key, example in examples.items()}
        storage.store_check_events(
            [rows[result.key].row(partition, result, target) for partition, result, target in told]
        )
    else:
        for one in told:
            context.instance.handle_new_event(_check_event(context, now, *one))


def _materialization_event(
    context: Context, timestamp: float, asset: dg.AssetKey, partition: str, metadata: Mapping[str, Any]
) -> EventLogEntry:
    materialization = dg.AssetMaterialization(asset_key=asset, partition=partition, metadata=metadata)
    data = StepMaterializationData(materialization, [])
    return _entry(context, timestamp, DagsterEventType.ASSET_MATERIALIZATION, data)


def _check_event(
    context: Context,
    timestamp: float,
    partition: str,
    result: CheckResult,
    target: AssetCheckEvaluationTargetMaterializationData | None,
) -> EventLogEntry:
    evaluation = AssetCheckEvaluation(
        asset_key=result.asset,
        check_name=result.check,
        passed=result.passed,
        metadata=result.metadata,
        target_materialization_data=target,
        severity=result.severity,
        description=result.description,
        partition=partition,
    )
    return _entry(context, timestamp, DagsterEventType.ASSET_CHECK_EVALUATION, evaluation)


def _entry(
    context: Context,
    timestamp: float,
    event_type: DagsterEventType,
    data: StepMaterializationData | AssetCheckEvaluation,
) -> EventLogEntry:
    step = context.get_step_execution_context().step
    event = DagsterEvent(
        event_type_value=event_type.value,
        job_name=context.run.job_name,
        step_handle=step.handle,
        node_handle=step.node_handle,
        step_kind_value=step.kind.value,
        event_specific_data=data,
    )
    return EventLogEntry(  # type: ignore[no-untyped-call]  # Dagster's own class has no annotations here
        error_info=None,
        level=10,
        user_message="",
        run_id=context.run.run_id,
        timestamp=timestamp,
        step_key=step.key,
        job_name=context.run.job_name,
        dagster_event=event,
    )
