"""OneLake sources: names and GUIDs, refusals, and responses in parts."""

from __future__ import annotations

import pytest

from ingest_project.core.errors import PermanentError, SourceAccessDeniedError, SourceUnreachableError
from ingest_project.sources import Skipped, Source, SourceFile
from ingest_project_tests.services.dfs_server import ITEM, DfsServer, guid_of
from ingest_project_tests.sources.backends import OneLakeBackend


@pytest.fixture
def backend(dfs: DfsServer, dfs_url: str) -> OneLakeBackend:
    return OneLakeBackend(dfs, dfs_url)


def files(source: Source, pattern: str = "**") -> list[SourceFile]:
    return [entry for entry in source.list_files(pattern) if isinstance(entry, SourceFile)]


def test_a_location_is_reached_by_name_by_guid_and_by_its_short_address(backend: OneLakeBackend) -> None:
    backend.put("sub/a.csv", b"x")
    folder = backend.root.path.partition("/")[2]
    names = f"analytics/{ITEM}/{folder}"
    guids = f"{backend.server.url}/{guid_of('analytics')}/{guid_of(ITEM)}/{folder}"
    for path in (names, guids, backend.root.url):
        source = backend.open(path=path)
        (file,) = files(source)
        with source.open(file.path) as stream:
            assert stream.read() == b"x"


def test_a_response_that_is_cut_is_requested_again(backend: OneLakeBackend) -> None:
    content = bytes(range(256)) * 40_000
    backend.put("a.csv", content)
    backend.server.fail("read", kind="half")
    with backend.open().open(backend.path("a.csv")) as stream:
        assert stream.read() == content


def test_refusals_are_permanent_and_trouble_is_transient(backend: OneLakeBackend) -> None:
    backend.put("a.csv", b"x")
    backend.server.fail("list", status=403, code="AuthorizationFailure")
    with pytest.raises(SourceAccessDeniedError, match="AuthorizationFailure"):
        files(backend.open())
    backend.server.fail("list", status=503, times=9, retry_after=60)
    with pytest.raises(SourceUnreachableError, match="503"):
        files(backend.open())


@pytest.mark.parametrize(("status", "code"), [(404, "PathNotFound"), (403, "AuthorizationPermissionMismatch")])
def test_a_folder_that_is_removed_or_not_ours_hides_no_other(backend: OneLakeBackend, status: int, code: str) -> None:
    for name in ("in/a.csv", "in/b/c.csv"):
        backend.put(name, b"x")
    entries = backend.open(path=backend.root.child("in").url).list_files("*/*.csv")
    backend.put("in/z/c.csv", b"x")
    found = [next(entries)]
    backend.server.fail("list", status=status, code=code)
    found += entries
    assert [type(entry) for entry in found] == [SourceFile, Skipped]


@pytest.mark.parametrize("path", ["", "https://example.com/a/b.Lakehouse/Files", "analytics/../x", "abfss://x"])
def test_a_path_outside_of_allowed_locations_is_refused(backend: OneLakeBackend, path: str) -> None:
    with pytest.raises(PermanentError):
        backend.open(path=path).require_allowed(path)
