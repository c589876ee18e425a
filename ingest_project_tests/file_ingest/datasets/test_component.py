"""`ingest_project.FileDataset` as Dagster's `dg` uses it, and in a Dagster project of a user's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster.components.core.component_tree import ComponentTree
from dagster.components.core.package_entry import get_package_objects_in_module
from dagster.components.scaffold.scaffold import NoParams
from jsonschema import Draft202012Validator

import ingest_project
from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.settings import load_settings
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.sensors import Announcement, FileEvents
from ingest_project.operations import components
from ingest_project.readers.datasets import Declarations, read_declaration
from ingest_project.readers.declaration import DatasetDeclaration
from ingest_project_tests.file_ingest.datasets.system import WEATHER


def test_the_registry_finds_it_and_importing_the_package_brings_no_dagster() -> None:
    assert ("FileDataset", components.FileDataset) in [*get_package_objects_in_module(ingest_project)]
    code = "import sys, ingest_project; assert 'dagster' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_scaffolder_writes_a_valid_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "orders"
    folder.mkdir()
    request = dg.ScaffoldRequest("ingest_project.FileDataset", folder, "yaml", tmp_path, NoParams())
    components.FileDatasetScaffolder().scaffold(request)
    declaration = read_declaration(folder / "defs.yaml")
    assert declaration is not None
    assert (declaration.name, declaration.table, declaration.metrics_table) == ("orders", "orders", "orders_metrics")


def test_it_takes_the_name_that_is_given_and_refuses_contradictions() -> None:
    context = ComponentTree.for_test().load_context
    attributes = DatasetDeclaration.model_validate({"name": "weather", **WEATHER})
    found = components.FileDataset.load(attributes, context)
    assert found.declaration == attributes
    with pytest.raises(ValueError, match="there is no column nope"):
        DatasetDeclaration.model_validate({**WEATHER, "measures": {"columns": ["nope"]}})


def test_in_another_project_it_brings_all_that_a_dataset_needs() -> None:
    declaration = DatasetDeclaration.model_validate({"name": "weather", **WEATHER})
    other = DatasetDeclaration.model_validate({"name": "other", **WEATHER})
    context = ComponentTree.for_test().load_context
    definitions = dg.Definitions.merge(
        *(components.FileDataset(one).build_defs(context) for one in (declaration, other))
    )
    repository = definitions.get_repository_def()
    assert {"weather_batch", "other_batch"} <= {job.name for job in repository.get_all_jobs()}
    assert len(repository.sensor_defs) == 4
    assert {"weather", "other"} <= {*components._services().datasets}


def test_in_another_project_the_component_loads_and_refuses_only_its_own_files(tmp_path: Path) -> None:
    folder = tmp_path / "weather"
    folder.mkdir()
    (folder / "a.csv").touch()
    services = FileIngestResources(load_settings({"INGEST_LOCAL_ROOTS": str(folder)}, tmp_path).settings)
    services.datasets = Declarations([DatasetDeclaration.model_validate({"name": "weather", **WEATHER})])

    def decode(own: str, message: object) -> Announcement:
        raw = message if isinstance(message, bytes) else json.dumps(message).encode()
        return FileEvents(services, {own}).decode(raw)

    def event(path: Path, **metadata: str) -> dict[str, object]:
        config = {"source_type": "local", "path": str(path.parent)}
        return {"file_path": str(path), "file_name": path.name, "source_config": config, "metadata": metadata}

    (found,) = decode("weather", event(folder / "a.csv")).files
    assert found.dataset == "weather"
    with pytest.raises(UnreadableMessageError, match="of the dataset weather, not 'kv'"):
        decode("weather", event(folder / "a.kv"))
    deleted = {"Records": [{"eventName": "ObjectRemoved:Delete", "s3": {}}, {"eventName": "ObjectCreated:Put"}]}
    for foreign in (event(tmp_path / "b.kv"), event(folder / "a.csv", dataset="orders"), b"{", deleted):
        assert decode("weather", foreign) == Announcement([])
    for refused in (event(tmp_path / "b.kv"), event(folder / "a.csv", dataset="orders"), b"{"):
        with pytest.raises(UnreadableMessageError):
            decode(SENSOR_READINGS, refused)


def test_the_json_schema_for_dg_lists_the_known_names() -> None:
    schema = Draft202012Validator(DatasetDeclaration.model_json_schema())
    assert not [*schema.iter_errors(yaml.safe_load(components.DATASET.format(name="orders"))["attributes"])]
    wrong = {"reader": {"delimter": ";"}, "columns": [{"name": "id", "type": "txt", "alowed": [1]}], "target": {"x": 1}}
    found = {(*map(str, error.absolute_path),): error.message for error in schema.iter_errors(wrong)}
    assert "'delimiter'" in found["reader",]
    assert "'allowed'" in found["columns", "0"]
    assert "|number|" in found["columns", "0", "type"]
    assert "'partition_by'" in found["target",]
