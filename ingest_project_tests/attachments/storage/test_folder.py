"""What the attachment store in a folder promises of links, kills and disks."""

from __future__ import annotations

import os
import resource
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from ingest_project.attachments.resources import open_attachment_store
from ingest_project.attachments.storage.store import AttachmentStore, PathTakenError, StoredAttachment
from ingest_project.core.errors import ForbiddenPathError, SourceChangedError, StoreUnavailableError
from ingest_project.platform.object_store.files import FileFingerprint
from ingest_project_tests.attachments.storage.samples import digest, put, read


@pytest.fixture
def folder(tmp_path: Path) -> AttachmentStore:
    return open_attachment_store(str(tmp_path / "store"))


def test_the_bytes_are_linked_and_not_copied_where_that_is_possible(folder: AttachmentStore, tmp_path: Path) -> None:
    local = tmp_path / "download"
    local.write_bytes(b"x")
    stored = folder.put(local, "a", size_bytes=1, sha256=digest(b"x"), metadata={})
    assert local.samefile(stored.path)
    local.unlink()
    assert read(folder, "a") == b"x"


def test_a_file_that_still_has_its_seal_is_taken_over_unread(folder: AttachmentStore, tmp_path: Path) -> None:
    local = tmp_path / "download"
    local.write_bytes(b"x")
    seal = FileFingerprint.of(local.stat())
    folder.put(local, "a", size_bytes=1, sha256="as announced", metadata={}, seal=seal)
    assert folder.stat("a") == StoredAttachment(str(tmp_path / "store" / "a"), 1, "as announced")


@pytest.mark.parametrize("change", ["written to", "replaced"])
def test_a_file_that_lost_its_seal_is_read_and_refused(folder: AttachmentStore, tmp_path: Path, change: str) -> None:
    local, other = tmp_path / "download", tmp_path / "other"
    local.write_bytes(b"x")
    seal = FileFingerprint.of(local.stat())
    if change == "written to":
        local.write_bytes(b"y")
        # Within one tick of the file system's clock two writes have the same time.
        os.utime(local, ns=(0, seal.modified_ns + 1))
    else:
        other.write_bytes(b"y")
        other.replace(local)
    with pytest.raises(SourceChangedError):
        folder.put(local, "a", size_bytes=1, sha256=digest(b"x"), metadata={}, seal=seal)
    assert folder.stat("a") is None


def test_a_symbolic_link_and_another_file_system_are_copied_from(folder: AttachmentStore, tmp_path: Path) -> None:
    shared = Path("/dev/shm")  # noqa: S108 - another file system, nothing is left there
    real = (shared if shared.is_dir() else tmp_path) / f"attachment-{os.getpid()}"
    real.write_bytes(b"x" * 3_000_000)
    link = tmp_path / "link"
    link.symlink_to(real)
    try:
        for local in (real, link):
            stored = folder.put(local, local.name, size_bytes=3_000_000, sha256=digest(b"x" * 3_000_000), metadata={})
            assert not Path(stored.path).is_symlink()
            assert read(folder, local.name) == b"x" * 3_000_000
    finally:
        real.unlink()


def test_a_link_that_leads_out_of_the_store_is_not_followed(folder: AttachmentStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "store" / "link").symlink_to(outside)
    (tmp_path / "store" / "file").symlink_to(outside / "secret")
    for destination in ("link/secret", "link/new/x", "file"):
        with pytest.raises(ForbiddenPathError, match="link"):
            put(folder, tmp_path, b"x", destination)
        with pytest.raises(ForbiddenPathError, match="link"):
            folder.open(destination)
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_kill_between_the_description_and_its_file_is_noticed(folder: AttachmentStore, tmp_path: Path) -> None:
    put(folder, tmp_path, b"old content", "a")
    (tmp_path / "store" / ".a.json").write_text(
        '{"content": [3, 1], "metadata": {"sha256": "that of a new file"}}', encoding="utf-8"
    )
    stored = folder.stat("a")
    assert stored
    assert stored.sha256 == digest(b"old content")
    put(folder, tmp_path, b"old content", "a")
    assert folder.metadata("a")["sha256"] == digest(b"old content")


def test_a_name_belongs_to_the_attachment_that_was_killed_before_its_file_was_there(
    folder: AttachmentStore, tmp_path: Path
) -> None:
    (tmp_path / "store" / ".a.json").write_text(
        '{"content": [3, 1], "metadata": {"sha256": "0", "attachment_key": "a~one"}}', encoding="utf-8"
    )
    with pytest.raises(PathTakenError, match="a~one"):
        put(folder, tmp_path, b"of another", "a", attachment_key="a~two")
    assert folder.stat("a") is None
    put(folder, tmp_path, b"its own", "a", attachment_key="a~one")
    assert read(folder, "a") == b"its own"
    assert not list((tmp_path / "store" / ".uploading").iterdir())


def test_what_a_killed_process_left_is_swept(folder: AttachmentStore, tmp_path: Path) -> None:
    rest = tmp_path / "store" / ".uploading" / "0123"
    rest.write_bytes(b"half")
    assert folder.remove_orphaned(timedelta(hours=1)) == 0
    assert folder.remove_orphaned(timedelta(seconds=-5)) == 1
    assert not rest.exists()


def test_a_failure_leaves_no_temporary_file(folder: AttachmentStore, tmp_path: Path) -> None:
    local = tmp_path / "download"
    local.write_bytes(b"x")
    with pytest.raises(SourceChangedError):
        folder.put(local, "a/b", size_bytes=1, sha256="0" * 64, metadata={})
    assert not list((tmp_path / "store" / ".uploading").iterdir())


def test_a_full_disk_is_the_store_s_failure(tmp_path: Path) -> None:
    local = Path("/dev/shm") / f"attachment-{os.getpid()}-full"  # noqa: S108 - not linkable to tmp_path
    if not local.parent.is_dir():
        pytest.skip("This machine has no second file system to copy from.")
    store = open_attachment_store(str(tmp_path / "store"), sync=True)
    local.write_bytes(bytes(100_000))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limit[1]))
    try:
        with pytest.raises(StoreUnavailableError):
            store.put(local, "a", size_bytes=100_000, sha256=digest(bytes(100_000)), metadata={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
        local.unlink()
    assert store.stat("a") is None
    assert put(store, tmp_path, b"x", "a").size_bytes == 1
