"""How one run carries many partitions."""

from collections.abc import Iterator

import dagster as dg
import pytest
from dagster import DagsterInstance
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.batches import (
    BATCH_ID_TAG,
    CheckResult,
    PartitionReport,
    keep_connections_open,
    keys_of_run,
    report,
    run_request,
    split_evenly,
)

PARTITIONS = dg.DynamicPartitionsDefinition(name="things")
GOOD, REFUSED = dg.AssetKey("good"), dg.AssetKey("refused")
KEYS = ["a~1", "b~2", "c~3"]


@dg.multi_asset(
    specs=[dg.AssetSpec(key, partitions_def=PARTITIONS, skippable=True) for key in (GOOD, REFUSED)],
    can_subset=True,
    backfill_policy=dg.BackfillPolicy.multi_run(100),
)
def things(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
    yield from ()
    keep_connections_open(context.instance)
    reports = [
        PartitionReport(key, {REFUSED: {"reason": "bad"}}, [CheckResult(GOOD, "holds", passed=False)])
        if key.startswith("b")
        else PartitionReport(key, {GOOD: {"rows": 3}}, [CheckResult(GOOD, "holds", passed=True)])
        for key in keys_of_run(context, {"batch-1": KEYS}.__getitem__)
    ]
    report(context, reports)


def definitions() -> dg.Definitions:
    @dg.asset_check(asset=GOOD, name="holds", partitions_def=PARTITIONS)
    def holds() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    job = dg.define_asset_job(
        "batch", selection=dg.AssetSelection.assets(GOOD, REFUSED).without_checks(), executor_def=dg.in_process_executor
    )
    return dg.Definitions(assets=[things], asset_checks=[holds], jobs=[job])


def run_batch(instance: DagsterInstance, **how: object) -> dg.ExecuteInProcessResult:
    instance.add_dynamic_partitions("things", KEYS)
    return definitions().resolve_job_def("batch").execute_in_process(instance=instance, **how)  # type: ignore[arg-type]


def checks_by_partition(instance: DagsterInstance) -> dict[str | None, str]:
    key = dg.AssetCheckKey(GOOD, "holds")
    return {
        info.partition_key: info.latest_execution_status.value
        for info in instance.event_log_storage.get_asset_check_partition_info([key])
    }


def test_each_partition_of_a_batch_gets_its_own_materialisation_and_check(any_instance: DagsterInstance) -> None:
    assert run_batch(any_instance, tags={BATCH_ID_TAG: "batch-1"}).success

    assert any_instance.get_materialized_partitions(GOOD) == {"a~1", "c~3"}
    assert any_instance.get_materialized_partitions(REFUSED) == {"b~2"}
    assert checks_by_partition(any_instance) == {"a~1": "SUCCEEDED", "b~2": "FAILED", "c~3": "SUCCEEDED"}


def test_a_check_is_tied_to_the_materialisation_it_is_about(any_instance: DagsterInstance) -> None:
    run_batch(any_instance, tags={BATCH_ID_TAG: "batch-1"})
    infos = any_instance.event_log_storage.get_asset_check_partition_info([dg.AssetCheckKey(GOOD, "holds")])
    tied = {info.partition_key: info.latest_target_materialization_storage_id for info in infos}
    stored = any_instance.fetch_materializations(dg.AssetRecordsFilter(GOOD, asset_partitions=["a~1"]), limit=1)
    assert tied["a~1"] == stored.records[0].storage_id
    assert tied["b~2"] is None


def test_a_selected_partition_goes_through_the_same_code(any_instance: DagsterInstance) -> None:
    assert run_batch(any_instance, partition_key="c~3").success
    assert any_instance.get_materialized_partitions(GOOD) == {"c~3"}


def test_a_run_repeated_shows_the_same_state(any_instance: DagsterInstance) -> None:
    for _ in range(2):
        run_batch(any_instance, tags={BATCH_ID_TAG: "batch-1"})
    assert any_instance.get_materialized_partitions(GOOD) == {"a~1", "c~3"}
    assert checks_by_partition(any_instance) == {"a~1": "SUCCEEDED", "b~2": "FAILED", "c~3": "SUCCEEDED"}


def test_a_run_without_partitions_or_batch_says_what_to_do(any_instance: DagsterInstance) -> None:
    with pytest.raises(dg.Failure, match="Select partitions"):
        run_batch(any_instance)


def test_one_key_is_an_ordinary_partitioned_run_and_many_are_a_tagged_batch() -> None:
    assert run_request("files", "b1", ["a~1"]).partition_key == "a~1"
    many = run_request("files", "b1", KEYS)
    assert many.partition_key is None
    assert many.tags == {"ingest/batch": "files", "ingest/batch_id": "b1", "ingest/batch_size": "3"}


@given(count=st.integers(0, 5_000), largest=st.integers(1, 1_500), parallel=st.integers(1, 4))
def test_a_split_loses_nothing_and_keeps_to_its_bounds(count: int, largest: int, parallel: int) -> None:
    keys = [str(number) for number in range(count)]
    batches = split_evenly(keys, largest, parallel, worth_splitting=200)
    assert [key for batch in batches for key in batch] == keys
    assert all(0 < len(batch) <= largest for batch in batches)


def test_a_burst_is_shared_between_parallel_runs_and_a_few_files_are_not() -> None:
    assert [len(batch) for batch in split_evenly(["k"] * 600, 1_000, 2, 200)] == [300, 300]
    assert [len(batch) for batch in split_evenly(["k"] * 150, 1_000, 2, 200)] == [150]
    assert [len(batch) for batch in split_evenly(["k"] * 2_000, 1_000, 2, 200)] == [1_000, 1_000]
