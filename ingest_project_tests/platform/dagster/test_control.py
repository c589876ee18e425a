"""Operating Dagster: sensors stop and start as by a person's click, backfills are requested once."""

from __future__ import annotations

import dagster as dg
import pytest
from dagster import DagsterInstance
from dagster._core.execution.backfill import BulkActionStatus

from ingest_project.platform.dagster.control import (
    launch_backfill,
    partitions_in_backfills,
    running_sensors,
    start_sensors,
    stop_sensors,
)
from ingest_project.platform.dagster.records import DagsterRecordsUnavailableError
from ingest_project_tests.cli.test_status import save_cursor

KEYS = dg.DynamicPartitionsDefinition(name="things")


@dg.asset(partitions_def=KEYS)
def things() -> None:
    """One thing a partition."""


def test_sensors_stop_and_start_and_keep_their_cursors(dagster_instance: DagsterInstance) -> None:
    with pytest.raises(DagsterRecordsUnavailableError, match="no sensor has ticked yet"):
        stop_sensors(dagster_instance, ["one"])
    for name in ("one", "two", "other"):
        save_cursor(dagster_instance, name, f"cursor of {name}")
    stop_sensors(dagster_instance, ["two"])
    names = ["one", "two", "never ticked"]
    assert running_sensors(dagster_instance, names) == ["never ticked", "one"]
    for _ in range(2):
        stop_sensors(dagster_instance, names)
    assert running_sensors(dagster_instance, [*names, "other"]) == ["other"]
    for _ in range(2):
        start_sensors(dagster_instance, ["one", "never ticked"])
    assert running_sensors(dagster_instance, names) == ["never ticked", "one"]
    (state,) = (one for one in dagster_instance.all_instigator_state() if one.instigator_name == "one")
    assert state.instigator_data.cursor == "cursor of one"  # type: ignore[union-attr]


def test_a_backfill_is_requested_once_and_its_partitions_are_known_until_they_are_done(
    dagster_instance: DagsterInstance,
) -> None:
    definitions = dg.Definitions(assets=[things])
    dagster_instance.add_dynamic_partitions("things", ["a", "b", "c"])
    for _ in range(2):
        launch_backfill(
            dagster_instance,
            "0123abcd",
            definitions,
            {dg.AssetKey("things"): ["a", "c"]},
            title="Again",
            description="because",
            tags={"ingest/action": "0123abcd"},
        )
    (backfill,) = dagster_instance.get_backfills()
    assert (backfill.status, backfill.title, backfill.tags) == (
        BulkActionStatus.REQUESTED,
        "Again",
        {"ingest/action": "0123abcd"},
    )
    assert partitions_in_backfills(dagster_instance, definitions) == {"a", "c"}
    ended = backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS)  # type: ignore[no-untyped-call]
    dagster_instance.update_backfill(ended)
    assert partitions_in_backfills(dagster_instance, definitions) == set()
