"""README and docs are correct: their examples work, and their links have targets."""

import importlib.util
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest_project.attachments.tables import AttachmentState
from ingest_project.core.settings import TopicSettings
from ingest_project.definitions import STORED, defs
from ingest_project.file_ingest.sensor_readings import SensorTypes, ValidationRules, validate
from ingest_project.file_ingest.tables import FileState
from ingest_project.platform.database import migrate, open_engine
from ingest_project.platform.database.sql import metadata
from ingest_project.platform.work_queue.queue import JobState
from ingest_project.readers.casting import cast
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.profiles import load_profiles
from ingest_project.readers.reading import read_chunks
from ingest_project_tests import data_model, message_reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_example_of_a_reader_profile_reads_the_example_of_a_file(tmp_path: Path) -> None:
    page = ROOT / "docs" / "reader-profiles.md"
    file = tmp_path / "hall-3_2026-01.csv"
    file.write_text(blocks(page, "")[0], encoding="utf-8")
    (tmp_path / "logview.yaml").write_text(blocks(page, "yaml")[0], encoding="utf-8")
    profile = load_profiles([tmp_path / "logview.yaml"])["logview"]

    (chunk,) = read_chunks(file, "csv", profile, ReadLimits(), file.name)
    rules = ValidationRules(SensorTypes.load(), datetime(2026, 11, 1, tzinfo=UTC))
    accepted = validate(cast(chunk.rows, profile), rules).accepted

    readings = accepted.select("timestamp", "device_id", "sensor_type", "value", "unit").rows()
    assert sorted(readings) == [
        (datetime(2026, 1, 15, 9, 0, tzinfo=UTC), "hall-3", "humidity", 48.0, "%"),
        (datetime(2026, 1, 15, 9, 0, tzinfo=UTC), "hall-3", "temperature", 21.4, "°C"),
        (datetime(2026, 1, 15, 9, 10, tzinfo=UTC), "hall-3", "temperature", 21.6, "°C"),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text() + (ROOT / "benchmarks" / "targets.mk").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", " ".join(re.findall(r"`([^`]+)`", page.read_text()))))
        assert named <= targets, (page.name, named - targets)


def test_every_setting_that_is_named_exists() -> None:
    known = (ROOT / ".env.example").read_text()
    for page in PAGES:
        for name in set(re.findall(r"\b(?:INGEST|KAFKA)_[A-Z_]*[A-Z]\b(?!_?\*)", page.read_text())):
            assert name in known, (page.name, name)


def is_module(name: str) -> bool:
    """Tell whether a dotted name is a module, or something in one."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        module, _, member = name.rpartition(".")
        return bool(module) and hasattr(importlib.import_module(module), member)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_and_path_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folders = "ingest_project|ingest_project_tests|benchmarks|examples"
    for path in set(re.findall(rf"(?<![\w/.])((?:{folders})/[\w/.-]*\w)", text)):
        assert (ROOT / path).exists(), path
    for name in set(re.findall(r"(?<![\w/])ingest_project(?:_tests)?(?:\.[a-z]\w*)+", text)):
        assert is_module(name), name


def test_the_tree_in_the_architecture_has_every_folder() -> None:
    (tree,) = [
        block for block in blocks(ROOT / "docs" / "architecture.md", "text") if block.startswith("ingest_project/")
    ]
    named = set(re.findall(r"([a-z_]+)/", tree))
    for folder in (ROOT / "ingest_project", ROOT / "ingest_project" / "platform"):
        found = {path.name for path in folder.iterdir() if (path / "__init__.py").exists()}
        assert found <= named, found - named


def test_every_page_is_linked_from_the_readme_or_the_architecture() -> None:
    entrances = [ROOT / "README.md", ROOT / "docs" / "architecture.md"]
    linked = {
        (p.parent / t).resolve() for p in entrances for t in re.findall(r"\]\(([^):#]+\.md)", p.read_text("utf-8"))
    }
    assert set(PAGES) - set(entrances) <= linked, set(PAGES) - set(entrances) - linked


def test_the_data_model_is_that_of_the_code() -> None:
    assert set(data_model.TABLES) == set(metadata.tables)
    assert (ROOT / "docs" / "data-model.md").read_text("utf-8") == data_model.page(), "make data-model"


def test_the_pages_of_shipped_assets_describe_every_column() -> None:
    undescribed = [
        f"{key.to_user_string()}.{column.name}"
        for key, stored in STORED.items()
        for column in stored.metadata()["dagster/column_schema"].columns
        if not column.description
    ]
    assert undescribed == []


def test_the_data_model_describes_no_column_that_is_gone() -> None:
    for name, described in data_model.TABLES.items():
        assert set(described.columns) <= set(metadata.tables[name].columns.keys()), name
    schemas = data_model.delta_schemas()
    assert set(schemas) == set(data_model.DELTA_TABLES)
    for name, described in data_model.DELTA_TABLES.items():
        assert set(described.columns) <= set(schemas[name].names), name


def test_the_data_model_shows_every_state() -> None:
    diagrams = blocks(ROOT / "docs" / "data-model.md", "mermaid")
    for diagram, states in zip(diagrams, (FileState, JobState, AttachmentState), strict=True):
        shown = {*re.findall(r"([a-z]+) -->", diagram), *re.findall(r"--> ([a-z]+)", diagram)}
        assert shown == {state.value for state in states}


def test_every_select_of_the_data_model_runs(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/warehouse.db")
    migrate(engine)
    relational = [described.select for described in data_model.TABLES.values()]
    view = re.search(r"```sql\n(.*)\n", data_model.VIEW)
    assert view is not None
    with engine.connect() as connection:
        for select in (*relational, view[1]):
            connection.execute(sa.text(select)).all()
    engine.dispose()


def test_the_page_of_messages_is_that_of_the_code() -> None:
    assert (ROOT / "docs" / "messages.md").read_text("utf-8") == message_reference.page(), "make messages"


@pytest.mark.parametrize("message", message_reference.MESSAGES, ids=lambda message: message.name)
def test_every_example_of_a_message_is_valid(message: message_reference.Message) -> None:
    assert message.decoder(json.dumps(message.example).encode())
    if message.schema:
        fields = message.schema.get("$defs", {}).get(message.name, message.schema)["properties"]
        assert set(message.example) <= set(fields)


def test_the_page_of_messages_has_every_topic_and_names_what_exists() -> None:
    listed = {route.setting for route in message_reference.ROUTES}
    dead = {route.dead_letters for route in message_reference.ROUTES} - {""}
    assert listed | dead == set(TopicSettings.model_fields)
    sensors = {sensor.name: {target.job_name for target in sensor.targets} for sensor in defs.sensors or ()}
    assets = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    for route in message_reference.ROUTES:
        if route.reader:
            assert sensors[route.reader] == {route.job}, route
            assert set(route.asset.split(", ")) <= assets, route
