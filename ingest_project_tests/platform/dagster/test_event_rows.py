"""Events written by pattern are, letter by letter, those that Dagster writes itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.definitions.dependency import NodeHandle
from dagster._core.errors import DagsterInvalidMetadata
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.plan.handle import StepHandle
from dagster._serdes import deserialize_value, serialize_value
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.platform.dagster.asset_events import CheckResult
from ingest_project.platform.dagster.event_rows import CheckRows, MaterializationRows

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
    told = dg.AssetMaterialization(ASSET, partition=partition, metadata=metadata)
    return entry(DagsterEventType.ASSET_MATERIALIZATION, StepMaterializationData(told, []))


def evaluation(
    partition: str, result: CheckResult, target: AssetCheckEvaluationTargetMaterializationData | None
) -> EventLogEntry:
    told = AssetCheckEvaluation(
        asset_key=result.asset,
        check_name=result.check,
        passed=result.passed,
        metadata=result.metadata,
        target_materialization_data=target,
        severity=result.severity,
        description=result.description,
        partition=partition,
    )
    return entry(DagsterEventType.ASSET_CHECK_EVALUATION, told)


def assert_same(text: str, ordinary: EventLogEntry) -> None:
    assert text == serialize_value(ordinary)
    assert deserialize_value(text, EventLogEntry) == ordinary


def in_order_of_labels(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)


@pytest.mark.parametrize("example", [{}, {"rows": 1}, METADATA])
@pytest.mark.parametrize("metadata", [{}, METADATA, *({label: value} for label, value in METADATA.items())])
def test_a_materialisation_is_what_dagster_would_have_written(
    example: dict[str, Any], metadata: dict[str, Any]
) -> None:
    rows = MaterializationRows(materialization("example~1", example))
    assert_same(rows.row("ä %s~2", metadata).event, materialization("ä %s~2", metadata))


@pytest.mark.parametrize("metadata", [{}, METADATA, *({label: value} for label, value in METADATA.items())])
@pytest.mark.parametrize(
    ("passed", "severity", "description", "target"),
    [
        (True, dg.AssetCheckSeverity.ERROR, None, TARGET),
        (False, dg.AssetCheckSeverity.WARN, 'Three "rows" of 50 % are in quarantine.', TARGET),
        (False, dg.AssetCheckSeverity.ERROR, "", None),
    ],
)
def test_a_check_result_is_what_dagster_would_have_written(
    metadata: dict[str, Any],
    passed: bool,  # noqa: FBT001 - a parameter of the test
    severity: dg.AssetCheckSeverity,
    description: str | None,
    target: AssetCheckEvaluationTargetMaterializationData | None,
) -> None:
    result = CheckResult(ASSET, CHECK.name, passed, severity, description, metadata)
    ordinary = evaluation("b~2", result, target)
    for example in (ordinary, evaluation("a~1", CheckResult(ASSET, CHECK.name, passed=True), None)):
        row = CheckRows(example, CHECK).row("b~2", result, target)
        assert_same(in_order_of_labels(row.event.event), ordinary)
        assert row[1:] == (ASSET.to_string(), CHECK.name, "b~2", passed, target.storage_id if target else None)


def test_the_metadata_of_a_check_is_shown_in_the_order_given() -> None:
    result = CheckResult(ASSET, CHECK.name, passed=False, metadata={"reason": "Two rows.", "columns": 0})
    text = CheckRows(evaluation("a~1", result, None), CHECK).row("a~1", result, None).event.event
    stored = deserialize_value(text, EventLogEntry).asset_check_evaluation
    assert stored is not None
    assert list(stored.metadata) == ["reason", "columns"]


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(partition=st.text(min_size=1), metadata=st.dictionaries(st.text(), values | st.lists(values), max_size=5))
def test_any_name_and_value_is_written_as_dagster_writes_it(partition: str, metadata: dict[str, Any]) -> None:
    rows = MaterializationRows(materialization("example~1", {}))
    assert_same(rows.row(partition, metadata).event, materialization(partition, metadata))


def test_a_number_that_is_none_is_written_as_dagster_writes_it() -> None:
    metadata = {"mean": float("nan")}
    text = MaterializationRows(materialization("a~1", {})).row("a~1", metadata).event
    assert text == serialize_value(materialization("a~1", metadata))


def test_a_value_dagster_cannot_show_is_refused_as_dagster_refuses_it() -> None:
    with pytest.raises(DagsterInvalidMetadata, match='"value" to a known type'):
        MaterializationRows(materialization("a~1", {})).row("a~1", {"value": object()})
