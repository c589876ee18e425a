"""What is particular to OneLake: names and GUIDs, its refusals, answers that come in parts."""

from __future__ import annotations

import pytest

from ingest_project.core.errors import PermanentError, SourceAccessDeniedError, SourceUnreachableError
from ingest_project.sources.protocol import Source, SourceFile
from ingest_project_tests.services.dfs_server import ITEM, DfsServer, guid_of
from ingest_project_tests.sources.places import OneLakePlace


@pytest.fixture
def place(dfs: DfsServer, dfs_url: str) -> OneLakePlace:
    return OneLakePlace(dfs, dfs_url)


def files(source: Source, pattern: str = "**") -> list[SourceFile]:
    return [entry for entry in source.list_files(pattern) if isinstance(entry, SourceFile)]


def test_a_place_is_reached_by_name_by_guid_and_by_its_short_address(place: OneLakePlace) -> None:
    place.put("sub/a.csv", b"x")
    folder = place.root.path.partition("/")[2]
    names = f"analytics/{ITEM}/{folder}"
    guids = f"{place.server.url}/{guid_of('analytics')}/{guid_of(ITEM)}/{folder}"
    for path in (names, guids, place.root.url):
        source = place.open(path=path)
        (file,) = files(source)
        with source.open(file.path) as stream:
            assert stream.read() == b"x"


def test_an_answer_that_is_cut_is_asked_for_again(place: OneLakePlace) -> None:
    content = bytes(range(256)) * 40_000
    place.put("a.csv", content)
    place.server.fail("read", kind="half")
    with place.open().open(place.path("a.csv")) as stream:
        assert stream.read() == content


def test_refusals_are_permanent_and_trouble_is_transient(place: OneLakePlace) -> None:
    place.put("a.csv", b"x")
    place.server.fail("list", status=403, code="AuthorizationFailure")
    with pytest.raises(SourceAccessDeniedError, match="AuthorizationFailure"):
        files(place.open())
    place.server.fail("list", status=503, times=9, retry_after=60)
    with pytest.raises(SourceUnreachableError, match="503"):
        files(place.open())


@pytest.mark.parametrize("path", ["", "https://example.com/a/b.Lakehouse/Files", "analytics/../x", "abfss://x"])
def test_a_path_that_is_no_place_of_ours_is_refused(place: OneLakePlace, path: str) -> None:
    with pytest.raises(PermanentError):
        place.open(path=path).require_allowed(path)
