"""The bulk path stores what Dagster's own path stores."""

import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.definitions.dependency import NodeHandle
from dagster._core.errors import DagsterInvalidMetadata
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.plan.handle import StepHandle
from dagster._core.storage.event_log import AssetKeyTable, SqlEventLogStorage, SqlEventLogStorageTable
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._serdes import deserialize_value, serialize_value
from dagster_postgres.event_log import PostgresEventLogStorage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest_project.platform.dagster import asset_events
from ingest_project.platform.dagster import instance as dagster_parts
from ingest_project.platform.dagster.asset_events import CheckResult, PartitionEvents, WholeAssetResult, report
from ingest_project.platform.dagster.event_text import event_texts
from ingest_project.platform.dagster.instance import BulkEventLogStorage
from ingest_project_tests.fuzz import examples

TOLD_AT = 1_760_000_000.123456
ASSET = dg.AssetKey(["50 %", "good"])
CHECK = dg.AssetCheckKey(ASSET, "holds %(metadata)s")
TARGET = AssetCheckEvaluationTargetMaterializationData(storage_id=2**40, run_id="run-1", timestamp=TOLD_AT)
METADATA: dict[str, Any] = {
    "int": 2**70,
    "negative": -1,
    "float": 0.1,
    "whole float": 3.0,
    "large float": 1e300,
    "infinite": float("-inf"),
    "not a number": float("nan"),
    "true": True,
    "text": 'Größe "50 %" \\ %(partition)s 😀\n',
    "half a character": "\ud83d",
    "empty": "",
    "none": None,
    "json": {"rules": {"value_": 1}, "list": [1.5, None, "ä"]},
    "list": [1, 2],
    "markdown": dg.MetadataValue.md("# head"),
    "path": dg.MetadataValue.path("/data/x.csv"),
    "url": dg.MetadataValue.url("https://example.org/?a=%20"),
    "time": dg.MetadataValue.timestamp(datetime(2025, 1, 1, tzinfo=UTC)),
    "table": dg.MetadataValue.table([dg.TableRecord({"line_number": 7, "raw_text": "a;b", "reasons": "value_nan"})]),
    "given as value": dg.MetadataValue.int(4),
    "label \u2028 %s": 1,
}


def entry(kind: DagsterEventType, data: StepMaterializationData | AssetCheckEvaluation) -> EventLogEntry:
    node = NodeHandle("files", None)
    event = DagsterEvent(
        event_type_value=kind.value,
        job_name="file batch %",
        step_handle=StepHandle(node),
        node_handle=node,
        step_kind_value="COMPUTE",
        event_specific_data=data,
    )
    return EventLogEntry(  # type: ignore[no-untyped-call]  # Dagster's own class has no annotations here
        error_info=None,
        level=10,
        user_message="",
        run_id="run-2",
        timestamp=TOLD_AT,
        step_key="files",
        job_name="file batch %",
        dagster_event=event,
    )


def materialization(partition: str, metadata: dict[str, Any]) -> EventLogEntry:
    event_data = dg.AssetMaterialization(ASSET, partition=partition, metadata=metadata)
    return entry(DagsterEventType.ASSET_MATERIALIZATION, StepMaterializationData(event_data, []))


def evaluation(
    partition: str, result: CheckResult, target: AssetCheckEvaluationTargetMaterializationData | None
) -> EventLogEntry:
    event_data = AssetCheckEvaluation(
        asset_key=result.asset,
        check_name=result.check,
        passed=result.passed,
        metadata=result.metadata,
        target_materialization_data=target,
        severity=result.severity,
        description=result.description,
        partition=partition,
    )
    return entry(DagsterEventType.ASSET_CHECK_EVALUATION, event_data)


CHECKED, PLAIN = dg.AssetKey(["50 %", "good"]), dg.AssetKey("plain")
ODD = ["ä %s~2", "%(metadata)s", "it's"]
SEVERITIES = itertools.cycle(dg.AssetCheckSeverity)


