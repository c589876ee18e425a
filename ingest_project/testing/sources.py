"""Contract of every source: it lists, describes and reads files, and refuses forbidden paths."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice

import pytest

from ingest_project.core.errors import ForbiddenPathError, PermanentError, SourceNotFoundError
from ingest_project.sources import Skipped, Source, SourceFile


class SourceBackend(ABC):
    """A location that the source lists and the suite can write to."""

    has_folders = True
    """False where an empty folder cannot be distinguished from a missing one, as in a store of keys."""

    @abstractmethod
    def open(self, below: str = "") -> Source:
        """Return the source, or the source of a subfolder, whose name ends with a slash."""

    @abstractmethod
    def put(self, name: str, content: bytes) -> None:
        """Write or replace a file and create its folders. Each write has another modification time."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file."""

    @abstractmethod
    def path(self, name: str) -> str:
        """Return the path of a file as in a listing."""

    @property
    @abstractmethod
    def outside(self) -> str:
        """Return a path that the source must refuse without connecting."""


def _taken(backend: SourceBackend, pattern: str = "*") -> dict[str, SourceFile]:
    return {entry.path: entry for entry in backend.open().list_files(pattern) if isinstance(entry, SourceFile)}


def _named(backend: SourceBackend, *names: str) -> set[str]:
    return {backend.path(name) for name in names}


class SourceContract:
    """Override the fixture `backend`."""

    @pytest.fixture
    def backend(self) -> Iterator[SourceBackend]:
        """Yield an empty location."""
        raise NotImplementedError("Override the fixture `backend`.")

    def test_files_of_any_name_are_listed_described_and_read(self, backend: SourceBackend) -> None:
        names = ["a.csv", "b b.XLSX", "grüße €+%.csv", "sub/deep/c & d.csv", "#1.csv", "q?.csv"]
        for name in names:
            backend.put(name, name.encode())
        files = _taken(backend, "**")
        assert set(files) == _named(backend, *names)
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

    def test_a_pattern_reaches_as_deep_as_it_says_and_endings_match_in_any_case(self, backend: SourceBackend) -> None:
        for name in ("a.csv", "B.CSV", "x.xlsx", "sub/b.csv", "sub/deep/c.csv", "other/d.csv"):
            backend.put(name, b"x")
        assert set(_taken(backend, "*.csv")) == _named(backend, "a.csv", "B.CSV")
        assert set(_taken(backend, "sub/*.csv")) == _named(backend, "sub/b.csv")
        assert set(_taken(backend, "s*/*")) == _named(backend, "sub/b.csv")
        assert set(_taken(backend, "sub/**/*.csv")) == _named(backend, "sub/b.csv", "sub/deep/c.csv")
        assert set(_taken(backend, "**/[cd].csv")) == _named(backend, "sub/deep/c.csv", "other/d.csv")
        assert _taken(backend, "*.txt") == {}
        with pytest.raises(PermanentError, match="must stay below"):
            list(backend.open().list_files("../*"))

    def test_hidden_locked_unfinished_and_other_files_are_skipped_with_their_reason(
        self, backend: SourceBackend
    ) -> None:
        for name in (".a.csv", "~$b.xlsx", "c.csv.part", "d.tmp", "e.pdf", ".g/h.csv", "i.csv", "j.csv.gz"):
            backend.put(name, b"x")
        found = list(backend.open().list_files("**"))
        assert {entry.path for entry in found if isinstance(entry, SourceFile)} == _named(backend, "i.csv", "j.csv.gz")
        visible = [entry for entry in found if isinstance(entry, Skipped) and entry.visible]
        assert [entry.reason for entry in visible] == ["No reader reads pdf."]
        assert visible[0].path.endswith("e.pdf")

    def test_a_changed_file_is_another_version_and_a_file_at_rest_is_the_same(self, backend: SourceBackend) -> None:
        backend.put("a.csv", b"1")

        def version() -> tuple[object, ...]:
            (file,) = _taken(backend).values()
            return file.etag, file.size_bytes, file.modified_at

        first = version()
        assert version() == first
        backend.put("a.csv", b"22")
        assert version() != first

    def test_an_empty_folder_has_no_files_and_a_missing_one_is_missing(self, backend: SourceBackend) -> None:
        assert list(backend.open().list_files("*.csv")) == []
        if backend.has_folders:
            with pytest.raises(SourceNotFoundError):
                list(backend.open("gone/").list_files("*"))
        with pytest.raises(SourceNotFoundError):
            backend.open().stat(backend.path("gone.csv"))
        with pytest.raises(SourceNotFoundError), backend.open().open(backend.path("gone.csv")):
            pass

    def test_a_file_that_vanishes_or_changes_after_it_was_listed_is_reported(self, backend: SourceBackend) -> None:
        backend.put("a.csv", b"1")
        ((path, _),) = _taken(backend).items()
        backend.remove("a.csv")
        with pytest.raises(SourceNotFoundError):
            backend.open().stat(path)
        backend.put("a.csv", b"other")
        assert backend.open().stat(path).size_bytes == 5

    def test_a_large_file_comes_whole_and_piece_by_piece(self, backend: SourceBackend) -> None:
        content = bytes(range(256)) * 40_000
        backend.put("a.csv", content)
        with backend.open().open(backend.path("a.csv")) as stream:
            pieces = list(iter(lambda: stream.read(300_000), b""))
        assert b"".join(pieces) == content
        assert len(pieces) > 20

    def test_two_spellings_of_a_location_give_one_address(self, backend: SourceBackend) -> None:
        backend.put("sub/a.csv", b"1")
        from_above = {
            file.location or backend.open().canonical_location(path) for path, file in _taken(backend, "**").items()
        }
        below = backend.open("sub/")
        inside = {
            entry.location or below.canonical_location(entry.path)
            for entry in below.list_files("*")
            if isinstance(entry, SourceFile)
        }
        assert from_above == inside == {backend.open().canonical_location(backend.path("sub/a.csv"))}

    def test_a_listing_comes_as_it_is_read(self, backend: SourceBackend) -> None:
        for number in range(30):
            backend.put(f"{number:03}.csv", b"x")
        assert len(list(islice(backend.open().list_files("*"), 3))) == 3

    def test_a_location_outside_of_the_source_is_refused(self, backend: SourceBackend) -> None:
        with pytest.raises(ForbiddenPathError):
            backend.open().require_allowed(backend.outside)
