"""The command line as a person or a script uses it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ingest_project.cli.dev import without_password
from ingest_project.cli.main import COMMANDS, build_app, run
from ingest_project_tests.cli.running import END_SECONDS, wait_until_nothing_is_left


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INGEST_CONFIG_DIR", str(tmp_path))


def test_config_shows_each_setting_with_where_it_came_from_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@db.example/w")
    monkeypatch.setenv("INGEST_SCHEMA_REGISTRY_URL", "http://me:hunter2@registry.example:9000")
    monkeypatch.setenv("INGEST_WEBSERVER_URL", "https://hunter2@ui.example")
    monkeypatch.setenv("INGEST_ATTACHMENTS_URL", "abfss://files@account.dfs.core.windows.net/in")
    (tmp_path / ".env").write_text("KAFKA_BROKERS=[::1]:9092\n")
    assert run(["config"]) == 0
    table = capsys.readouterr().out
    assert "hunter2" not in table
    assert "[::1]:9092" in table
    assert run(["config", "--json"]) == 0
    records = {record["setting"]: record for record in json.loads(capsys.readouterr().out)}
    assert records["warehouse.database_url"]["value"] == "********"
    assert records["warehouse.database_url"]["origin"] == "environment"
    assert records["schema_registry.url"]["value"] == "http://***@registry.example:9000"
    assert records["attachments.store_url"]["value"] == "abfss://files@account.dfs.core.windows.net/in"
    assert records["kafka.bootstrap_servers"]["origin"] == ".env"
    assert records["kafka.group_id"]["origin"] == "default"
    assert records["file_ingest.batch_files"]["value"] == 1000


DAGSTER, TABLES = {"dagster"}, {"polars", "pyarrow", "numpy"}
SERVICES = DAGSTER | {"sqlalchemy", "confluent_kafka"}
WORK = DAGSTER | {"pandera", "pint", "azure", "boto3", "opentelemetry", "openlineage", "apprise", "authlib"}
LIGHT = ["config", "files", "quarantine", "send", "sources", "profile", "dataset", "baselines"]


@pytest.mark.parametrize(
    "steps",
    [
        [("run(['config'])", SERVICES), ("run(['profile', 'list'])", SERVICES | {"pandera"})],
        [
            (f"build_app({LIGHT}) is None", WORK | TABLES),
            (f"build_app({[*COMMANDS]}) is None", WORK),
            ("run(['dataset', 'guess', 'orders.csv'])", DAGSTER),
        ],
    ],
    ids=["run", "shown"],
)
def test_commands_do_not_import_what_only_others_need(steps: list[tuple[str, set[str]]], tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("Order ID;Price;At\nA-1;1,50;2026-01-15T10:00:00Z\n", encoding="utf-8")
    # In one process, which has imported ever more.
    lines = [
        f"assert not ({step}); found = {names} & {{*sys.modules}}; assert not found, found" for step, names in steps
    ]
    program = "\n".join(["import sys; from ingest_project.cli.main import build_app, run", *lines])
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_every_command_is_registered_under_its_name_and_loads_alone() -> None:
    assert set(typer.main.get_command(build_app()).commands) == set(COMMANDS)  # type: ignore[attr-defined]
    for name in COMMANDS:
        assert list(typer.main.get_command(build_app([name])).commands) == [name]  # type: ignore[attr-defined]


def test_a_misspelt_setting_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INGEST_STATE_DIRR", "x")
    assert run(["config"]) == 2
    assert (
        capsys.readouterr().err == "Unknown setting INGEST_STATE_DIRR in environment. Did you mean INGEST_STATE_DIR?\n"
    )


def test_a_printed_failure_is_safe_for_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INGEST_\x1b[2J", "x")
    assert run(["config"]) == 2
    assert r"INGEST_\x1b[2J" in capsys.readouterr().err


def test_wrong_usage_prints_text_safe_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["no\x1b[2Jpe"], ["config", "--no\x9bpe"], ["files", "list", "--limit", "\u202e1"]):
        assert run(arguments) == 2
        said = capsys.readouterr().err
        assert not {"\x1b", "\x9b", "\u202e"} & set(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "No such command 'nope'. See: ingest --help"),
        (["files", "lst"], "No such command 'lst'. Did you mean 'list'? See: ingest files --help"),
        (["config", "--jsn"], "No such option: --jsn (Possible options: --json). See: ingest config --help"),
        (["show", "file"], "Missing argument 'KEY'. See: ingest show --help"),
        (
            ["quarantine", "release"],
            "Invalid value: Name the files, or say --all. See: ingest quarantine release --help",
        ),
        (["find", "caf\udce9.csv"], r"Invalid value: 'caf\udce9.csv' is not UTF-8."),
        (
            ["send", "polling-job", "--dummy", "--timeout", "-1"],
            (
                "Invalid value for '--timeout': Input should be greater than or equal to 0. "
                "See: ingest send polling-job --help"
            ),
        ),
    ],
)
def test_wrong_usage_is_one_plain_line_with_what_to_look_at_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run(arguments) == 2
    assert capsys.readouterr() == ("", f"{said}\n")


def test_a_number_out_of_range_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command of every group: a database refuses what is beyond its own integers."""
    for command, option in numbers_of(typer.main.get_command(build_app())):
        assert run([*command, option, "9" * 23]) == 2, (command, option)
        assert capsys.readouterr().err.startswith(f"Invalid value for '{option}': Input should be less"), command


def numbers_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:  # noqa: ANN401 - of Typer's own Click
    """Yield each command with each of its options that are whole numbers."""
    for name, below in getattr(command, "commands", {}).items():
        yield from numbers_of(below, (*path, name))
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.type_descriptor.annotation in {int, int | None}:
            yield path, parameter.opts[0]


def test_dev_says_where_things_are_and_ctrl_c_ends_it_with_130(tmp_path: Path) -> None:
    state_dir = tmp_path / ".ingest"
    with subprocess.Popen(
        [sys.executable, "-m", "ingest_project.cli.main", "dev", "--services-only"],
        env={"INGEST_STATE_DIR": str(state_dir), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            seen = ""
            while "Ctrl-C" not in seen:
                line = process.stdout.readline()
                assert line, process.stderr.read()
                seen += line
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=END_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors == ""
    assert "database is ready" in seen
    assert "127.0.0.1:" in seen
    assert ":***@" in seen
    assert "everything has stopped" in rest
    assert "database system is shut down" in (state_dir / "logs" / "postgres.log").read_text()
    assert wait_until_nothing_is_left(state_dir) == {}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
        ("postgresql+psycopg2://u:p%40x@/d?host=/s", "postgresql+psycopg2://u:***@/d?host=/s"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
        ("", ""),
    ],
)
def test_a_shown_address_has_no_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
