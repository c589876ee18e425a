"""What every kind of source promises, each against a real server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from ingest_project.core.errors import ForbiddenPathError, PermanentError, SourceNotFoundError
from ingest_project.sources import Skipped, SourceFile
from ingest_project_tests.services.ftp_server import FtpServer
from ingest_project_tests.services.ftps_server import FtpsServer, made_certificates
from ingest_project_tests.services.listing_server import ListingServer
from ingest_project_tests.services.sftp_server import SftpServer
from ingest_project_tests.sources.backends import (
    Backend,
    FileServerBackend,
    LocalBackend,
    OneLakeBackend,
    S3Backend,
    WebBackend,
)

KINDS = ("local", "s3", "onelake", "ftp", "ftps", "sftp", "nginx", "apache", "json", "lines")
MANY = 10_000
SLOW_WHEN_MANY = ("s3", "nginx", "apache", "lines")


@pytest.fixture(params=KINDS)
def backend(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    match request.param:
        case "local":
            yield LocalBackend(tmp_path)
        case "s3":
            yield S3Backend(request.getfixturevalue("s3_options"), f"test-{uuid.uuid4().hex}")
        case "onelake":
            yield OneLakeBackend(request.getfixturevalue("dfs"), request.getfixturevalue("dfs_url"))
        case "ftp" | "sftp" as protocol:
            with FtpServer(tmp_path) if protocol == "ftp" else SftpServer(tmp_path) as file_server:
                served = FileServerBackend(tmp_path, file_server)
                yield served
                served.close()
        case "ftps":
            certificates = made_certificates(tmp_path_factory.mktemp("certificates"))
            with FtpsServer(tmp_path, certificates.server) as tls_server:
                served = FileServerBackend(tmp_path, tls_server, certificates.authority)
                yield served
                served.close()
        case style:
            with ListingServer(tmp_path, style) as server:
                yield WebBackend(tmp_path, server)


def taken(backend: Backend, pattern: str = "*") -> dict[str, SourceFile]:
    return {entry.path: entry for entry in backend.open().list_files(pattern) if isinstance(entry, SourceFile)}


def named(backend: Backend, *names: str) -> set[str]:
    return {backend.path(name) for name in names}


def test_files_of_any_name_are_listed_described_and_read(backend: Backend) -> None:
    names = ["a.csv", "b b.XLSX", "grüße €+%.csv", "sub/deep/c & d.csv", "#1.csv", "q?.csv"]
    for name in names:
        backend.put(name, name.encode())
    files = taken(backend, "**")
    assert set(files) == named(backend, *names)
    source = backend.open()
    for name in names:
        listed, found = files[backend.path(name)], source.stat(backend.path(name))
        assert (listed.name, found.name) == (name.rpartition("/")[2],) * 2
        assert listed.etag in {None, found.etag}
        assert listed.size_bytes in {None, found.size_bytes}
        assert listed.modified_at is not None
        assert listed.modified_at.utcoffset() is not None
        assert found.size_bytes == len(name.encode())
        source.require_allowed(listed.path)
        with source.open(listed.path) as stream:
            assert stream.read().decode() == name


def test_a_pattern_reaches_as_deep_as_it_says_and_endings_match_in_any_case(backend: Backend) -> None:
    for name in ("a.csv", "B.CSV", "x.xlsx", "sub/b.csv", "sub/deep/c.csv", "other/d.csv"):
        backend.put(name, b"x")
    assert set(taken(backend, "*.csv")) == named(backend, "a.csv", "B.CSV")
    assert set(taken(backend, "sub/*.csv")) == named(backend, "sub/b.csv")
    assert set(taken(backend, "s*/*")) == named(backend, "sub/b.csv")
    assert set(taken(backend, "sub/**/*.csv")) == named(backend, "sub/b.csv", "sub/deep/c.csv")
    assert set(taken(backend, "**/[cd].csv")) == named(backend, "sub/deep/c.csv", "other/d.csv")
    assert taken(backend, "*.txt") == {}
    with pytest.raises(PermanentError, match="must stay below"):
        list(backend.open().list_files("../*"))


def test_what_is_hidden_locked_unfinished_or_of_another_type_is_skipped_with_its_reason(backend: Backend) -> None:
    for name in (".a.csv", "~$b.xlsx", "c.csv.part", "d.tmp", "e.pdf", ".g/h.csv", "i.csv", "j.csv.gz"):
        backend.put(name, b"x")
    found = list(backend.open().list_files("**"))
    assert {entry.path for entry in found if isinstance(entry, SourceFile)} == named(backend, "i.csv", "j.csv.gz")
    visible = {
        entry.path.rpartition("/")[2]: entry.reason for entry in found if isinstance(entry, Skipped) and entry.visible
    }
    assert visible == {"e.pdf": "No reader reads pdf."}


def test_a_changed_file_is_another_version_and_a_file_at_rest_is_the_same(backend: Backend) -> None:
    backend.put("a.csv", b"1")

    def version() -> tuple[object, ...]:
        (file,) = taken(backend).values()
        return file.etag, file.size_bytes, file.modified_at

    first = version()
    assert version() == first
    backend.put("a.csv", b"22")
    assert version() != first


def test_an_empty_folder_has_no_files_and_a_missing_one_is_missing(backend: Backend) -> None:
    assert list(backend.open().list_files("*.csv")) == []
    if backend.has_folders:
        with pytest.raises(SourceNotFoundError):
            list(backend.open("gone/").list_files("*"))
    with pytest.raises(SourceNotFoundError):
        backend.open().stat(backend.path("gone.csv"))
    with pytest.raises(SourceNotFoundError), backend.open().open(backend.path("gone.csv")):
        pass


def test_a_file_that_vanishes_or_changes_after_it_was_listed_is_reported(backend: Backend) -> None:
    backend.put("a.csv", b"1")
    ((path, _),) = taken(backend).items()
    backend.remove("a.csv")
    with pytest.raises(SourceNotFoundError):
        backend.open().stat(path)
    backend.put("a.csv", b"other")
    assert backend.open().stat(path).size_bytes == 5


def test_a_large_file_comes_whole_and_piece_by_piece(backend: Backend) -> None:
    content = bytes(range(256)) * 40_000
    backend.put("a.csv", content)
    with backend.open().open(backend.path("a.csv")) as stream:
        pieces = list(iter(lambda: stream.read(300_000), b""))
    assert b"".join(pieces) == content
    assert len(pieces) > 20


def test_two_spellings_of_a_location_give_one_address(backend: Backend) -> None:
    backend.put("sub/a.csv", b"1")
    from_above = {
        file.location or backend.open().canonical_location(path) for path, file in taken(backend, "**").items()
    }
    below = backend.open("sub/")
    inside = {
        entry.location or below.canonical_location(entry.path)
        for entry in below.list_files("*")
        if isinstance(entry, SourceFile)
    }
    assert from_above == inside == {backend.open().canonical_location(backend.path("sub/a.csv"))}


def test_a_listing_comes_as_it_is_read(backend: Backend) -> None:
    for number in range(30):
        backend.put(f"{number:03}.csv", b"x")
    assert len(list(islice(backend.open().list_files("*"), 3))) == 3


# A page without sizes leads to a question for each file; the tests' S3 server goes through all keys for each page.
@pytest.mark.parametrize(
    "backend",
    [pytest.param(kind, marks=[pytest.mark.long] if kind in SLOW_WHEN_MANY else []) for kind in KINDS],
    indirect=True,
)
def test_ten_thousand_entries_are_each_listed_once(backend: Backend) -> None:
    names = [f"sub/{number:05}.csv" for number in range(MANY)]
    backend.put_many(names)
    listed = [entry.path for entry in backend.open().list_files("sub/*.csv")]
    assert len(listed) == MANY
    assert set(listed) == named(backend, *names)


def test_a_location_outside_of_the_source_is_refused(backend: Backend) -> None:
    elsewhere = {
        "local": "/etc/passwd.csv",
        "s3": "s3://another-bucket/a.csv",
        "onelake": "https://example.com/a/b.Lakehouse/Files/a.csv",
        "http": "http://127.0.0.1:1/a.csv",
        "ftp": "/a.csv\r\nDELE /b.csv",
        "sftp": "/a\0.csv",
    }
    with pytest.raises(ForbiddenPathError):
        backend.open().require_allowed(elsewhere[backend.config["source_type"]])
