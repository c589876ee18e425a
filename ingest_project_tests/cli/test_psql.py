"""psql on the databases of the settings, without a password on any screen or in any list of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ingest_project.cli.dev import connection
from ingest_project.cli.main import run
from ingest_project_tests.services.postgres import PostgresServer


def psql(tmp_path: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "DATABASE_URL": url, "INGEST_CONFIG_DIR": str(tmp_path), "INGEST_STATE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "ingest_project.cli.main", "psql", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_psql_opens_the_warehouse_and_passes_arguments_on(postgres_server: PostgresServer, tmp_path: Path) -> None:
    url = postgres_server.url().replace("postgres@", "postgres:hunter2@").replace("postgresql:", "postgresql+psycopg2:")
    named = ("-At", "-c", "SELECT current_setting('application_name')", "-c", "SELECT nonsense")
    done = psql(tmp_path, f"{url}?application_name=a+name", *named)
    assert (done.returncode, done.stdout) == (1, "a name\n"), done.stderr
    assert "nonsense" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql+psycopg2://u:hunter2@/w?host=/s/pg", "postgresql://u@/w?host=/s/pg"),
        ("postgresql://u@h:5433/w?password=hunter2&sslmode=require", "postgresql://u@h:5433/w?sslmode=require"),
        ("postgresql://u:hunter2@h/w?options=-c+a%3Db%2Bc", "postgresql://u@h/w?options=-c%20a%3Db%2Bc"),
    ],
)
def test_the_address_that_psql_is_given_has_no_password(url: str, address: str) -> None:
    assert connection(url, "DATABASE_URL") == (address.replace("host=/s/pg", "host=%2Fs%2Fpg"), "hunter2")


@pytest.mark.parametrize(("url", "said"), [("", "is not set. Start"), ("sqlite:////tmp/a.db", "an address of sqlite")])
def test_without_postgresql_there_is_nothing_to_open(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("INGEST_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("INGEST_STATE_DIR", str(tmp_path))
    assert run(["psql"]) == 2
    assert said in capsys.readouterr().err
