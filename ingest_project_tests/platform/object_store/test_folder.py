"""The object store in a folder: links, kills and full disks."""

from __future__ import annotations

import os
import resource
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from ingest_project.core.errors import ForbiddenPathError, SourceChangedError, StoreUnavailableError
from ingest_project.core.local_files import FileFingerprint, LocalFile
from ingest_project.platform.object_store import open_store
from ingest_project.platform.object_store.store import UNFINISHED, ObjectStore, StoredObject
from ingest_project.testing.stores import digest, local_file, put, read


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store"))


def test_the_bytes_are_linked_and_not_copied_where_that_is_possible(folder: ObjectStore, tmp_path: Path) -> None:
    file = local_file(tmp_path, b"x")
    for _ in range(2):
        assert file.path.samefile(folder.put("a", file).location)
        assert not list(folder.scratch.iterdir()), "a rename onto another link to the same file leaves both"
    file.path.unlink()
    assert read(folder, "a") == b"x"


def test_nobody_can_change_a_stored_file_in_place(folder: ObjectStore, tmp_path: Path) -> None:
    for name, content in (("a", local_file(tmp_path, b"x")), ("b", b"x")):
        stored = folder.put(name, content, metadata={"note": "1"})
        assert Path(stored.location).stat().st_mode & 0o777 == 0o400


def test_a_file_with_its_fingerprint_is_linked_unread(folder: ObjectStore, tmp_path: Path) -> None:
    path = local_file(tmp_path, b"x").path
    folder.put("a", LocalFile(path, 1, "as announced", FileFingerprint.of(path.stat())))
    assert read(folder, "a") == b"x"


@pytest.mark.parametrize("change", ["written to", "replaced"])
def test_a_file_that_lost_its_fingerprint_is_read_and_refused(folder: ObjectStore, tmp_path: Path, change: str) -> None:
    path, other = local_file(tmp_path, b"x").path, tmp_path / "other"
    fingerprint = FileFingerprint.of(path.stat())
    if change == "written to":
        path.write_bytes(b"y")
        # Within one tick of the file system's clock two writes have the same time.
        os.utime(path, ns=(0, fingerprint.modified_ns + 1))
    else:
        other.write_bytes(b"y")
        other.replace(path)
    with pytest.raises(SourceChangedError):
        folder.put("a", LocalFile(path, 1, digest(b"x"), fingerprint))
    assert folder.stat("a") is None


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = local_file(tmp_path, b"xx").path
    fingerprint = FileFingerprint.of(path.stat())
    with LocalFile(path, 2, digest(b"xx"), fingerprint) as file:
        file.read(1)
        path.write_bytes(b"xy")
        os.utime(path, ns=(0, fingerprint.modified_ns + 1))
        with pytest.raises(SourceChangedError):
            file.finish()


def test_a_symbolic_link_and_another_file_system_are_copied_from(folder: ObjectStore, tmp_path: Path) -> None:
    content = b"x" * 3_000_000
    shared = Path("/dev/shm")  # noqa: S108 - another file system, nothing is left there
    real = (shared if shared.is_dir() else tmp_path) / f"object-{os.getpid()}"
    real.write_bytes(content)
    link = tmp_path / "link"
    link.symlink_to(real)
    try:
        for path in (real, link):
            stored = folder.put(path.name, LocalFile(path, len(content), digest(content)))
            assert not Path(stored.location).is_symlink()
            assert read(folder, path.name) == content
    finally:
        real.unlink()


def test_the_objects_of_a_folder_that_is_not_there_are_away_and_not_missing(tmp_path: Path) -> None:
    folder = open_store(str(tmp_path / "drive" / "landing"))
    stored = put(folder, tmp_path, b"1", "a/b")
    (tmp_path / "drive").rename(tmp_path / "unmounted")
    for use in (folder.stat, folder.remove, lambda name: folder.local_path(name).__enter__()):
        with pytest.raises(StoreUnavailableError, match="No such file or directory"):
            use("a/b")
    (tmp_path / "unmounted").rename(tmp_path / "drive")
    assert folder.stat("a/b") == stored
    assert folder.stat("a/c") is None


def test_a_link_that_leads_out_of_the_store_is_not_followed(folder: ObjectStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "store" / "link").symlink_to(outside)
    (tmp_path / "store" / "file").symlink_to(outside / "secret")
    for name in ("link/secret", "link/new/x", "file"):
        with pytest.raises(ForbiddenPathError, match="link"):
            put(folder, tmp_path, b"x", name)
        with pytest.raises(ForbiddenPathError, match="link"):
            read(folder, name)
        with pytest.raises(ForbiddenPathError, match="link"):
            folder.remove(name)
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_kill_between_the_description_and_its_file_is_noticed(folder: ObjectStore, tmp_path: Path) -> None:
    put(folder, tmp_path, b"old content", "a", metadata={"note": "old"})
    (tmp_path / "store" / ".a.json").chmod(0o600)
    (tmp_path / "store" / ".a.json").write_text('{"content": [3, 1], "metadata": {"note": "new"}}', encoding="utf-8")
    location = folder.location("a")
    assert folder.stat("a") == StoredObject(location, 11, {})
    seen: list[StoredObject] = []

    def look(present: StoredObject) -> bool:
        seen.append(present)
        return True

    put(folder, tmp_path, b"old content", "a", metadata={"note": "old"}, may_replace=look)
    assert seen[0] == StoredObject(location, UNFINISHED, {"note": "new"})
    assert folder.stat("a") == StoredObject(location, 11, {"note": "old"})


def test_a_name_belongs_to_the_writer_that_was_killed_before_its_file_was_there(
    folder: ObjectStore, tmp_path: Path
) -> None:
    claim = StoredObject(folder.location("a"), UNFINISHED, {"owner": "one"})
    (tmp_path / "store" / ".a.json").write_text('{"content": [3, 1], "metadata": {"owner": "one"}}', encoding="utf-8")
    assert put(folder, tmp_path, b"another's", "a", metadata={"owner": "two"}, may_replace=lambda _: False) == claim
    assert folder.stat("a") is None
    put(folder, tmp_path, b"its own", "a", metadata={"owner": "one"}, may_replace=lambda present: present == claim)
    assert read(folder, "a") == b"its own"
    assert not list(folder.scratch.iterdir())


def test_files_of_a_killed_process_are_swept_when_nobody_can_be_writing_them(
    folder: ObjectStore, tmp_path: Path
) -> None:
    rest = folder.scratch / "0123"
    rest.write_bytes(b"half")
    open_store(str(tmp_path / "store"))
    assert folder.remove_orphaned(timedelta(hours=1)) == 0
    assert rest.exists(), "a file somebody may still be writing"
    assert folder.remove_orphaned(timedelta(seconds=-5)) == 1
    assert not rest.exists()


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_full_disk_is_the_store_s_failure_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    path = Path("/dev/shm") / f"object-{os.getpid()}-full"  # noqa: S108 - not linkable to tmp_path
    if not path.parent.is_dir():
        pytest.skip("This machine has no second file system to copy from.")
    store = open_store(str(tmp_path / "store"))
    path.write_bytes(bytes(size))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(size - 1, 1_000), limit[1]))
    try:
        for content in (LocalFile(path, size, digest(bytes(size))), bytes(size)):
            with pytest.raises(StoreUnavailableError):
                store.put("a", content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
        path.unlink()
    assert store.stat("a") is None
    assert not list(store.scratch.iterdir())
    assert put(store, tmp_path, b"x", "a").size_bytes == 1
