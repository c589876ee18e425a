"""The page "Your first dataset": its commands, run in a folder like that of its reader, do what it shows."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from ingest_project.devstack.dagster_processes import query_webserver
from ingest_project_tests.cli.running import wait_until_nothing_is_left
from ingest_project_tests.test_documentation import ROOT, blocks

PAGE = ROOT / "docs" / "first-dataset.md"
MOST_COMMANDS = 9
DEV = "ingest dev"


def commands() -> list[str]:
    """The commands of the page, in order."""
    return [line for block in blocks(PAGE, "sh") for line in block.splitlines()]


def run(command: str, folder: Path, variables: Mapping[str, str]) -> str:
    """Run one command as a shell does; what it prints."""
    done = subprocess.run(  # noqa: S602 - the commands of our own page
        command, shell=True, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


@contextmanager
def running(command: str, folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """The command of another terminal, from when it is ready until Ctrl-C."""
    program, argument = shlex.split(command)
    arguments = [str(Path(sys.executable).with_name(program)), argument]
    environ = {**os.environ, **variables}
    with subprocess.Popen(
        arguments, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
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


def test_the_page_takes_a_file_to_its_rows_and_its_partition(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "first_dataset").symlink_to(ROOT / "examples" / "first_dataset")
    variables = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "INGEST_WEBSERVER_PORT": "0",
        "INGEST_MIN_FILE_AGE_SECONDS": "0",
        "COLUMNS": "200",
    }
    make_folder, guess, trial, roots, dev, *after = commands()
    assert len(commands()) <= MOST_COMMANDS
    assert dev == DEV
    proposed, edited = blocks(PAGE, "yaml")
    shown_trial, shown_rows = blocks(PAGE, "text")

    run(make_folder, tmp_path, variables)
    run(guess, tmp_path, variables)
    declaration = tmp_path / "ingest_project_defs" / "garden" / "defs.yaml"
    assert declaration.read_text("utf-8") == proposed
    declaration.write_text(edited, "utf-8")
    assert run(trial, tmp_path, variables) == shown_trial.strip()
    run(roots, tmp_path, variables)
    with running(dev, tmp_path, variables):
        said = {command: run(command, tmp_path, variables) for command in after}
        assert [text for command, text in said.items() if "psql" in command] == [shown_rows.strip()]
        page = next(text for command, text in said.items() if "files show" in command)
        require_partition(page)
    assert wait_until_nothing_is_left(tmp_path / ".ingest") == {}


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
    shown, *_ = blocks(PAGE, "")
    assert shown == (ROOT / "examples" / "first_dataset" / "garden_2026-01-15.csv").read_text("utf-8")
