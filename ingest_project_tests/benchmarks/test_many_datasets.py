"""Fifty declared datasets load, and cost nothing while nothing arrives: the same two sensors serve them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.many_datasets import DATASETS, declare
from ingest_project.core.settings import load_settings
from ingest_project.definitions import definitions


def test_fifty_declared_datasets_load_and_add_no_sensor(tmp_path: Path) -> None:
    settings = load_settings({"INGEST_STATE_DIR": str(tmp_path / "state")}, tmp_path).settings
    without = definitions(settings).get_repository_def()
    declare(tmp_path, DATASETS)
    repository = definitions(settings).get_repository_def()
    assert {f"kind_{number}_batch" for number in range(DATASETS)} == {*repository.job_names} - {*without.job_names}
    assert [sensor.name for sensor in repository.sensor_defs] == [sensor.name for sensor in without.sensor_defs]
    assert [one.name for one in repository.schedule_defs] == [one.name for one in without.schedule_defs]
