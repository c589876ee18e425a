"""What every object store promises, the same in a folder, in S3 and in OneLake."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from ingest_project.core.errors import (
    ForbiddenPathError,
    PermanentError,
    SettingsError,
    SourceChangedError,
    SourceNotFoundError,
    StoreUnavailableError,
)
from ingest_project.core.local_files import LocalFile
from ingest_project.platform.object_store import open_store
from ingest_project.platform.object_store.s3 import PART_BYTES
from ingest_project.platform.object_store.store import ObjectStore, S3Options, StoredObject, kept_metadata, location_of
from ingest_project_tests.platform.object_store.samples import CONTENTS, NAME, digest, local_file, put, read
from ingest_project_tests.services.object_stores import CHUNK_BYTES, StoreLocation

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


@SIZES
@pytest.mark.parametrize("metadata", [None, METADATA], ids=["plain", "described"])
def test_a_file_comes_back_unchanged_with_its_length_and_metadata(
    store: ObjectStore, tmp_path: Path, content: bytes, metadata: dict[str, str] | None
) -> None:
    stored = put(store, tmp_path, content, metadata=metadata)
    assert (stored.size_bytes, stored.metadata) == (len(content), metadata or {})
    assert stored.location == store.location(NAME)
    assert stored.location.endswith(NAME)
    assert read(store) == content
    assert store.stat(NAME) == stored


def test_bytes_in_memory_are_stored_too(store: ObjectStore) -> None:
    for content in CONTENTS.values():
        assert store.put("a", content).size_bytes == len(content)
        assert read(store, "a") == content


def test_a_file_of_several_parts_of_s3_comes_back_unchanged(s3_url: str, s3_options: S3Options, tmp_path: Path) -> None:
    store = open_store(s3_url, s3_options)
    content = os.urandom(2 * PART_BYTES + 17)
    for name, may_replace in (("plain", None), ("conditional", refuse)):
        stored = put(store, tmp_path, content, name, metadata=METADATA, may_replace=may_replace)
        assert read(store, name) == content
        assert store.stat(name) == stored
    with pytest.raises(TakenError):
        put(store, tmp_path, content, "conditional", may_replace=refuse)
    assert store.remove_orphaned(timedelta(seconds=-5)) == 0


def test_metadata_names_that_no_header_can_carry_are_refused() -> None:
    with pytest.raises(PermanentError, match="metadata"):
        kept_metadata({"bad\r\nname": "1"})


def test_metadata_that_is_too_long_is_cut_between_characters_the_same_each_time() -> None:
    kept = kept_metadata({"note": "日本" * 1_000})
    assert kept["note"]
    assert ("日本" * 1_000).startswith(kept["note"])
    assert kept_metadata(kept) == kept


@SIZES
def test_storing_the_same_file_again_leaves_the_same_state(
    store: ObjectStore, store_location: StoreLocation, tmp_path: Path, content: bytes
) -> None:
    first = put(store, tmp_path, content, metadata=METADATA, may_replace=lambda _: False)
    names = store_location.names()
    for may_replace in (lambda _: False, lambda _: True, None):
        assert put(store, tmp_path, content, metadata=METADATA, may_replace=may_replace) == first
    assert read(store) == content
    assert store_location.names() == names


def test_another_file_of_the_same_name_replaces_it(store: ObjectStore, tmp_path: Path) -> None:
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
    store: ObjectStore, store_location: StoreLocation, tmp_path: Path, content: bytes
) -> None:
    first = put(store, tmp_path, content, metadata={"owner": "one"})
    names = store_location.names()
    for other in CONTENTS.values():
        assert put(store, tmp_path, other, metadata={"owner": "two"}, may_replace=lambda _: False) == first
        with pytest.raises(TakenError, match="one"):
            put(store, tmp_path, other, metadata={"owner": "two"}, may_replace=refuse)
    assert read(store) == content
    assert store.stat(NAME) == first
    assert store_location.names() == names, "no temporary one stays"


def test_of_writers_that_want_one_name_at_once_one_gets_it(store: ObjectStore, tmp_path: Path) -> None:
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


def test_writers_of_one_name_leave_one_whole_file_of_theirs(store: ObjectStore, tmp_path: Path) -> None:
    contents = [bytes([number]) * (3 * CHUNK_BYTES) for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda content: put(store, tmp_path, content, may_replace=lambda _: True), contents))
    assert read(store) in contents


def test_many_threads_store_at_once(store: ObjectStore, tmp_path: Path) -> None:
    contents = {f"t{number}/f.bin": os.urandom(number * CHUNK_BYTES // 4) for number in range(16)}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: put(store, tmp_path, contents[name], name), contents))
    assert {name: read(store, name) for name in contents} == contents


def test_names_of_any_script_are_kept(store: ObjectStore, tmp_path: Path) -> None:
    for name in ("a b/Größe 日本 %41 #1.pdf", "x/😀.pdf", "plain"):
        stored = put(store, tmp_path, name.encode(), name)
        assert read(store, name) == name.encode()
        assert store.stat(name) == stored


@pytest.mark.parametrize(
    "name",
    ["../out", "a/../../out", "/etc/out", "", "a//b", "a/./b", "a\\b", "a\x00b", ".hidden", "a/.b.json", "n" * 300],
)
def test_a_name_that_leads_out_or_is_hidden_is_refused(store: ObjectStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(ForbiddenPathError):
        put(store, tmp_path, b"x", name)
    with pytest.raises(ForbiddenPathError):
        store.stat(name)
    with pytest.raises(ForbiddenPathError):
        store.remove(name)
    with pytest.raises(ForbiddenPathError):
        read(store, name)


@pytest.mark.parametrize("store_location", ["folder", "onelake"], indirect=True)
def test_a_file_in_the_way_of_a_folder_is_refused_for_good(store: ObjectStore, tmp_path: Path) -> None:
    put(store, tmp_path, b"x", "a/b")
    with pytest.raises(PermanentError):
        put(store, tmp_path, b"y", "a/b/c")
    for may_replace in (None, lambda _: True):
        with pytest.raises(PermanentError):
            put(store, tmp_path, b"y", "a", may_replace=may_replace)
    assert read(store, "a/b") == b"x"


@SMALL_AND_LARGE
@pytest.mark.parametrize("is_conditional", [True, False])
def test_a_local_file_that_is_not_as_announced_is_not_stored(
    store: ObjectStore, store_location: StoreLocation, tmp_path: Path, content: bytes, *, is_conditional: bool
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
    assert [name for name in store_location.names() if not name.endswith(".json")] == []


def test_a_missing_object_is_reported_as_such(store: ObjectStore, tmp_path: Path) -> None:
    assert store.stat("none/at/all") is None
    with pytest.raises(SourceNotFoundError):
        read(store, "none/at/all")
    put(store, tmp_path, b"x", "folder/file")
    assert store.stat("folder") is None


@pytest.mark.parametrize("metadata", [None, METADATA], ids=["plain", "described"])
def test_a_removed_object_is_gone_and_removing_again_changes_nothing(
    store: ObjectStore, store_location: StoreLocation, tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    put(store, tmp_path, b"x", "other")
    put(store, tmp_path, b"x", metadata=metadata)
    for _ in range(2):
        store.remove(NAME)
    assert store.stat(NAME) is None
    assert store_location.names() == ["other"]


def test_only_abandoned_temporary_data_is_swept(store: ObjectStore, tmp_path: Path) -> None:
    assert store.remove_orphaned(timedelta(0)) == 0
    put(store, tmp_path, CONTENTS["large"], metadata=METADATA)
    assert store.remove_orphaned(timedelta(0)) == 0
    assert read(store) == CONTENTS["large"]


def test_the_scratch_folder_takes_files_that_are_to_be_stored(store: ObjectStore) -> None:
    put(store, store.scratch, b"x")
    assert read(store) == b"x"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("s3://", SettingsError),
        ("gopher://x/y", SettingsError),
        ("ftp://host/x", SettingsError),
        ("https://evil.example/workspace/x", ForbiddenPathError),
        ("analytics/lake.Lakehouse", ForbiddenPathError),
    ],
)
def test_an_address_that_cannot_be_a_store_is_refused(url: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        open_store(url)


def test_a_folder_may_be_an_address_too(tmp_path: Path) -> None:
    assert location_of(f"file://{tmp_path}/a%20b") == tmp_path / "a b"


def test_a_store_that_cannot_be_used_says_so(tmp_path: Path, s3_options: S3Options) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailableError, match="cannot be used"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(StoreUnavailableError, match="NoSuchBucket"):
        open_store("s3://no-such-bucket/x", s3_options).put("a", b"1")
    away = open_store("s3://bucket/x", S3Options("http://127.0.0.1:1", "us-east-1", "key", "secret"))
    with pytest.raises(StoreUnavailableError):
        away.stat("a")
