"""The promises of every object store, the same in a folder, in S3 and in OneLake."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from ingest_project.core.errors import ForbiddenPathError, PermanentError, SettingsError, StoreUnavailableError
from ingest_project.platform.object_store import open_store
from ingest_project.platform.object_store.s3 import PART_BYTES
from ingest_project.platform.object_store.store import ObjectStore, S3Options, kept_metadata, location_of
from ingest_project.testing.stores import METADATA, StoreContract, TakenError, put, read, refuse
from ingest_project_tests.services.http_exchange import Answer, HttpServer
from ingest_project_tests.services.object_stores import StoreLocation


class TestEveryStore(StoreContract):
    """The same in a folder, in S3 and in OneLake."""

    @pytest.fixture
    def store(self, store_location: StoreLocation) -> ObjectStore:
        """An empty store of each kind."""
        return store_location.open()

    @pytest.fixture
    def names(self, store_location: StoreLocation) -> Callable[[], Sequence[str]]:
        """Everything that is in the store."""
        return store_location.names


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


def test_a_name_too_long_for_s3_is_refused_for_good(s3_url: str, s3_options: S3Options, tmp_path: Path) -> None:
    store, name = open_store(s3_url, s3_options), "/".join(["ü" * 100] * 6)
    for may_replace in (None, refuse):
        with pytest.raises(ForbiddenPathError, match="more than 1024 bytes"):
            put(store, tmp_path, b"1", name, may_replace=may_replace)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "XMinioParentIsObject", PermanentError),
        (400, "EntityTooLarge", PermanentError),
        (403, "AccessDenied", StoreUnavailableError),
        (400, "ExpiredToken", StoreUnavailableError),
    ],
)
def test_s3_refuses_one_object_for_good_and_all_of_them_for_a_time(
    status: int, code: str, expected: type[Exception], tmp_path: Path
) -> None:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    with HttpServer(lambda _: Answer(status, body=body)) as server:
        store = open_store("s3://bucket/x", S3Options(server.url.strip("/"), "us-east-1", "key", "secret"))
        for may_replace in (None, refuse):
            with pytest.raises(expected, match=code) as caught:
                put(store, tmp_path, b"1", "a/b", may_replace=may_replace)
            assert type(caught.value) is expected


def test_metadata_names_that_no_header_can_carry_are_refused() -> None:
    with pytest.raises(PermanentError, match="metadata"):
        kept_metadata({"bad\r\nname": "1"})


def test_metadata_that_is_too_long_is_cut_between_characters_the_same_each_time() -> None:
    kept = kept_metadata({"note": "日本" * 1_000})
    assert kept["note"]
    assert ("日本" * 1_000).startswith(kept["note"])
    assert kept_metadata(kept) == kept
    assert list(kept_metadata({"key": "k" * 600, "address": "a" * 9_000, "note": "n"})) == ["key", "address"]


@pytest.mark.parametrize("store_location", ["folder", "onelake"], indirect=True)
def test_a_file_in_the_way_of_a_folder_is_refused_for_good(store: ObjectStore, tmp_path: Path) -> None:
    put(store, tmp_path, b"x", "a/b")
    with pytest.raises(PermanentError):
        put(store, tmp_path, b"y", "a/b/c")
    for may_replace in (None, lambda _: True):
        with pytest.raises(PermanentError):
            put(store, tmp_path, b"y", "a", may_replace=may_replace)
    assert read(store, "a/b") == b"x"


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
