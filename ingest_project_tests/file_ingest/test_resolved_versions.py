"""A version that an event does not name is resolved, and a silent server does not delay the others for long."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest_project.contracts.files import FileEvent
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.sensors import Announced, with_versions
from ingest_project.sources.registry import SourceContext, open_source

LONG_SECONDS = 120.0


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.fixture
def announced(tmp_path: Path) -> Callable[..., Announced]:
    """An event of a file in some source, as it comes without a version."""
    stored = {"username": "u", "password": "p", "hosts": ["127.0.0.1"], "plain_http": True}
    made = Settings.model_validate(
        {
            "polling": {"local_roots": [str(tmp_path)], "source_timeout_seconds": LONG_SECONDS},
            "credentials": {"store": stored},
        }
    )
    context = SourceContext(made)

    def announce(file: Path | str, **config: object) -> Announced:
        event = FileEvent(file_path=str(file), file_name=str(file).rpartition("/")[2])
        config = config or {"source_type": "local", "path": str(tmp_path)}
        return Announced(event, open_source(config, context))

    return announce


def test_the_present_version_is_used_and_a_named_one_is_kept(
    announced: Callable[..., Announced], tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_bytes(b"12345")
    there, gone = announced(tmp_path / "a.csv"), announced(tmp_path / "gone.csv")
    named = FileEvent(file_path=str(tmp_path / "a.csv"), file_name="a.csv", etag="v7")
    found = with_versions([gone, there, Announced(named, there.source)])
    assert [event.size_bytes for event in found] == [None, 5, None]
    assert found[1].modified_at is not None
    assert found[2] is named


def test_a_silent_server_is_skipped_and_the_others_are_queried(
    announced: Callable[..., Announced], tmp_path: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest_project.file_ingest.sensors.ANSWER_TIMEOUT_SECONDS", 1.0)
    (tmp_path / "a.csv").write_bytes(b"12345")
    silent = {"source_type": "ftp", "host": "127.0.0.1", "port": silent_port, "path": "/", "credentials": "store"}
    begun_at = time.monotonic()
    found = with_versions(
        [*(announced(f"/{n}.csv", tls="none", **silent) for n in range(20)), announced(tmp_path / "a.csv")]
    )
    assert time.monotonic() - begun_at < LONG_SECONDS / 2
    assert [event.size_bytes for event in found] == [None] * 20 + [5]


def test_a_server_that_does_not_answer_is_queried_once(announced: Callable[..., Announced]) -> None:
    away = {"source_type": "ftp", "host": "127.0.0.1", "port": 1, "path": "/", "credentials": "store"}
    found = with_versions([announced(f"/{n}.csv", tls="none", **away) for n in range(2_000)])
    assert {event.modified_at for event in found} == {None}
