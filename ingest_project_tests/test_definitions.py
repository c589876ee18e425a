"""The definitions: one connected graph that shows sources and targets of all data, without secrets."""

from __future__ import annotations

import functools
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster_dg_cli.cli import cli

from ingest_project.core.settings import load_settings
from ingest_project.definitions import PARTS, STORED, definitions
from ingest_project.readers import declaration as datasets
from ingest_project.streams import declaration as streams

ROOT = Path(__file__).parents[1]
SECRET = "c4n4ry-secret"  # noqa: S105 - looked for, never used
SOURCES = f"""{{
  "halls": {{"source_config": {{"source_type": "sftp", "host": "files.example", "path": "/halls",
                               "password": "{SECRET}"}}}},
  "weather service": {{"source_config": {{"source_type": "http",
                                         "path": "https://user:{SECRET}@data.example/list?sig={SECRET}"}}}}
}}"""


@functools.cache
def graph(**variables: str) -> dg.AssetGraph:
    """The asset graph of a host with these variables."""
    return definitions(load_settings(variables, Path("/nonexistent")).settings).resolve_asset_graph()


def test_every_asset_is_connected_with_every_other() -> None:
    found = graph()
    neighbours = {key: {*found.get(key).parent_keys, *found.get(key).child_keys} for key in found.get_all_asset_keys()}
    seen: set[dg.AssetKey] = set()
    waiting = [next(iter(neighbours))]
    while waiting:
        key = waiting.pop()
        if key not in seen:
            seen.add(key)
            waiting += neighbours[key]
    assert seen == set(neighbours)


def test_the_graph_leads_from_topic_to_asset_to_topic_to_table() -> None:
    found = graph()
    way = [
        "kafka/polling_queue",
        "discovered_files",
        "kafka/file_event_queue",
        "raw_files",
        "validated_sensor_data",
        "aggregated_metrics",
        "device_metrics",
    ]
    keys = [dg.AssetKey.from_user_string(name) for name in way]
    assert [upper in found.get(lower).parent_keys for upper, lower in pairwise(keys)] == [True] * 6


@pytest.mark.parametrize(("source", "asset"), [("eventhouse", "eventhouse"), ("eventhub", "event_hubs")])
def test_the_source_of_events_is_in_the_graph(source: str, asset: str) -> None:
    found = graph(EVENT_SOURCE=source, INGEST_EVENTHOUSE_ADDRESS="https://c.kusto.fabric.microsoft.com")
    assert dg.AssetKey(asset) in found.get(dg.AssetKey(["kafka", "events_raw"])).parent_keys


def test_configured_sources_are_in_the_graph_with_their_address_and_without_their_secrets() -> None:
    found = graph(INGEST_SOURCES=SOURCES, KAFKA_BOOTSTRAP_SERVERS="broker:9092", KAFKA_SASL_PASSWORD=SECRET)
    node = found.get(dg.AssetKey(["source", "halls"]))
    assert {"host": "files.example", "path": "/halls"}.items() <= node.metadata.items()
    assert "sftp" in node.kinds
    assert node.key in found.get(dg.AssetKey("file_sources")).parent_keys
    assert dg.AssetKey(["source", "weather_service"]) in found.get(dg.AssetKey("file_sources")).parent_keys
    shown = repr([found.get(key).metadata for key in found.get_all_asset_keys()])
    assert SECRET not in shown
    assert "kafka://broker:9092/polling-queue" in shown


def test_every_asset_has_a_description_a_group_a_capability_a_kind_and_an_owner() -> None:
    found = graph(INGEST_ASSET_OWNERS="team:data, data@example.com")
    nodes = [found.get(key) for key in found.get_all_asset_keys()]
    assert [node.key for node in nodes if not (node.description and node.group_name and node.kinds)] == []
    assert [node.key for node in nodes if node.tags["ingest/capability"] != node.group_name] == []
    assert {tuple(node.owners) for node in nodes} == {("team:data", "data@example.com")}


def test_every_asset_but_those_of_what_went_wrong_says_how_old_it_may_become() -> None:
    found = graph()
    without = {key for key in found.materializable_asset_keys if found.get(key).freshness_policy is None}
    assert without == {dg.AssetKey("quarantined_files"), dg.AssetKey("unidentified_messages")}


