"""A folder, settings and services of one test alone, and the command line on top of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer

from ingest_project.cli import main
from ingest_project.cli.main import build_app, run
from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources


@dataclass(frozen=True)
class Result:
    """What a command left."""

    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the command prints
        """Its one JSON object."""
        return json.loads(self.out)


Ingest = Callable[..., Result]
app_of, command_of = cache(build_app), cache(typer.main.get_command)


@pytest.fixture
def ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ingest:
    """Run `ingest` with these arguments, in a folder without any settings of its own."""
    monkeypatch.chdir(tmp_path)
    # A terminal's width, which tests that run side by side are given: output is to be as in a pipe.
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("INGEST_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("INGEST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KAFKA_REQUEST_TIMEOUT_SECONDS", "10")
    # Typer builds the same commands anew each time, which takes as long as running most of them.
    monkeypatch.setattr(main, "build_app", lambda commands: app_of(tuple(commands)))
    monkeypatch.setattr(typer.main, "get_command", command_of)

    def run_it(*arguments: str) -> Result:
        capsys.readouterr()
        # What a command sets for what it starts is not there for the next one.
        with mock.patch.dict(os.environ):
            exit_code = run(arguments)
        return Result(exit_code, *capsys.readouterr())

    return run_it


@pytest.fixture
def services(ingest: Ingest, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SystemResources]:
    """Work queues and stores on a database of this test alone, which the commands use as well."""
    del ingest
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    services = SystemResources(load_settings().settings)
    yield services
    services.warehouse.close()
    services.engine.dispose()
