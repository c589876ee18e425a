"""Web listings: targets of links, versions of files, and broken connections."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_project.core.errors import (
    ForbiddenPathError,
    SourceAccessDeniedError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
    UnknownCredentialsError,
)
from ingest_project.sources import Skipped, SourceFile
from ingest_project_tests.services.listing_server import ListingServer
from ingest_project_tests.services.stalling_proxy import StallingProxy
from ingest_project_tests.sources.backends import WebBackend

CONTENT = os.urandom(5_000_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ListingServer]:
    with ListingServer(tmp_path) as server:
        yield server


@pytest.fixture
def backend(tmp_path: Path, server: ListingServer) -> WebBackend:
    return WebBackend(tmp_path, server)


def test_files_of_a_list_with_versions_are_not_requested(backend: WebBackend, server: ListingServer) -> None:
    server.style = "json"
    for number in range(20):
        backend.put(f"{number}.csv", b"x")
    assert len(list(backend.open().list_files("*"))) == 20
    assert server.requests == {"GET": 1}


def test_the_exact_version_of_each_file_in_an_html_index_is_requested(
    backend: WebBackend, server: ListingServer
) -> None:
    for name in ("a.csv", "b.csv", "c.txt"):
        backend.put(name, b"x")
    assert len(list(backend.open().list_files("*.csv"))) == 2
    assert server.requests == {"GET": 1, "HEAD": 2}


@pytest.mark.parametrize("refusal", [403, 405, 501])
def test_the_first_byte_is_requested_from_a_server_without_head(
    backend: WebBackend, server: ListingServer, refusal: int
) -> None:
    backend.put("a.csv", b"12345")
    with_head = backend.open().stat(backend.path("a.csv"))
    server.head, server.without_head = False, refusal
    assert backend.open().stat(backend.path("a.csv")) == with_head
    server.ranges = False
    assert backend.open().stat(backend.path("a.csv")) == with_head


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_replaced_and_the_file_is_whole(
    backend: WebBackend, server: ListingServer, *, ranges: bool
) -> None:
    backend.put("a.csv", CONTENT)
    server.ranges, server.cut_after, server.cuts = ranges, 1_500_000, 2
    with backend.open().open(backend.path("a.csv")) as stream:
        assert stream.read() == CONTENT
    assert server.cuts == 0


def test_a_file_that_changed_while_its_connection_was_cut_is_not_mixed(
    backend: WebBackend, server: ListingServer
) -> None:
    backend.put("a.csv", CONTENT)
    server.cut_after, server.cuts = 2_500_000, 1
    with backend.open().open(backend.path("a.csv")) as stream:
        stream.read(10)
        backend.put("a.csv", CONTENT[::-1])
        with pytest.raises(SourceChangedError):
            stream.read()


def test_refusals_are_permanent_and_trouble_is_transient(backend: WebBackend, server: ListingServer) -> None:
    for status, kind in (
        (404, SourceNotFoundError),
        (403, SourceAccessDeniedError),
        (503, SourceUnreachableError),
        (429, SourceUnreachableError),
    ):
        server.status = status
        with pytest.raises(kind):
            list(backend.open().list_files("*"))


def test_links_that_lead_out_are_not_followed_unless_the_job_says_so(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/far.csv").write_text("x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/near.csv").write_text("x")
    with ListingServer(tmp_path) as server:
        links = [
            f"{server.url}other/far.csv",
            "near.csv",
            "http://169.254.169.254/a.csv",
            "file:///etc/a.csv",
            "../other/far.csv",
        ]
        (tmp_path / "in/list.txt").write_text("\n".join(links))
        backend = WebBackend(tmp_path, server)
        backend.config["path"] = f"{server.url}in/list.txt"

        def taken(*, elsewhere: bool = False) -> tuple[list[str], list[str]]:
            found = list(backend.open(elsewhere=elsewhere).list_files("*"))
            files = [entry.name for entry in found if isinstance(entry, SourceFile)]
            return files, [entry.reason for entry in found if isinstance(entry, Skipped) and entry.visible]

        files, reasons = taken()
        assert files == ["near.csv"]
        # Named twice, it is one file.
        assert sum("leads out" in reason for reason in reasons) == 1
        assert any("internal" in reason for reason in reasons)
        assert any("only http and https" in reason for reason in reasons)
        assert sorted(taken(elsewhere=True)[0]) == ["far.csv", "near.csv"]
        with pytest.raises(ForbiddenPathError, match="elsewhere"):
            backend.open().open(f"{server.url}other/far.csv")


def test_internal_addresses_and_foreign_credentials_are_refused_before_anything_is_sent(
    backend: WebBackend, server: ListingServer
) -> None:
    backend.settings = {"credentials": {"web": {"hosts": ["example.com"], "kind": "bearer", "secret": "x"}}}
    with pytest.raises(ForbiddenPathError, match="internal"):
        list(backend.open().list_files("*"))
    backend.settings["downloads"] = {"allowed_internal_hosts": ["127.0.0.1"]}
    with pytest.raises(ForbiddenPathError, match="not for this host"):
        backend.open(credentials="web").require_allowed(server.url)
    with pytest.raises(UnknownCredentialsError):
        backend.open(credentials="other")
    assert not server.requests


def test_a_connection_that_was_dropped_without_a_word_is_replaced_in_time(
    backend: WebBackend, server: ListingServer
) -> None:
    backend.put("a.csv", CONTENT)
    with StallingProxy(int(server.url.rstrip("/").rpartition(":")[2])) as proxy:
        backend.settings["polling"] = {"source_timeout_seconds": 0.5}
        source = backend.open(path=proxy.url)
        with source.open(f"{proxy.url}a.csv") as stream:
            assert stream.read(10) == CONTENT[:10]
            proxy.stall()
            assert stream.read() == CONTENT[10:]
        proxy.stall()
        proxy.stall_new = True
        with pytest.raises(SourceUnreachableError):
            source.stat(f"{proxy.url}a.csv")
        proxy.stall_new = False
        assert source.stat(f"{proxy.url}a.csv").size_bytes == len(CONTENT)
