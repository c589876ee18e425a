"""Contract of every object store: whole objects, atomic replacement, and one winner among concurrent writers."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from ingest_project.core.errors import ForbiddenPathError, SourceChangedError, SourceNotFoundError
from ingest_project.core.local_files import FileFingerprint, LocalFile
from ingest_project.platform.object_store.store import MayReplace, ObjectStore, StoredObject, kept_metadata

# A few of these make a large object.
CHUNK_BYTES = 64 * 1024
NAME = "claims/2026/t1/a.pdf"
CONTENTS = {
    "empty": b"",
    "small": b"%PDF-1.7 small",
    "one chunk": os.urandom(CHUNK_BYTES),
    "large": os.urandom(5 * CHUNK_BYTES + 17),
}


def digest(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def local_file(folder: Path, content: bytes) -> LocalFile:
    """Write a new file with these bytes."""
    path = folder / f"download-{digest(content)[:8]}-{time.monotonic_ns()}"
    path.write_bytes(content)
    return LocalFile(path, len(content), digest(content))


def put(  # noqa: PLR0913 - as the store itself
    store: ObjectStore,
    folder: Path,
    content: bytes,
    name: str = NAME,
    *,
    metadata: Mapping[str, str] | None = None,
    may_replace: MayReplace | None = None,
) -> StoredObject:
    """Store these bytes through a new local file."""
    return store.put(name, local_file(folder, content), metadata=metadata, may_replace=may_replace)


def read(store: ObjectStore, name: str = NAME) -> bytes:
    """Return the bytes of an object."""
    with store.local_path(name) as path:
        return path.read_bytes()


METADATA = kept_metadata(
    {"trace_id": "trace-1", "Note": "100 % größer, 日本\n", "content_type": "application/pdf", "nothing": " "}
)
SIZES = pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
SMALL_AND_LARGE = pytest.mark.parametrize("content", [CONTENTS["small"], CONTENTS["large"]], ids=["small", "large"])


class TakenError(Exception):
    """The name has an owner."""


def refuse(present: StoredObject) -> bool:
    """Refuse to replace anything."""
    raise TakenError(present.metadata.get("owner"))


class StoreContract:
    """Override the fixtures `store` and, if the objects can be listed, `names`."""

    @pytest.fixture
    def store(self) -> ObjectStore:
        """Return an empty store."""
        raise NotImplementedError("Override the fixture `store`.")

    @pytest.fixture
    def names(self) -> Callable[[], Sequence[str]]:
        """Return the names of all objects, including temporary ones; without it, leftovers are not tested."""
        return list

    @SIZES
    @pytest.mark.parametrize("metadata", [None, METADATA], ids=["plain", "described"])
    def test_a_file_comes_back_unchanged_with_its_length_and_metadata(
        self, store: ObjectStore, tmp_path: Path, content: bytes, metadata: dict[str, str] | None
    ) -> None:
        stored = put(store, tmp_path, content, metadata=metadata)
        assert (stored.size_bytes, stored.metadata) == (len(content), metadata or {})
        assert stored.location == store.location(NAME)
        assert stored.location.endswith(NAME)
        assert read(store) == content
        assert store.stat(NAME) == stored

    def test_bytes_in_memory_are_stored_too(self, store: ObjectStore) -> None:
        for content in CONTENTS.values():
            assert store.put("a", content).size_bytes == len(content)
            assert read(store, "a") == content

    @SIZES
    def test_storing_the_same_file_again_leaves_the_same_state(
        self, store: ObjectStore, names: Callable[[], Sequence[str]], tmp_path: Path, content: bytes
    ) -> None:
        first = put(store, tmp_path, content, metadata=METADATA, may_replace=lambda _: False)
        before = names()
        for may_replace in (lambda _: False, lambda _: True, None):
            assert put(store, tmp_path, content, metadata=METADATA, may_replace=may_replace) == first
        assert read(store) == content
        assert names() == before

    def test_another_file_of_the_same_name_replaces_it(self, store: ObjectStore, tmp_path: Path) -> None:
        put(store, tmp_path, CONTENTS["large"], metadata={"note": "old"})
        put(store, tmp_path, CONTENTS["small"], metadata={"note": "new"})
        assert read(store) == CONTENTS["small"]
        put(store, tmp_path, CONTENTS["large"], metadata={"note": "newest"}, may_replace=lambda _: True)
        assert read(store) == CONTENTS["large"]
        found = store.stat(NAME)
        assert found
        assert found.metadata["note"] == "newest"

    @SMALL_AND_LARGE
    def test_an_object_that_may_not_be_replaced_is_kept_or_refused(
        self, store: ObjectStore, names: Callable[[], Sequence[str]], tmp_path: Path, content: bytes
    ) -> None:
        first = put(store, tmp_path, content, metadata={"owner": "one"})
        before = names()
        for other in CONTENTS.values():
            assert put(store, tmp_path, other, metadata={"owner": "two"}, may_replace=lambda _: False) == first
            with pytest.raises(TakenError, match="one"):
                put(store, tmp_path, other, metadata={"owner": "two"}, may_replace=refuse)
        assert read(store) == content
        assert store.stat(NAME) == first
        assert names() == before, "no temporary one stays"

    def test_one_of_several_simultaneous_writers_gets_the_name(self, store: ObjectStore, tmp_path: Path) -> None:
        contents = {str(number): bytes([number]) * (number * CHUNK_BYTES) for number in range(1, 7)}
        refused: list[str] = []

        def try_to_put(owner: str) -> None:
            try:
                put(store, tmp_path, contents[owner], metadata={"owner": owner}, may_replace=refuse)
            except TakenError:
                refused.append(owner)

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(try_to_put, contents))
        (winner,) = contents.keys() - set(refused)
        found = store.stat(NAME)
        assert found
        assert found.metadata["owner"] == winner
        assert read(store) == contents[winner]

    def test_writers_of_one_name_leave_one_whole_file_of_theirs(self, store: ObjectStore, tmp_path: Path) -> None:
        contents = [bytes([number]) * (3 * CHUNK_BYTES) for number in range(6)]
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda content: put(store, tmp_path, content, may_replace=lambda _: True), contents))
        assert read(store) in contents

    def test_many_threads_store_at_once(self, store: ObjectStore, tmp_path: Path) -> None:
        contents = {f"t{number}/f.bin": os.urandom(number * CHUNK_BYTES // 4) for number in range(16)}
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda name: put(store, tmp_path, contents[name], name), contents))
        assert {name: read(store, name) for name in contents} == contents

    def test_names_of_any_script_are_kept(self, store: ObjectStore, tmp_path: Path) -> None:
        for name in ("a b/Größe 日本 %41 #1.pdf", "x/😀.pdf", "plain"):
            stored = put(store, tmp_path, name.encode(), name)
            assert read(store, name) == name.encode()
            assert store.stat(name) == stored

    @pytest.mark.parametrize(
        "name",
        ["../out", "a/../../out", "/etc/out", "", "a//b", "a/./b", "a\\b", "a\x00b", ".hidden", "a/.b.json", "n" * 300],
    )
    def test_a_name_that_leads_out_or_is_hidden_is_refused(self, store: ObjectStore, tmp_path: Path, name: str) -> None:
        with pytest.raises(ForbiddenPathError):
            put(store, tmp_path, b"x", name)
        with pytest.raises(ForbiddenPathError):
            store.stat(name)
        with pytest.raises(ForbiddenPathError):
            store.remove(name)
        with pytest.raises(ForbiddenPathError):
            read(store, name)

    @SMALL_AND_LARGE
    @pytest.mark.parametrize("is_conditional", [True, False])
    def test_a_local_file_that_is_not_as_announced_is_not_stored(
        self,
        store: ObjectStore,
        names: Callable[[], Sequence[str]],
        tmp_path: Path,
        content: bytes,
        *,
        is_conditional: bool,
    ) -> None:
        path = local_file(tmp_path, content).path
        may_replace = refuse if is_conditional else None
        for size_bytes, sha256, match in (
            (len(content) + 1, digest(content), "bytes"),
            (len(content), digest(b"other"), "content"),
        ):
            with pytest.raises(SourceChangedError, match=match):
                store.put("a", LocalFile(path, size_bytes, sha256), metadata=METADATA, may_replace=may_replace)
        with pytest.raises(SourceNotFoundError):
            store.put("a", LocalFile(tmp_path / "none", 1, ""), metadata=METADATA, may_replace=may_replace)
        assert store.stat("a") is None
        assert [name for name in names() if not name.endswith(".json")] == []

    @SMALL_AND_LARGE
    def test_a_local_file_with_its_fingerprint_is_stored_and_refused_once_it_was_written_to(
        self, store: ObjectStore, tmp_path: Path, content: bytes
    ) -> None:
        kept, changed = (local_file(tmp_path, content).path for _ in range(2))
        fingerprints = [FileFingerprint.of(path.stat()) for path in (kept, changed)]
        changed.write_bytes(bytes(len(content)))
        # Two writes within one tick of the file system's clock have the same time.
        os.utime(changed, ns=(0, fingerprints[1].modified_ns + 1))
        store.put("a", LocalFile(kept, len(content), digest(content), fingerprints[0]), metadata=METADATA)
        assert read(store, "a") == content
        with pytest.raises(SourceChangedError, match="content"):
            store.put("b", LocalFile(changed, len(content), digest(content), fingerprints[1]), metadata=METADATA)
        assert store.stat("b") is None

    def test_a_missing_object_is_reported_as_such(self, store: ObjectStore, tmp_path: Path) -> None:
        assert store.stat("none/at/all") is None
        with pytest.raises(SourceNotFoundError):
            read(store, "none/at/all")
        put(store, tmp_path, b"x", "folder/file")
        assert store.stat("folder") is None

    @pytest.mark.parametrize("metadata", [None, METADATA], ids=["plain", "described"])
    def test_a_removed_object_is_gone_and_removing_again_changes_nothing(
        self, store: ObjectStore, names: Callable[[], Sequence[str]], tmp_path: Path, metadata: dict[str, str] | None
    ) -> None:
        put(store, tmp_path, b"x", "other")
        put(store, tmp_path, b"x", metadata=metadata)
        for _ in range(2):
            store.remove(NAME)
        assert store.stat(NAME) is None
        assert [*names()] in ([], ["other"])

    def test_only_abandoned_temporary_data_is_swept(self, store: ObjectStore, tmp_path: Path) -> None:
        assert store.remove_orphaned(timedelta(0)) == 0
        put(store, tmp_path, CONTENTS["large"], metadata=METADATA)
        assert store.remove_orphaned(timedelta(0)) == 0
        assert read(store) == CONTENTS["large"]

    def test_the_scratch_folder_takes_files_that_are_to_be_stored(self, store: ObjectStore) -> None:
        file = local_file(store.scratch, b"x")
        store.put(NAME, file)
        # A remote store copies the file, and its scratch folder is the machine's.
        file.path.unlink(missing_ok=True)
        assert read(store) == b"x"
