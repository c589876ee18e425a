"""A downstream asset reacts to files that a batch stored in bulk, and not to those that were refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from examples.device_days.assets import device_days
from ingest_project.file_ingest.definitions import stored_of
from ingest_project.platform.dagster.catalog import IO_MANAGER_KEY, StoredRowsIOManager
from ingest_project.readers.datasets import SHIPPED
from ingest_project_tests.journeys.system import System, readings


def below(system: System) -> dg.Definitions:
    """The project's file assets, and the example's asset that is made of them."""
    stored = stored_of(SHIPPED, system.services.settings)
    resources = {IO_MANAGER_KEY: StoredRowsIOManager(stored, lambda: system.services)}
    assets = dg.map_asset_specs(
        lambda spec: spec.with_io_manager_key(IO_MANAGER_KEY) if spec.key in stored else spec,
        [asset for asset in system.definitions.assets or () if isinstance(asset, dg.AssetsDefinition)],
    )
    return dg.Definitions(
        assets=[*assets, device_days],
        asset_checks=system.definitions.asset_checks,
        resources={**(system.definitions.resources or {}), **resources},
        executor=dg.in_process_executor,
    )


def requested(system: System, definitions: dg.Definitions, cursor: Any) -> tuple[set[str], Any]:  # noqa: ANN401 - Dagster does not export its type
    """The partitions of the example that the daemon would ask for now."""
    result = dg.evaluate_automation_conditions(
        definitions, system.instance, asset_selection=dg.AssetSelection.assets(device_days), cursor=cursor
    )
    return {str(key) for key in result.get_requested_partitions(device_days.key)}, result.cursor


def stored_days(path: Path) -> Sequence[tuple[object, ...]]:
    with sqlite3.connect(path) as database:
        return database.execute("SELECT file_key, day, device_id, readings, mean FROM device_days").fetchall()


def test_a_downstream_asset_reacts_to_stored_files_and_not_to_refused_ones(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVICE_DAYS_DATABASE", str(tmp_path / "days.db"))
    definitions = below(system)
    nothing, cursor = requested(system, definitions, None)
    assert nothing == set()

    good = [system.write(f"good{number}.csv", readings(3, device=f"d{number}")) for number in range(2)]
    partly = system.write("partly.csv", readings(20, device="d9", bad=1))
    refused = system.write("refused.csv", "no,such,columns\n1,2,3\n")
    system.send_files(*good, partly, refused)
    system.drive()
    keys = {name: file.file_key for name, file in system.files().items()}

    asked, cursor = requested(system, definitions, cursor)
    assert asked == {keys["good0.csv"], keys["good1.csv"], keys["partly.csv"]}

    job = definitions.resolve_implicit_global_asset_job_def()
    for key in asked:
        assert job.execute_in_process(
            instance=system.instance, partition_key=key, asset_selection=[device_days.key]
        ).success
    assert min(stored_days(tmp_path / "days.db")) == (keys["good0.csv"], "2026-01-15", "d0", 3, 21.0)
    assert len(stored_days(tmp_path / "days.db")) == 3

    again, _ = requested(system, definitions, cursor)
    assert again == set()
