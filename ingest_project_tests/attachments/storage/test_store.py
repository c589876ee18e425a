"""What the attachment store promises, the same in a folder and in OneLake."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ingest_project.attachments.resources import open_attachment_store
from ingest_project.attachments.storage.onelake import OneLakeAttachments
from ingest_project.attachments.storage.store import AttachmentStore, PathTakenError
from ingest_project.core.errors import (
    ForbiddenPathError,
    PermanentError,
    SettingsError,
    SourceChangedError,
    SourceNotFoundError,
)
from ingest_project.platform.azure.address import parse_address
from ingest_project_tests.attachments.storage.samples import CHUNK, CONTENTS, digest, put, read
from ingest_project_tests.services.dfs_server import DfsServer

METADATA = {
    "trace_id": "trace-1",
    "source_url": "https://user:secret@files.example/ä/a.pdf?sig=c2VjcmV0#page=2",
    "note": "100 % größer, 日本\n",
    "content_type": "application/pdf",
}
KEPT = {
    "trace_id": "trace-1",
    "source_url": "https://files.example/ä/a.pdf",
    "note": "100 % größer, 日本",
    "content_type": "application/pdf",
}


@pytest.fixture(params=["folder", "onelake", "onelake in chunks only"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AttachmentStore]:
    opened: AttachmentStore
    if request.param == "folder":
        opened = open_attachment_store(str(tmp_path / "store"))
    else:
        dfs: DfsServer = request.getfixturevalue("dfs")
        address = parse_address(request.getfixturevalue("dfs_url"), dfs.url)
        options = replace(dfs.options, chunk_bytes=CHUNK, concurrency=3)
        opened = OneLakeAttachments(address, options, whole_files=request.param == "onelake")
    yield opened
    opened.close()


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_file_comes_back_unchanged_and_is_described_by_its_length_and_digest(
    store: AttachmentStore, tmp_path: Path, content: bytes
) -> None:
    stored = put(store, tmp_path, content)
    assert stored[1:] == (len(content), digest(content))
    assert stored.path.endswith("claims/2026/t1/a.pdf")
    assert read(store) == content
    assert store.stat("claims/2026/t1/a.pdf") == stored


@pytest.mark.parametrize("content", [CONTENTS["small"], CONTENTS["large"]], ids=["small", "large"])
def test_metadata_of_any_text_is_kept_and_signed_addresses_lose_their_secret(
    store: AttachmentStore, tmp_path: Path, content: bytes
) -> None:
    put(store, tmp_path, content, **METADATA)
    assert store.metadata("claims/2026/t1/a.pdf") == {**KEPT, "sha256": digest(content)}


def test_names_that_no_header_can_carry_are_refused(store: AttachmentStore, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="metadata"):
        put(store, tmp_path, b"x", **{"bad\r\nname": "1"})


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_putting_the_same_file_again_leaves_the_same_state(
    store: AttachmentStore, tmp_path: Path, content: bytes
) -> None:
    first = put(store, tmp_path, content)
    assert put(store, tmp_path, content) == first
    assert read(store) == content


def test_another_file_of_the_same_name_takes_its_place(store: AttachmentStore, tmp_path: Path) -> None:
    put(store, tmp_path, CONTENTS["large"], note="old")
    put(store, tmp_path, CONTENTS["small"], note="new")
    assert read(store) == CONTENTS["small"]
    assert store.metadata("claims/2026/t1/a.pdf")["note"] == "new"
    put(store, tmp_path, CONTENTS["large"])
    assert read(store) == CONTENTS["large"]


@pytest.mark.parametrize("content", [CONTENTS["small"], CONTENTS["large"]], ids=["small", "large"])
def test_a_file_of_another_attachment_is_never_replaced(store: AttachmentStore, tmp_path: Path, content: bytes) -> None:
    put(store, tmp_path, content, attachment_key="a.pdf~one", trace_id="t", source_url="http://h/a.pdf")
    for other in ({"attachment_key": "a.pdf~two"}, {"note": "nobody's"}):
        for replacement in (CONTENTS["small"], CONTENTS["large"], b"else"):
            with pytest.raises(PathTakenError, match=r"a\.pdf~one"):
                put(store, tmp_path, replacement, trace_id="t", source_url="http://h/a.pdf", **other)
    assert read(store) == content
    assert store.metadata("claims/2026/t1/a.pdf")["attachment_key"] == "a.pdf~one"
    put(store, tmp_path, b"its own new content", attachment_key="a.pdf~one")
    assert read(store) == b"its own new content"


def test_a_file_that_is_no_attachment_s_is_left_alone(store: AttachmentStore, tmp_path: Path) -> None:
    put(store, tmp_path, b"of another program", note="nobody's")
    with pytest.raises(PathTakenError, match="no attachment's"):
        put(store, tmp_path, b"else", attachment_key=f"a.pdf~{'0' * 32}")
    assert read(store) == b"of another program"


def test_a_file_stored_before_files_had_owners_is_replaced_by_its_own_attachment_alone(
    store: AttachmentStore, tmp_path: Path
) -> None:
    earlier = {"trace_id": "t", "source_url": "http://h/a.pdf?sig=1"}
    put(store, tmp_path, b"earlier", **earlier)
    for other in (
        {**earlier, "attachment_key": f"a.pdf~{'0' * 32}"},
        {**earlier, "attachment_key": "a.pdf~0123456789ab", "trace_id": "other"},
    ):
        with pytest.raises(PathTakenError):
            put(store, tmp_path, b"else", **other)
    put(store, tmp_path, b"replayed", attachment_key="a.pdf~0123456789ab", **earlier)
    assert read(store) == b"replayed"


def test_of_attachments_that_want_one_name_at_once_one_gets_it(store: AttachmentStore, tmp_path: Path) -> None:
    contents = {f"a.pdf~{number}": bytes([number]) * (number * CHUNK) for number in range(1, 7)}
    refused: list[str] = []

    def try_to_put(key: str) -> None:
        try:
            put(store, tmp_path, contents[key], attachment_key=key)
        except PathTakenError:
            refused.append(key)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(try_to_put, contents))
    (winner,) = contents.keys() - set(refused)
    assert store.metadata("claims/2026/t1/a.pdf")["attachment_key"] == winner
    assert read(store) == contents[winner]


def test_names_of_any_script_are_kept(store: AttachmentStore, tmp_path: Path) -> None:
    for name in ("a b/Größe 日本 %41 #1.pdf", "x/😀.pdf", "plain"):
        stored = put(store, tmp_path, name.encode(), name)
        assert read(store, name) == name.encode()
        assert store.stat(name) == stored


@pytest.mark.parametrize(
    "destination",
    ["../out", "a/../../out", "/etc/out", "", "a//b", "a/./b", "a\\b", "a\x00b", ".hidden", "a/.b.json", "n" * 300],
)
def test_a_destination_that_leads_out_or_is_hidden_is_refused(
    store: AttachmentStore, tmp_path: Path, destination: str
) -> None:
    with pytest.raises(ForbiddenPathError):
        put(store, tmp_path, b"x", destination)
    with pytest.raises(ForbiddenPathError):
        store.stat(destination)
    with pytest.raises(ForbiddenPathError):
        store.open(destination)


def test_a_file_in_the_way_of_a_folder_is_refused_for_good(store: AttachmentStore, tmp_path: Path) -> None:
    put(store, tmp_path, b"x", "a/b")
    with pytest.raises(PermanentError):
        put(store, tmp_path, b"y", "a/b/c")
    with pytest.raises(PermanentError):
        put(store, tmp_path, b"y", "a")
    assert read(store, "a/b") == b"x"


@pytest.mark.parametrize("content", [CONTENTS["small"], CONTENTS["large"]], ids=["small", "large"])
def test_a_local_file_that_is_not_what_was_announced_is_not_stored(
    store: AttachmentStore, tmp_path: Path, content: bytes
) -> None:
    local = tmp_path / "download"
    local.write_bytes(content)
    with pytest.raises(SourceChangedError, match="bytes"):
        store.put(local, "a", size_bytes=len(content) + 1, sha256=digest(content), metadata={})
    with pytest.raises(SourceChangedError, match="content"):
        store.put(local, "a", size_bytes=len(content), sha256=digest(b"other"), metadata={})
    with pytest.raises(SourceNotFoundError):
        store.put(tmp_path / "none", "a", size_bytes=1, sha256="", metadata={})
    assert store.stat("a") is None


def test_what_is_not_there_is_told_as_such(store: AttachmentStore, tmp_path: Path) -> None:
    assert store.stat("none/at/all") is None
    with pytest.raises(SourceNotFoundError):
        store.open("none/at/all")
    with pytest.raises(SourceNotFoundError):
        store.metadata("none/at/all")
    put(store, tmp_path, b"x", "folder/file")
    assert store.stat("folder") is None


def test_many_threads_store_at_once(store: AttachmentStore, tmp_path: Path) -> None:
    contents = {f"t{number}/f.bin": os.urandom(number * CHUNK // 4) for number in range(16)}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: put(store, tmp_path, contents[name], name), contents))
    assert {name: read(store, name) for name in contents} == contents


def test_writers_of_one_name_leave_one_whole_file_of_theirs(store: AttachmentStore, tmp_path: Path) -> None:
    contents = [bytes([number]) * (3 * CHUNK) for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda content: put(store, tmp_path, content), contents))
    assert read(store) in contents


def test_only_what_is_older_than_asked_for_is_swept(store: AttachmentStore, tmp_path: Path) -> None:
    put(store, tmp_path, CONTENTS["large"])
    assert store.remove_orphaned(timedelta(0)) == 0
    assert read(store) == CONTENTS["large"]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("s3://bucket/x", SettingsError),
        ("https://evil.example/workspace/x", ForbiddenPathError),
        ("analytics/lake.Lakehouse", ForbiddenPathError),
        ("ftp://host/x", SettingsError),
    ],
)
def test_a_place_that_cannot_be_a_store_is_refused(url: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        open_attachment_store(url)
