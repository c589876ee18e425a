"""docs/migrating.md is correct about the settings and topics of the five services."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ingest_project.cli.main import run
from ingest_project.core.settings import IGNORED_NAMES, TopicSettings, load_settings
from ingest_project_tests.services.loaded_definitions import IGNORED, LoadedDefinitions

PAGE = (Path(__file__).parents[1] / "docs" / "migrating.md").read_text(encoding="utf-8")
VALUES = {
    "AUTO_OFFSET_RESET": "latest", "KAFKA_AUTO_OFFSET_RESET": "Earliest", "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "MAX_RETRIES": "0", "RETRY_DELAY": "2", "EVENT_SOURCE": "eventhub", "LOG_LEVEL": "warn", "LOG_FORMAT": "JSON",
    "DATABASE_URL": "postgresql://user:secret@host/crm",
}  # fmt: skip


def section(title: str) -> list[list[str]]:
    """The rows of the table in a section of the page."""
    part = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return rows[2:]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`*]+)`", cell)


SETTINGS = [(name, row[-1]) for row in section("Settings") for name in named(row[0])]


@pytest.mark.parametrize(("name", "here"), SETTINGS)
def test_each_setting_is_honoured_or_ignored_as_the_guide_says(name: str, here: str, tmp_path: Path) -> None:
    value = VALUES.get(name, "a-value")
    for environ, dotenv in (({name: value}, ""), ({}, f"{name}={value}\n")):
        (tmp_path / ".env").write_text(dotenv)
        loaded = load_settings(environ, tmp_path)
        set_now = [setting.path for setting in loaded.each() if str(setting.origin) in {"environment", ".env"}]
        if here.startswith("honoured"):
            assert (len(set_now), loaded.ignored) == (1, ())
        else:
            assert here.startswith("ignored")
            assert (set_now, loaded.ignored) == ([], (name,))


def test_the_guide_names_every_setting_that_is_ignored_and_every_topic() -> None:
    ignored = {name for name, here in SETTINGS if here.startswith("ignored")}
    assert ignored == set(IGNORED_NAMES)
    topics = {name for row in section("Topics") for name in named(" ".join(row))}
    for topic in TopicSettings().model_dump().values():
        assert topic in topics or re.fullmatch(r"downloads\.retry\..*|.*\.dlq", topic), topic


def test_ignored_settings_are_named_once_without_their_values(
    loaded_definitions: LoadedDefinitions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = [json.loads(line) for line in loaded_definitions.log.splitlines() if "settings_ignored" in line]
    assert [(line["level"], line["names"]) for line in lines] == [("info", [*IGNORED])]
    assert IGNORED["DB_PASSWORD"] not in loaded_definitions.log

    for name, value in IGNORED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("INGEST_CONFIG_DIR", str(tmp_path))
    assert run(["config", "--json"]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)
    assert "KAFKA_TOPIC, DB_PASSWORD" in " ".join(printed.err.split())
    assert IGNORED["DB_PASSWORD"] not in printed.err + printed.out


def test_values_of_the_old_services_keep_their_meaning(tmp_path: Path) -> None:
    settings = load_settings(VALUES | {"AUTO_OFFSET_RESET": "LATEST"}, tmp_path).settings
    assert (settings.logging.level, settings.logging.format) == ("WARNING", "json")
    assert (settings.retries.max_attempts, settings.kafka.auto_offset_reset) == (1, "latest")
