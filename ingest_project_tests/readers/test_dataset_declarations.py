"""Which dataset a file belongs to, and which types it takes."""

from __future__ import annotations

import json

import pytest

from ingest_project.contracts.files import SENSOR_READINGS, decode_file_event
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.readers.datasets import Declarations


@pytest.mark.parametrize("name", ["notes.txt", ".csv", "a.csv.gz", "a.zip", "a.json", "a.parquet", "a"])
def test_the_shipped_dataset_takes_csv_and_workbooks_only(name: str) -> None:
    event = decode_file_event(json.dumps({"file_path": f"/in/{name}", "file_name": name}).encode())
    with pytest.raises(UnreadableMessageError, match="Only csv, xlsx, xls are ingested"):
        Declarations().require_accepted(event)


def test_a_file_that_belongs_to_no_declared_dataset_has_sensor_readings() -> None:
    event = decode_file_event(b'{"file_path": "/in/a.csv", "file_name": "a.csv"}')
    assert Declarations().require_accepted(event).name == SENSOR_READINGS


def test_a_dataset_that_is_not_declared_is_refused_with_the_nearest_name() -> None:
    event = decode_file_event(
        b'{"file_path": "/in/a.csv", "file_name": "a.csv", "metadata": {"dataset": "sensor_reading"}}'
    )
    with pytest.raises(UnreadableMessageError, match="did you mean sensor_readings"):
        Declarations().require_accepted(event)
