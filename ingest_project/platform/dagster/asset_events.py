"""What became of many partitions, written into Dagster's event log: in bulk where the storage can do it.

One file of a batch may be stored while the next is quarantined, and Dagster would report a run's outputs for every one
of its partitions. So each partition's materialisations and check results are written by hand.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry

from ingest_project.core.bisection import store_bisecting
from ingest_project.platform.dagster.event_log_storage import BulkEventLogStorage
from ingest_project.platform.dagster.event_rows import CheckRows, MaterializationRows

_POOL_RECYCLE_SECONDS = 3_600
_STATEMENT_TIMEOUT_MILLISECONDS = 120_000
_MAX_REASON = 300

# Partitioned checks are a preview of Dagster's: known, pinned and tested, and not worth a line in every process's log.
warnings.filterwarnings(
    "ignore", message="Specifying a partitions_def on an AssetCheckSpec", category=dg.PreviewWarning
)


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
class PartitionEvents:
    """What happened to one partition: the metadata of each asset that was materialised for it, and its checks."""

    partition: str
    materialized: Mapping[dg.AssetKey, Mapping[str, Any]]
    checks: Sequence[CheckResult] = ()


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


def report(context: Context, reports: Sequence[PartitionEvents]) -> None:
    """Write the events of many partitions into Dagster's event log.

    Done a second time it adds the same events again, and the UI shows the newest: the same state.
    """
    targets = _store_materializations(context, reports)
    targets |= _earlier_targets(context.instance, reports)
    _store_checks(context, reports, targets)


def report_bisecting(context: Context, reports: Sequence[PartitionEvents]) -> list[tuple[PartitionEvents, Exception]]:
    """Write the events of many partitions; of one whose events cannot be written, a bare account of the reason.

    Returns:
        the partitions of which not even that can be written, each with what was raised.

    Raises:
        Exception: no partition's events can be written: that is no partition's fault.
    """
    failures = store_bisecting(reports, lambda part: report(context, part), lambda _: True)
    told = [(_bare(one, error), error) for one, error in failures]
    left = store_bisecting([one for one, _ in told], lambda part: report(context, part), lambda _: True)
    if left and len(left) == len(reports):
        raise left[0][1]
    return left


def _bare(one: PartitionEvents, error: Exception) -> PartitionEvents:
    """What can be said of a partition for certain: which assets, how each check came out, and what stood in the way."""
    told = {"not_shown": f"{type(error).__name__}: {ascii(str(error))[:_MAX_REASON]}"}
    checks = [replace(result, metadata=told, description=told["not_shown"]) for result in one.checks]
    return PartitionEvents(one.partition, dict.fromkeys(one.materialized, told), checks)


def outputs_without_events(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
    """Yield the output of each asset of the run, so that the steps below it go on, without an event of its own.

    Dagster would report an output for every partition of the run, also for those that failed: `report` has reported
    each. It leaves the event out for outputs that it takes to have reported themselves.
    """
    for asset in context.job_def.asset_layer.asset_graph.toposorted_asset_keys:
        if asset not in context.selected_asset_keys:
            continue
        yield dg.MaterializeResult(asset_key=asset, metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})


def report_each(context: dg.AssetCheckExecutionContext, results: Mapping[str, CheckResult]) -> None:
    """Give each partition of a selection its own result: the one that Dagster stores itself stands for all of them.

    Args:
        context: of a check that was asked to look at these partitions.
        results: by partition; where it is one alone, Dagster's own will do.
    """
    if len(results) > 1:
        report(context, [PartitionEvents(partition, {}, [result]) for partition, result in results.items()])


Targets = dict[tuple[dg.AssetKey, str], AssetCheckEvaluationTargetMaterializationData]


def _earlier_targets(instance: dg.DagsterInstance, reports: Sequence[PartitionEvents]) -> Targets:
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


def _store_materializations(context: Context, reports: Sequence[PartitionEvents]) -> Targets:
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


def _store_checks(context: Context, reports: Sequence[PartitionEvents], targets: Targets) -> None:
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
