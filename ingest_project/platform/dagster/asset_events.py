"""Record materialisations and check results of many partitions in Dagster's event log, in bulk where possible.

One file of a batch may be stored while the next is quarantined, but Dagster reports the outputs of a run for every one
of its partitions. Therefore each partition's materialisations and check results are stored here.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.definitions.metadata import normalize_metadata
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.context.system import StepExecutionContext

from ingest_project.core.items import store_bisecting
from ingest_project.platform.dagster import lineage
from ingest_project.platform.dagster.event_text import with_data
from ingest_project.platform.dagster.instance import BulkEventLogStorage

_POOL_RECYCLE_SECONDS = 3_600
_STATEMENT_TIMEOUT_MILLISECONDS = 120_000
_MAX_REASON = 300

# Partitioned checks are a preview feature of Dagster, whose version is pinned and tested: the warning is noise.
warnings.filterwarnings(
    "ignore", message="Specifying a partitions_def on an AssetCheckSpec", category=dg.PreviewWarning
)


def partitions_of_run(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> list[str]:
    """Return the partitions of a run of a partitioned asset or check.

    Raises:
        Failure: the run has no partition; Dagster's own error would not say what to do.
    """
    run = context.op_execution_context
    if run.has_partition_key or run.has_partition_key_range:
        return list(context.partition_keys)
    raise dg.Failure(
        f"This run has no partition, and {context.op_execution_context.op_def.name} works on partitions only. Select "
        "partitions where you launch it, or name one in the run's tag dagster/partition.",
        allow_retries=False,
    )


class WholeAssetResult(dg.AssetCheckResult):
    """The result of a check of a whole asset, even if the asset has partitions.

    Dagster's own result lists every partition of the asset, only to find that they are too many to compare versions:
    0.3 s of CPU time for three years of hourly partitions.
    """

    def _get_target_materialization_data(
        self, step_context: StepExecutionContext, check_key: dg.AssetCheckKey
    ) -> AssetCheckEvaluationTargetMaterializationData | None:
        """Return the newest materialisation of the asset; None without one."""
        if step_context.has_partition_key:
            return super()._get_target_materialization_data(step_context, check_key)
        assets = step_context.instance.get_asset_records([check_key.asset_key])
        newest = assets[0].asset_entry.last_materialization_record if assets else None
        if newest is None:
            return None
        return AssetCheckEvaluationTargetMaterializationData(
            storage_id=newest.storage_id, run_id=newest.run_id, timestamp=newest.timestamp
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
        """The key of the check."""
        return dg.AssetCheckKey(self.asset, self.check)


@dataclass(frozen=True)
class PartitionEvents:
    """The events of one partition: the metadata of each asset that was materialised for it, and its check results."""

    partition: str
    materialized: Mapping[dg.AssetKey, Mapping[str, Any]]
    checks: Sequence[CheckResult] = ()


def report_failed(instance: dg.DagsterInstance, result: CheckResult, partition: str) -> None:
    """Show in the UI that a partition failed permanently when no run is left to report it."""
    instance.report_runless_asset_event(_evaluation(partition, result))


def keep_connections_open(instance: dg.DagsterInstance) -> None:
    """Reuse this process's connections to Dagster's storage: by default each event opens a new one."""
    if isinstance(instance.event_log_storage, BulkEventLogStorage):
        return  # they stay open anyway
    instance.optimize_for_webserver(
        statement_timeout=_STATEMENT_TIMEOUT_MILLISECONDS, pool_recycle=_POOL_RECYCLE_SECONDS, max_overflow=5
    )


Context = dg.AssetExecutionContext | dg.AssetCheckExecutionContext | dg.OpExecutionContext


def report(context: Context, reports: Sequence[PartitionEvents]) -> None:
    """Store the events of many partitions in Dagster's event log.

    Idempotent in effect: a second call adds the same events again, and the UI shows the newest.
    """
    targets = _store_materializations(context, reports)
    targets |= _earlier_targets(context.instance, reports)
    _store_checks(context, reports, targets)


def report_bisecting(context: Context, reports: Sequence[PartitionEvents]) -> list[tuple[PartitionEvents, Exception]]:
    """Store the events of many partitions; for a partition whose events cannot be stored, store the reason instead.

    Returns:
        the partitions for which even the reason could not be stored, each with the exception.

    Raises:
        Exception: nothing could be stored for any partition, so no partition is the cause.
    """
    failures = store_bisecting(reports, lambda part: report(context, part), lambda _: True)
    bare = [_bare(one, error) for one, error in failures]
    unstored = store_bisecting(bare, lambda part: report(context, part), lambda _: True)
    if unstored and len(unstored) == len(reports):
        raise unstored[0][1]
    return unstored


def _bare(one: PartitionEvents, error: Exception) -> PartitionEvents:
    """Reduce a partition to its assets and the result of each check, with the reason why its events were not stored."""
    metadata = {"not_shown": f"{type(error).__name__}: {ascii(str(error))[:_MAX_REASON]}"}
    checks = [replace(result, metadata=metadata, description=metadata["not_shown"]) for result in one.checks]
    return PartitionEvents(one.partition, dict.fromkeys(one.materialized, metadata), checks)


def outputs_without_events(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
    """Yield the output of each asset of the run without an event, so that downstream steps run.

    Dagster would report an output for every partition of the run, including failed ones, and `report` has already
    reported each. Dagster omits the event of an output that is marked as a source asset's observation.
    """
    for asset in context.job_def.asset_layer.asset_graph.toposorted_asset_keys:
        if asset not in context.selected_asset_keys:
            continue
        yield dg.MaterializeResult(asset_key=asset, metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})


def report_each(context: dg.AssetCheckExecutionContext, results: Mapping[str, CheckResult]) -> WholeAssetResult:
    """Store a result for each selected partition, and return the overall one: Dagster itself stores only that.

    Args:
        context: context of the check that evaluates these partitions.
        results: results by partition, at least one; Dagster itself stores a single one.
    """
    if len(results) > 1:
        report(context, [PartitionEvents(partition, {}, [result]) for partition, result in results.items()])
    failed = [result for result in results.values() if not result.passed]
    errors = [result for result in failed if result.severity is dg.AssetCheckSeverity.ERROR]
    # Errors come first: a warning must not hide an error, which may block.
    first = next(iter([*errors, *failed, *results.values()]))
    return WholeAssetResult(
        passed=not failed,
        severity=first.severity,
        description=first.description,
        metadata=first.metadata if len(results) == 1 else {"partitions": len(results), "failed": len(failed)},
    )


Targets = dict[tuple[dg.AssetKey, str], AssetCheckEvaluationTargetMaterializationData]


def _earlier_targets(instance: dg.DagsterInstance, reports: Sequence[PartitionEvents]) -> Targets:
    """Find the earlier materialisation of checks whose report has none: else Dagster shows the check as outdated."""
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
    """Store the materialisations; return those that a check of the same report refers to."""
    now, run_id = time.time(), context.run.run_id
    by_asset: dict[dg.AssetKey, list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
    for report in reports:
        for asset, metadata in report.materialized.items():
            by_asset[asset].append((report.partition, metadata))
            lineage.materialized(asset, report.partition, metadata)
    checked = {(result.asset, report.partition) for report in reports for result in report.checks}
    targets: Targets = {}
    for asset, partitions in by_asset.items():
        events = _materialization_events(context, now, asset, partitions)
        for (partition, _), storage_id in zip(partitions, _store_asset(context, asset, events, checked), strict=True):
            targets[asset, partition] = AssetCheckEvaluationTargetMaterializationData(
                storage_id=storage_id, run_id=run_id, timestamp=now
            )
    return {key: target for key, target in targets.items() if key in checked}


def _store_asset(
    context: Context, asset: dg.AssetKey, events: Sequence[EventLogEntry], checked: Collection[tuple[dg.AssetKey, str]]
) -> list[int]:
    """Store materialisations of one asset; return their storage ids, 0 for those that no check refers to."""
    storage = context.instance.event_log_storage
    if isinstance(storage, BulkEventLogStorage):
        return storage.store_materializations(events)
    storage_ids = []
    for event in events:
        context.instance.handle_new_event(event)
        partition = event.get_dagster_event().partition or ""
        wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[partition])
        is_checked = (asset, partition) in checked
        found = context.instance.fetch_materializations(wanted, limit=1).records if is_checked else []
        storage_ids.append(found[0].storage_id if found else 0)
    return storage_ids


def _store_checks(context: Context, reports: Sequence[PartitionEvents], targets: Targets) -> None:
    now = time.time()
    for report in reports:
        for one in report.checks:
            found = lineage.Checked(one.check, one.passed, one.severity, one.description)
            lineage.checked(one.asset, report.partition, found)
    results = [(report.partition, result) for report in reports for result in report.checks]
    if not results:
        return
    # Consecutive results of one check share most of their text, which is then serialised once.
    results.sort(key=lambda one: (one[1].asset.path, one[1].check))
    evaluations = [_evaluation(key, result, targets.get((result.asset, key))) for key, result in results]
    entry = _entry(context, now, DagsterEventType.ASSET_CHECK_EVALUATION, evaluations[0])
    events = [with_data(entry, evaluation) for evaluation in evaluations]
    storage = context.instance.event_log_storage
    if isinstance(storage, BulkEventLogStorage):
        storage.store_check_results(events)
    else:
        for event in events:
            context.instance.handle_new_event(event)


def _materialization_events(
    context: Context, timestamp: float, asset: dg.AssetKey, partitions: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[EventLogEntry]:
    """Create the event of each partition from one that Dagster has validated; only partition and metadata differ."""
    bare = dg.AssetMaterialization(asset_key=asset)
    data = StepMaterializationData(bare, [])
    entry = _entry(context, timestamp, DagsterEventType.ASSET_MATERIALIZATION, data)
    return [
        with_data(entry, data._replace(materialization=bare._replace(partition=partition, metadata=normalized)))
        for partition, metadata in partitions
        for normalized in [normalize_metadata(metadata)]
    ]


def _evaluation(
    partition: str, result: CheckResult, target: AssetCheckEvaluationTargetMaterializationData | None = None
) -> AssetCheckEvaluation:
    return AssetCheckEvaluation(
        asset_key=result.asset,
        check_name=result.check,
        passed=result.passed,
        metadata=result.metadata,
        target_materialization_data=target,
        severity=result.severity,
        description=result.description,
        partition=partition,
    )


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
