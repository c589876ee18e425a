"""`ingest sources` lists the configured sources and tries one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from ingest_project.cli.send import config_of
from ingest_project_tests.cli.conftest import Ingest


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    monkeypatch.setenv("INGEST_LOCAL_ROOTS", str(folder))
    sources = {
        "inbox": {"source_config": {"source_type": "local", "path": str(folder)}, "every_seconds": 30},
        "gone": {"source_config": {"source_type": "local", "path": f"{folder}/gone"}},
    }
    monkeypatch.setenv("INGEST_SOURCES", json.dumps(sources))
    return folder


def test_a_source_is_tried_and_what_it_shows_is_said(ingest: Ingest, inbox: Path) -> None:
    (inbox / "a.csv").write_text("x,y\n")
    (inbox / "b.zip").write_text("x")
    result = ingest("sources", "test", "inbox")
    assert result.exit_code == 0
    assert "1 file to ingest" in result.out
    assert "The first file can be read." in result.out
    assert "not 'zip'" in result.out
    seen = ingest("sources", "test", "inbox", "--json").json
    assert (seen["files"], seen["read_bytes"], seen["complete"]) == (1, 4, True)
    assert "30 s" in ingest("sources", "list").out


def test_a_source_that_shows_nothing_says_which_pattern_would_find_something(ingest: Ingest, inbox: Path) -> None:
    (inbox / "hall").mkdir()
    (inbox / "hall/a.csv").write_text("x,y\n")
    assert "'**/*' takes it" in ingest("sources", "test", "inbox").out.replace("\n", " ")


@pytest.mark.usefixtures("inbox")
def test_a_source_that_cannot_be_used_fails_with_the_reason(ingest: Ingest) -> None:
    result = ingest("sources", "test", "gone")
    assert result.exit_code == 1
    assert "does not exist" in result.err
    assert "Trying again cannot help" in result.err
    assert ingest("sources", "test", "other").exit_code == 2


@pytest.mark.parametrize(
    ("kind", "address", "config"),
    [
        ("s3", "s3://bucket/in", {"path": "s3://bucket/in"}),
        ("http", "https://host/in/", {"path": "https://host/in/"}),
        ("ftp", "ftp://host/a%20b", {"host": "host", "path": "/a b"}),
        ("sftp", "sftp://me@host:2222/in", {"host": "host", "port": "2222", "username": "me", "path": "/in"}),
    ],
)
def test_an_address_says_where_to_look(kind: str, address: str, config: dict[str, str]) -> None:
    assert config_of(kind, address) == {"source_type": kind, **config}


@pytest.mark.parametrize("address", ["sftp://me:pw@host/in", "ftp://host/in", "sftp://host:x/", "sftp:///in"])
def test_an_address_with_a_password_or_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        config_of("sftp", address)
    assert "pw" not in str(refused.value)