def reports(partitions: Sequence[str]) -> list[PartitionEvents]:
    """Give each partition some of the metadata, and checks that hold and that do not."""
    each = [{}, METADATA, *({label: value} for label, value in METADATA.items())]
    events = []
    for partition, metadata in zip(partitions, itertools.cycle(each), strict=False):
        failed = CheckResult(CHECKED, "fails", False, next(SEVERITIES), 'Three "rows" of 50 % are bad.', metadata)
        passed = CheckResult(CHECKED, CHECK.name, passed=True, description="", metadata={})
        of_nothing = CheckResult(PLAIN, "has no target", passed=False)
        events.append(PartitionEvents(partition, {CHECKED: metadata}, [failed, passed, of_nothing]))
    return [*events, PartitionEvents("plain", {PLAIN: {"rows": 1}, CHECKED: {}})]


def reporting_run(instance: dg.DagsterInstance, events: Sequence[PartitionEvents]) -> str:
    """Report from inside a run, as assets do; returns its id."""

    @dg.op
    def reporting(context: dg.OpExecutionContext) -> None:
        report(context, events)

    @dg.job
    def reporting_job() -> None:
        reporting()

    return str(reporting_job.execute_in_process(instance=instance).run_id)


def rows_of(instance: dg.DagsterInstance, run_id: str) -> dict[str, list[tuple[object, ...]]]:
    """Return what the tables of the event log hold of a run, but for ids and times."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    kinds = ["ASSET_MATERIALIZATION", "ASSET_CHECK_EVALUATION"]
    log, checks, assets = SqlEventLogStorageTable, AssetCheckExecutionsTable, AssetKeyTable
    tables = {
        "event_logs": sa.select(log).where(log.c.run_id == run_id, log.c.dagster_event_type.in_(kinds)),
        "asset_check_executions": sa.select(checks).where(checks.c.run_id == run_id),
        "asset_keys": sa.select(assets),
    }
    with storage.run_connection(run_id) as connection:
        return {name: sorted(map(_without_ids, connection.execute(wanted)), key=str) for name, wanted in tables.items()}


def _without_ids(row: sa.Row[Any]) -> tuple[object, ...]:
    columns = row._asdict()  # ids and times differ, whether they are there does not
    ids = [name for name in columns if name.endswith(("id", "timestamp"))]
    columns |= {name: columns[name] is not None for name in ids}
    for name in {"event", "evaluation_event", "last_materialization"} & columns.keys():
        columns[name] = json.dumps(_neutral(json.loads(columns[name])), sort_keys=True)
    return tuple(columns.items())


def _neutral(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, list):
        return [_neutral(one) for one in value]
    if isinstance(value, dict):
        own = {"run_id", "storage_id", "timestamp"}
        return {name: type(one).__name__ if name in own else _neutral(one) for name, one in value.items()}
    return value


def test_the_bulk_path_stores_what_dagsters_own_path_stores(
    dagster_instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = reports([*ODD, *(f"p{number}" for number in range(len(METADATA)))])
    bulk = rows_of(dagster_instance, reporting_run(dagster_instance, events))
    monkeypatch.setattr(asset_events, "BulkEventLogStorage", NoStorage)
    one_by_one = rows_of(dagster_instance, reporting_run(dagster_instance, events))
    monkeypatch.setattr(BulkEventLogStorage, "store_event", PostgresEventLogStorage.store_event)
    by_dagster = rows_of(dagster_instance, reporting_run(dagster_instance, events))
    assert bulk == one_by_one == by_dagster
    assert len(bulk["event_logs"]) == 4 * len(events) - 2
    assert len(bulk["asset_check_executions"]) == 3 * (len(events) - 1)
    assert len(bulk["asset_keys"]) == 2


class NoStorage:
    """No storage is one of these, so that each event is stored alone."""


def stored(instance: dg.DagsterInstance, kind: str) -> list[str]:
    """Return the events of a kind as they are stored, the oldest first."""
    storage = instance.event_log_storage
    assert isinstance(storage, BulkEventLogStorage)
    table = SqlEventLogStorageTable.c
    with storage.run_connection(None) as connection:
        wanted = sa.select(table.event).where(table.dagster_event_type == kind).order_by(table.id)
        return list(connection.execute(wanted).scalars())


def bulk_storage(instance: dg.DagsterInstance) -> BulkEventLogStorage:
    storage = instance.event_log_storage
    assert isinstance(storage, BulkEventLogStorage)
    return storage


@pytest.mark.parametrize(
    ("passed", "severity", "description", "target"),
    [
        (True, dg.AssetCheckSeverity.ERROR, None, TARGET),
        (False, dg.AssetCheckSeverity.WARN, 'Three "rows" of 50 % are in quarantine.', TARGET),
        (False, dg.AssetCheckSeverity.ERROR, "", None),
    ],
)
def test_a_bulk_check_result_equals_one_written_by_dagster(
    dagster_instance: dg.DagsterInstance,
    passed: bool,  # noqa: FBT001 - a parameter of the test
    severity: dg.AssetCheckSeverity,
    description: str | None,
    target: AssetCheckEvaluationTargetMaterializationData | None,
) -> None:
    each = [{}, METADATA, *({label: value} for label, value in METADATA.items())]
    events = [
        evaluation(f"b~{number}", CheckResult(ASSET, CHECK.name, passed, severity, description, metadata), target)
        for number, metadata in enumerate(each)
    ]
    bulk_storage(dagster_instance).store_check_results(events)
    for text, event in zip(stored(dagster_instance, "ASSET_CHECK_EVALUATION"), events, strict=True):
        assert in_order_of_labels(text) == serialize_value(event)


HOURS = dg.HourlyPartitionsDefinition(start_date=datetime(2026, 1, 1, tzinfo=UTC))


@dg.asset(partitions_def=HOURS)
def hourly() -> None:
    """Have a partition for each hour."""


@dg.asset_check(asset=hourly)
def plain_holds() -> dg.AssetCheckResult:
    """Return a result of Dagster's own kind."""
    return dg.AssetCheckResult(passed=False, metadata={"n": 1})


