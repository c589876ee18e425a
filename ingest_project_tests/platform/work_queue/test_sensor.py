"""Batch runs over many partitions, their events, and the cutting of batches."""

from collections.abc import Iterator

import dagster as dg
import pytest
import sqlalchemy
from dagster import DagsterInstance
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.platform.dagster.asset_events import (
    CheckResult,
    PartitionEvents,
    keep_connections_open,
    partitions_of_run,
    report,
)
from ingest_project.platform.work_queue.sensor import BATCH_ID_TAG, batch_of_run, keys_of_run, run_request, split_evenly

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
        PartitionEvents(key, {REFUSED: {"reason": "bad"}}, [CheckResult(GOOD, "holds", passed=False)])
        if key.startswith("b")
        else PartitionEvents(key, {GOOD: {"rows": 3}}, [CheckResult(GOOD, "holds", passed=True)])
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


def test_an_existing_partition_is_kept_and_new_ones_are_added(any_instance: DagsterInstance) -> None:
    any_instance.add_dynamic_partitions("things", ["a", "100%s", "it's"])
    any_instance.add_dynamic_partitions("others", ["a"])
    any_instance.add_dynamic_partitions("things", ["b", "a", "{c}"])
    any_instance.add_dynamic_partitions("things", [])
    assert any_instance.get_dynamic_partitions("things") == ["a", "100%s", "it's", "b", "{c}"]
    assert any_instance.get_dynamic_partitions("others") == ["a"]


def test_each_partition_of_a_batch_gets_its_own_materialisation_and_check(any_instance: DagsterInstance) -> None:
    assert run_batch(any_instance, tags={BATCH_ID_TAG: "batch-1"}).success

    assert any_instance.get_materialized_partitions(GOOD) == {"a~1", "c~3"}
    assert any_instance.get_materialized_partitions(REFUSED) == {"b~2"}
    assert checks_by_partition(any_instance) == {"a~1": "SUCCEEDED", "b~2": "FAILED", "c~3": "SUCCEEDED"}


def test_a_run_that_a_person_launches_without_partitions_says_so(any_instance: DagsterInstance) -> None:
    @dg.op
    def of_a_batch(context: dg.OpExecutionContext) -> None:
        batch_of_run(context)

    @dg.asset_check(asset=GOOD, name="of_partitions", partitions_def=PARTITIONS)
    def of_partitions(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=bool(partitions_of_run(context)))

    @dg.job(executor_def=dg.in_process_executor)
    def without_assets() -> None:
        of_a_batch()

    selected = dg.AssetSelection.checks(dg.AssetCheckKey(GOOD, "of_partitions"))
    check = dg.define_asset_job("check", selection=selected, executor_def=dg.in_process_executor)
    loaded = dg.Definitions(assets=[things], asset_checks=[of_partitions], jobs=[check, without_assets])
    for job in ("without_assets", "check"):
        run = loaded.resolve_job_def(job).execute_in_process(instance=any_instance, raise_on_error=False)
        (failed,) = [event for event in run.all_events if event.is_step_failure]
        error = failed.step_failure_data.error
        assert error is not None
        assert "Select partitions" in (error.cause or error).message


def test_a_check_is_tied_to_the_materialisation_it_is_about(any_instance: DagsterInstance) -> None:
    run_batch(any_instance, tags={BATCH_ID_TAG: "batch-1"})
    infos = any_instance.event_log_storage.get_asset_check_partition_info([dg.AssetCheckKey(GOOD, "holds")])
    tied = {info.partition_key: info.latest_target_materialization_storage_id for info in infos}
    stored = any_instance.fetch_materializations(dg.AssetRecordsFilter(GOOD, asset_partitions=["a~1"]), limit=1)
    assert tied["a~1"] == stored.records[0].storage_id
    assert tied["b~2"] is None


def test_metadata_of_a_partition_is_stored_with_its_materialisation(any_instance: DagsterInstance) -> None:
    run_batch(any_instance, tags={BATCH_ID_TAG: "batch-1"})
    for key in ("a~1", "c~3"):
        wanted = dg.AssetRecordsFilter(GOOD, asset_partitions=[key])
        (stored,) = any_instance.fetch_materializations(wanted, limit=10).records
        assert stored.asset_materialization == dg.AssetMaterialization(GOOD, partition=key, metadata={"rows": 3})
    newest = any_instance.get_latest_materialization_event(GOOD)
    assert newest == stored.event_log_entry, "what Dagster keeps with the asset is the event it keeps in the log"


def test_both_storages_hold_the_same_rows_for_the_same_batch(
    dagster_instance: DagsterInstance, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with DagsterInstance.local_temp(str(tmp_path_factory.mktemp("sqlite"))) as one_by_one:
        held = [event_rows(instance) for instance in (dagster_instance, one_by_one)]
    assert held[0] == held[1]
    assert len(held[0]) == len(KEYS) * 2


def event_rows(instance: DagsterInstance) -> list[tuple[object, ...]]:
    """The table's columns for each event of a batch, but for ids and times."""
    run = run_batch(instance, tags={BATCH_ID_TAG: "batch-1"})
    kinds = [dg.DagsterEventType.ASSET_MATERIALIZATION.value, dg.DagsterEventType.ASSET_CHECK_EVALUATION.value]
    table = SqlEventLogStorageTable.c
    wanted = (
        sqlalchemy.select(table.dagster_event_type, table.step_key, table.asset_key, table.partition)
        .where(table.run_id == run.run_id, table.dagster_event_type.in_(kinds))
        .order_by(table.dagster_event_type, table.id)
    )
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.run_connection(run.run_id) as connection:
        return [tuple(row) for row in connection.execute(wanted)]


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
    assert many.tags == {
        "ingest/batch": "files",
        "ingest/batch_id": "b1",
        "ingest/batch_size": "3",
        "dagster/max_retries": "0",
    }


@given(count=st.integers(0, 5_000), largest=st.integers(1, 1_500), parallel=st.integers(1, 4))
def test_a_split_loses_nothing_and_keeps_to_its_bounds(count: int, largest: int, parallel: int) -> None:
    keys = [str(number) for number in range(count)]
    batches = split_evenly(keys, largest, parallel)
    assert [key for batch in batches for key in batch] == keys
    assert all(0 < len(batch) <= largest for batch in batches)


def test_a_burst_is_shared_between_parallel_runs_and_a_few_files_are_not() -> None:
    assert [len(batch) for batch in split_evenly(["k"] * 600, 1_000, 2)] == [300, 300]
    assert [len(batch) for batch in split_evenly(["k"] * 150, 1_000, 2)] == [150]
    assert [len(batch) for batch in split_evenly(["k"] * 2_000, 1_000, 2)] == [1_000, 1_000]