def test_every_table_shows_its_name_and_its_columns() -> None:
    found = graph()
    for key in STORED:
        metadata = found.get(key).metadata
        assert metadata["dagster/table_name"]
        assert metadata["dagster/column_schema"].columns


def test_a_declaration_cannot_take_an_existing_name() -> None:
    repository = definitions(load_settings({}, Path("/nonexistent")).settings).get_repository_def()
    keys = [key.path for key in repository.asset_graph.get_all_asset_keys()]
    made = {"_batch": repository.job_names, "_checks": repository.job_names, "_maintenance": repository.job_names}
    made["_sensor"] = [sensor.name for sensor in repository.sensor_defs]
    stems = {end: {name.removesuffix(end) for name in names if name.endswith(end)} for end, names in made.items()}
    assert stems["_batch"] <= datasets.TAKEN_NAMES
    names = {path[-1] for path in keys if len(path) == 1 or path[0] == "kafka"}.union(PARTS, *stems.values())
    assert {name for name in names if not name.endswith(streams.DEAD_LETTERS)} <= streams.TAKEN_NAMES


def test_a_disabled_capability_is_not_loaded_and_neither_are_its_sensors_and_schedules() -> None:
    settings = load_settings({"INGEST_DISABLED_CAPABILITIES": "crm, attachments"}, Path("/nonexistent")).settings
    repository = definitions(settings).get_repository_def()
    sensors = {sensor.name for sensor in repository.sensor_defs}
    assert "file_event_queue_sensor" in sensors
    assert not {name for name in sensors if "sales" in name or "attachment" in name or "download" in name}
    assert not {schedule.name for schedule in repository.schedule_defs if schedule.name.startswith("attachment")}
    assert dg.AssetKey("opportunities") not in repository.asset_graph.materializable_asset_keys


def test_every_capability_can_be_disabled_alone() -> None:
    for name in PARTS:
        assert graph(INGEST_DISABLED_CAPABILITIES=name).get_all_asset_keys()


def test_a_run_without_partitions_of_whatever_is_partitioned_says_what_to_do(tmp_path: Path) -> None:
    declared = {"INGEST_DECLARATIONS": str(ROOT / "examples" / "datasets" / "defs")}
    database = {"DATABASE_URL": f"sqlite:///{tmp_path}/never_opened"}
    loaded = definitions(load_settings(declared | database, Path("/nonexistent")).settings)
    nodes = loaded.resolve_asset_graph()
    assets = [key for key in nodes.materializable_asset_keys if nodes.get(key).is_partitioned]
    checks = [key for key in nodes.asset_check_keys if nodes.get(key).partitions_def]
    assert {dg.AssetKey("payments"), dg.AssetKey(["weather", "validated"])} < {*assets}
    assert dg.AssetCheckKey(dg.AssetKey(["weather", "validated"]), "contract_holds") in checks
    selections: list[dict[str, Any]] = [
        *({"asset_selection": nodes.get(key).execution_set_asset_keys} for key in assets),
        *({"asset_check_selection": {key}} for key in checks),
    ]
    job = loaded.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        for selection in selections:
            run = job.get_subset(**selection).execute_in_process(instance=instance, raise_on_error=False)
            failed = [event.step_failure_data for event in run.all_events if event.is_step_failure]
            assert [one.user_failure_data is None for one in failed] == [False], (selection, failed)
            assert "Select partitions where you launch it" in str(failed[0].user_failure_data), selection


def test_dg_lists_what_the_project_folder_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # In this process, which has loaded the definitions: that takes a new one 8 s.
    done = CliRunner().invoke(cli, ["list", "defs", "--json"])
    assert done.exit_code == 0, done.output
    assert "validated_sensor_data" in done.output


@pytest.mark.long
@pytest.mark.parametrize("command", [["check", "defs"], ["list", "defs", "--json"]], ids=lambda words: words[0])
def test_dg_works_in_the_project_folder(command: list[str]) -> None:
    dg_program = Path(sys.executable).with_name("dg")
    done = subprocess.run([dg_program, *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    assert command[0] == "check" or "validated_sensor_data" in done.stdout