@dg.asset_check(asset=hourly)
def whole_holds() -> dg.AssetCheckResult:
    """Return the same of ours."""
    return WholeAssetResult(passed=False, metadata={"n": 1})


@pytest.mark.parametrize("materialized", [True, False])
def test_a_check_of_a_whole_asset_is_of_its_newest_materialisation_and_lists_no_partition(
    dagster_instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, *, materialized: bool
) -> None:
    if materialized:
        for hour in ("2026-01-15-11:00", "2026-01-15-10:00"):
            dg.materialize([hourly], instance=dagster_instance, partition_key=hour)
    assets = [hourly, plain_holds, whole_holds]

    def evaluated(check: dg.AssetChecksDefinition) -> AssetCheckEvaluation:
        selection = dg.AssetSelection.checks(check)
        result = dg.materialize(assets, instance=dagster_instance, selection=selection)
        return result.get_asset_check_evaluations()[0]

    plain = evaluated(plain_holds)
    monkeypatch.setattr(dg.TimeWindowPartitionsDefinition, "get_partition_keys", None)
    whole = evaluated(whole_holds)
    assert (whole.target_materialization_data, whole.metadata) == (plain.target_materialization_data, plain.metadata)
    assert (whole.target_materialization_data is not None) is materialized


def in_order_of_labels(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)


@pytest.mark.parametrize("sort_keys", [True, False])
def test_events_that_share_some_parts_have_the_texts_of_dagster(*, sort_keys: bool) -> None:
    marks = ['"metadata_entries": []', '"metadata": {}', '"storage_id": -1', "null", ""]
    later = AssetCheckEvaluationTargetMaterializationData(storage_id=7, run_id="run-2", timestamp=TOLD_AT)
    columns = [dg.TableColumn("a", "int", description="with a text"), dg.TableColumn("b", "int", tags={"t": "1"})]
    rows = [dg.TableRecord({"a": 1, "b": 2.5})]
    tables = {
        "plain": dg.MetadataValue.table(rows, dg.TableSchema([dg.TableColumn("a", "int"), dg.TableColumn("b")])),
        "described": dg.MetadataValue.table(rows, dg.TableSchema(columns)),
        "unique": dg.MetadataValue.table(
            rows, dg.TableSchema([dg.TableColumn("a", constraints=dg.TableColumnConstraints(unique=True))])
        ),
        "constrained": dg.MetadataValue.table(
            rows, dg.TableSchema([dg.TableColumn("a")], constraints=dg.TableConstraints(["sorted"]))
        ),
    }
    events = [
        materialization("a", METADATA),
        materialization("b", tables),
        *(materialization(mark, {mark: mark}) for mark in marks),
        *(
            evaluation(mark, CheckResult(ASSET, mark, passed, severity, description, METADATA | tables), target)
            for mark, passed, severity, description, target in zip(
                marks,
                itertools.cycle([True, False]),
                SEVERITIES,
                [*marks[:-1], None],
                [TARGET, later, None, TARGET, later],
                strict=False,
            )
        ),
        materialization("b", {})._replace(run_id="run-3"),
        materialization("c", {"a": 1})._replace(run_id="run-3"),
    ]
    expected = [serialize_value(event, sort_keys=sort_keys) for event in events]
    assert list(event_texts(events, sort_keys=sort_keys)) == expected


