"""The page "Your first dataset": its commands, run in a folder like that of its reader, do what it shows."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import dagster as dg
import pytest

from ingest_project.cli import main as cli
from ingest_project.core.settings import load_settings
from ingest_project.devstack.dagster_processes import query_webserver
from ingest_project.devstack.supervisor import running_stack
from ingest_project_tests.cli.running import wait_until_nothing_is_left
from ingest_project_tests.file_ingest.datasets.system import DatasetSystem
from ingest_project_tests.services.dagster import instance_on
from ingest_project_tests.test_documentation import ROOT, blocks

PAGE = ROOT / "docs" / "first-dataset.md"
MOST_COMMANDS = 9
DEV = "ingest dev"
ASSETS = ("raw_files", "validated", "quarantined_files", "metrics")


def commands() -> list[str]:
    """The commands of the page, in order."""
    return [line for block in blocks(PAGE, "sh") for line in block.splitlines()]


def run(command: str) -> str:
    """Run one command as a shell does; what it prints."""
    done = subprocess.run(  # noqa: S602 - the commands of our own page
        command, shell=True, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return shown(done.stdout)


def run_here(command: str) -> str:
    """Run one command in this process, where it imports nothing again; what only a shell can do, in a shell."""
    if not command.startswith("ingest ") or ">" in command or "psql" in command:
        return run(command)
    printed = io.StringIO()
    with mock.patch.dict(os.environ), contextlib.redirect_stdout(printed):
        assert cli.run(shlex.split(command)[1:]) == 0, command
    return shown(printed.getvalue())


def shown(output: str) -> str:
    return "\n".join(line.rstrip() for line in output.strip().splitlines())


@contextmanager
def running(command: str) -> Iterator[None]:
    """The command of another terminal, from when it is ready until Ctrl-C."""
    program, argument = shlex.split(command)
    arguments = [str(Path(sys.executable).with_name(program)), argument]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            said: list[str] = []
            for line in process.stdout:
                said.append(line)
                if "Ctrl-C stops" in line:
                    break
            else:
                pytest.fail("".join(said))
            yield
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who has the example's file, and in which commands run."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "first_dataset").symlink_to(ROOT / "examples" / "first_dataset")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("INGEST_WEBSERVER_PORT", "0")
    monkeypatch.setenv("INGEST_MIN_FILE_AGE_SECONDS", "0")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def declare(folder: Path, run: Callable[[str], str] = run) -> list[str]:
    """Do what the page says before and with `ingest dev`; the commands that come after it."""
    make_folder, guess, trial, roots, dev, *after = commands()
    assert len(commands()) <= MOST_COMMANDS
    assert dev == DEV
    proposed, edited = blocks(PAGE, "yaml")
    shown_trial, _ = blocks(PAGE, "text")
    run(make_folder)
    run(guess)
    declaration = folder / "ingest_project_defs" / "garden" / "defs.yaml"
    assert declaration.read_text("utf-8") == proposed
    declaration.write_text(edited, "utf-8")
    assert run(trial) == shown_trial.strip()
    run(roots)
    return after


def require_rows(said: Mapping[str, str]) -> str:
    """The rows are those of the page; what is said of the file."""
    _, shown_rows = blocks(PAGE, "text")
    assert [text for command, text in said.items() if "psql" in command] == [shown_rows.strip()]
    return next(text for command, text in said.items() if "files show" in command)


def test_the_commands_of_the_page_take_a_file_to_its_rows_and_its_partition(
    newcomer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, status, *after = declare(newcomer, run_here)
    assert status.startswith("ingest status --wait-until-idle")
    # Sensors and runs are in this process, and are waited for here: starting Dagster's takes a processor half a minute.
    with running_stack(load_settings(), lambda _step, _state: None, dagster=False, monitor=False) as stack:
        run_here(send)
        url = stack.settings.dagster.postgres_url.get_secret_value()
        with instance_on(url, newcomer / ".ingest", monkeypatch) as instance:
            system = DatasetSystem(stack.settings, instance, newcomer)
            system.run_due()
            system.close()
            page = require_rows({command: run_here(command) for command in after})
            key = page.splitlines()[0].strip()
            assert key.startswith("garden_2026-01-15.csv~")
            for asset in ASSETS:
                assert instance.get_materialized_partitions(dg.AssetKey(["garden", asset])) == {key}


@pytest.mark.long
def test_the_page_takes_a_file_to_its_rows_and_its_partition(newcomer: Path) -> None:
    after = declare(newcomer)
    with running(DEV):
        require_partition(require_rows({command: run(command) for command in after}))
    assert wait_until_nothing_is_left(newcomer / ".ingest") == {}


def require_partition(page: str) -> None:
    """The address that `ingest files show` prints leads to the file's partition, which the UI shows as materialized."""
    key = page.splitlines()[0].strip()
    address = urlsplit(next(line.split()[-1] for line in page.splitlines() if line.startswith("Dagster UI")))
    assert parse_qs(address.query)["partition"] == [key]
    assert key.startswith("garden_2026-01-15.csv~")
    path = address.path.removeprefix("/assets/").split("/")
    query = f"""{{ assetNodeOrError(assetKey: {{path: {json.dumps(path)}}}) {{ ... on AssetNode {{
        assetMaterializations(partitions: [{json.dumps(key)}]) {{ partition }} }} }} }}"""
    node = query_webserver(address.port or 0, query)["assetNodeOrError"]
    assert node["assetMaterializations"] == [{"partition": key}]


def test_the_sample_on_the_page_is_the_file() -> None:
    sample, *_ = blocks(PAGE, "")
    assert sample == (ROOT / "examples" / "first_dataset" / "garden_2026-01-15.csv").read_text("utf-8")
