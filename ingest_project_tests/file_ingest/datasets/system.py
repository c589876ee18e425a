"""The product with declared datasets, in one test process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml
from dagster import DagsterInstance, ExecuteInProcessResult

from ingest_project.core.settings import Settings, load_settings
from ingest_project.file_ingest.definitions import definitions_of
from ingest_project.platform.database import reading
from ingest_project.polling.definitions import polling
from ingest_project.readers.datasets import load_declarations
from ingest_project.readers.layout import ReadLimits
from ingest_project_tests.journeys.system import FILE_EVENTS, MOST_ROUNDS, System, environment
from ingest_project_tests.services.kafka import Server

WEATHER: dict[str, Any] = {
    "description": "Hourly observations of weather stations.",
    "columns": [
        {"name": "station", "type": "text", "required": True, "pattern": "[A-Z]{3}"},
        {"name": "observed_at", "type": "timestamp", "required": True},
        {"name": "temperature", "type": "number", "min": -90, "max": 60, "unit": "C"},
        {"name": "rain", "type": "decimal(8,2)", "min": 0},
        {"name": "sunny", "type": "boolean"},
        {"name": "note", "type": "json"},
        {"name": "day", "type": "date"},
    ],
    "measures": {"columns": ["temperature", "rain"], "group_by": ["station"]},
    "paths": ["*/weather/*"],
}
HEADER = "station,observed_at,temperature,rain,sunny,note,day\n"
GOOD = (
    'AAA,2026-01-15T10:00:00Z,1.5,0.20,true,"{""a"": 1}",2026-01-15\n'
    "AAA,2026-01-15T11:00:00Z,2.5,,false,,2026-01-15\n"
    "BBB,2026-01-15T10:00:00Z,,3.05,,,\n"
)
BAD = "bbb,2026-01-15T10:00:00Z,99,-1,,,\n"


class DatasetSystem(System):
    """The product with the datasets that are declared in the settings' folder."""

    def _definitions(self) -> dg.Definitions:
        self.declarations = load_declarations(self.settings)
        return dg.Definitions.merge(polling, definitions_of(self.declarations))

    def run_due(self) -> list[ExecuteInProcessResult]:
        """Tick and run until nothing is due."""
        done: list[ExecuteInProcessResult] = []
        for _ in range(MOST_ROUNDS):
            requests = self.requests(FILE_EVENTS)
            done += [self.execute(str(request.job_name), request) for request in requests]
            if not requests and self.is_idle:
                return done
        raise AssertionError(f"Still busy: {self.services.files.counts_by_state()}")

    def _check_job(self, *names: str) -> dg.JobDefinition:
        keys = [dg.AssetCheckKey(dg.AssetKey(["weather", "validated"]), name) for name in names]
        job = dg.define_asset_job("one_check", selection=dg.AssetSelection.checks(*keys))
        return dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job])).resolve_job_def("one_check")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Query the warehouse."""
        with reading(self.services.engine) as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]


def declare(folder: Path, name: str, **attributes: Any) -> Path:  # noqa: ANN401 - what a declaration holds
    """Write a declaration, as a user would."""
    path = folder / "ingest_project_defs" / name / "defs.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"type": "ingest_project.FileDataset", "attributes": attributes}, sort_keys=False))
    return path


def settings_of(server: Server, database_url: str, folder: Path, **more: str) -> Settings:
    """Return the settings of a system with its own folder."""
    (folder / "in" / "weather").mkdir(parents=True, exist_ok=True)
    return load_settings(environment(server.bootstrap_servers, database_url, folder) | more, folder).settings


def weather_file(system: System, name: str = "a.csv", content: str = HEADER + GOOD) -> Path:
    """Write a file of the dataset `weather`."""
    return system.write(f"weather/{name}", content)


def opened(settings: Settings, instance: DagsterInstance, folder: Path) -> DatasetSystem:
    """Open the system."""
    return DatasetSystem(settings, instance, folder / "in")


def read_in_chunks(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    """Read files in chunks of this size: a file of several is a large one."""
    real = ReadLimits.from_settings
    monkeypatch.setattr(ReadLimits, "from_settings", lambda settings: replace(real(settings), chunk_bytes=chunk_bytes))


def changed_weather(**changes: Any) -> Mapping[str, Any]:  # noqa: ANN401 - as above
    """Return the declaration of weather with changes."""
    return {**WEATHER, **changes}


@pytest.fixture
def weather(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> Iterator[DatasetSystem]:
    """A system with the dataset `weather` in PostgreSQL."""
    declare(tmp_path, "weather", **WEATHER)
    system = opened(settings_of(kafka_server, postgres_url, tmp_path), instance, tmp_path)
    yield system
    system.close()