def test_the_metadata_of_a_check_is_shown_in_the_order_given(dagster_instance: dg.DagsterInstance) -> None:
    result = CheckResult(ASSET, CHECK.name, passed=False, metadata={"reason": "Two rows.", "columns": 0})
    bulk_storage(dagster_instance).store_check_results([evaluation("a~1", result, None)])
    (text,) = stored(dagster_instance, "ASSET_CHECK_EVALUATION")
    shown = deserialize_value(text, EventLogEntry).asset_check_evaluation
    assert shown is not None
    assert list(shown.metadata) == ["reason", "columns"]


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
# PostgreSQL holds neither NUL nor half a character.
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(partition=names, metadata=st.dictionaries(st.text(), values | st.lists(values), max_size=5))
def test_any_name_and_value_is_read_back_as_it_was_reported(
    dagster_instance: dg.DagsterInstance, partition: str, metadata: dict[str, Any]
) -> None:
    storage = bulk_storage(dagster_instance)
    events = {
        "ASSET_MATERIALIZATION": materialization(partition, metadata),
        "ASSET_CHECK_EVALUATION": evaluation(
            partition, CheckResult(ASSET, CHECK.name, passed=True, metadata=metadata), None
        ),
    }
    (storage_id,) = storage.store_materializations([events["ASSET_MATERIALIZATION"]])
    storage.store_check_results([events["ASSET_CHECK_EVALUATION"]])
    (newest,) = dagster_instance.fetch_materializations(ASSET, limit=1).records
    assert (newest.storage_id, newest.partition_key) == (storage_id, partition)
    for kind, event in events.items():
        assert deserialize_value(stored(dagster_instance, kind)[-1], EventLogEntry) == event


def test_a_value_dagster_cannot_show_is_refused_as_dagster_refuses_it(dagster_instance: dg.DagsterInstance) -> None:
    with pytest.raises(DagsterInvalidMetadata, match='"value" to a known type'):
        reporting_run(dagster_instance, [PartitionEvents("a", {CHECKED: {"value": object()}})])


def test_more_events_than_one_statement_takes_are_tied_to_their_own_partitions(
    dagster_instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dagster_parts, "ROWS_PER_STATEMENT", 4)
    partitions = [str(number) for number in reversed(range(2 * 4 + 1))]
    result = CheckResult(CHECKED, "holds", passed=True)
    reporting_run(dagster_instance, [PartitionEvents(partition, {CHECKED: {}}, [result]) for partition in partitions])
    records = dagster_instance.fetch_materializations(CHECKED, limit=100).records
    made = {record.partition_key: record.storage_id for record in records}
    assert list(made) == list(reversed(partitions)), "the newest first"
    infos = dagster_instance.event_log_storage.get_asset_check_partition_info([result.key])
    assert {info.partition_key: info.latest_target_materialization_storage_id for info in infos} == made


def test_the_later_of_two_results_for_a_partition_counts(dagster_instance: dg.DagsterInstance) -> None:
    results = [CheckResult(ASSET, CHECK.name, passed=passed) for passed in (False, True)]
    bulk_storage(dagster_instance).store_check_results([evaluation("a~1", result, TARGET) for result in results])
    (info,) = dagster_instance.event_log_storage.get_asset_check_partition_info([CHECK])
    assert (info.partition_key, info.latest_execution_status.value) == ("a~1", "SUCCEEDED")
