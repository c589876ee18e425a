"""A declared stream as Dagster's own tools see it, and as the code location loads it."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from dagster.components.core.component_tree import ComponentTreeException
from dagster.components.testing import create_defs_folder_sandbox

import ingest_project
from ingest_project.core.settings import Settings
from ingest_project.definitions import definitions
from ingest_project.operations.components import TopicStream
from ingest_project_tests.streams.declared.system import DELTA, KEYED, declare

# Of Dagster's own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]

NAMES = {"delta": {"orders_batch", "orders_checks", "orders_maintenance"}, "sql": {"orders_batch", "orders_checks"}}


@pytest.mark.parametrize("kind", NAMES)
def test_dagster_loads_the_component_from_its_folder(kind: str) -> None:
    attributes = {"topic": "orders", **(DELTA if kind == "delta" else KEYED)}
    contents = {"type": "ingest_project.TopicStream", "attributes": attributes}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(TopicStream, defs_path=Path("orders"), defs_yaml_contents=contents)
        with sandbox.load_component_and_build_defs(path) as (component, found):
            assert isinstance(component, TopicStream)
            assert component.declaration.name == "orders"
            assert {job.name for job in found.jobs or ()} == NAMES[kind]
            assert [sensor.name for sensor in found.sensors or ()] == ["orders_sensor"]


def test_dg_scaffolds_a_stream_that_loads() -> None:
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(TopicStream, defs_path=Path("invoices"))
        with sandbox.load_component_and_build_defs(path) as (component, _):
            assert isinstance(component, TopicStream)
            assert (component.declaration.name, component.declaration.topic) == ("invoices", "invoices")


def test_a_mistake_in_a_component_is_reported_with_its_line() -> None:
    contents = {"type": "ingest_project.TopicStream", "attributes": {"topics": "orders"}}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(TopicStream, defs_path=Path("orders"), defs_yaml_contents=contents)
        with pytest.raises(ComponentTreeException) as raised, sandbox.load_component_and_build_defs(path):
            pass
    assert "attributes.topics at" in str(raised.value.__cause__)
    assert "defs.yaml:2" in str(raised.value.__cause__)


def test_the_code_location_loads_what_is_declared_and_leaves_out_what_is_broken(tmp_path: Path) -> None:
    declare(tmp_path, {"topic": "orders", **DELTA})
    broken = tmp_path / "defs" / "broken" / "defs.yaml"
    broken.parent.mkdir()
    broken.write_text("type: ingest_project.TopicStream\nattributes: {topics: x}\n")
    settings = Settings(declarations=tmp_path / "defs", state_dir=tmp_path)
    loaded = definitions(settings)
    graph = loaded.resolve_asset_graph()
    keys = {dg.AssetKey("orders"), dg.AssetKey(["kafka", "orders"]), dg.AssetKey(["kafka", "orders_dlq"])}
    assert keys <= set(graph.get_all_asset_keys())
    assert dg.AssetKey("broken") not in graph.get_all_asset_keys()
    assert loaded.resolve_job_def("orders_batch").name == "orders_batch"


def test_the_package_has_its_components_and_no_other_name() -> None:
    assert ingest_project.TopicStream is TopicStream
    with pytest.raises(AttributeError, match="TopicStreams"):
        ingest_project.TopicStreams  # noqa: B018 - what is tested
