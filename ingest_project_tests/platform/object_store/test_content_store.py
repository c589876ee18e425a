"""The promises of the landing store, the same in a folder, in S3 and in OneLake."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ingest_project.core.errors import SourceChangedError, SourceNotFoundError
from ingest_project.platform.object_store import open_store
from ingest_project.platform.object_store.content_store import LandingStore
from ingest_project.platform.object_store.s3 import PART_BYTES
from ingest_project_tests.services.memory import with_peak_memory
from ingest_project_tests.services.object_stores import StoreLocation

# More than one part of S3.
LARGE = PART_BYTES + 1024**2 + 17
HANG = """
import sys
from ingest_project.platform.object_store.content_store import LandingStore
from ingest_project.platform.object_store import open_store
def pieces():
    yield bytes(2 * 1024**2)
    yield b"second"
    print("half-way", flush=True)
    sys.stdin.readline()
LandingStore(open_store(sys.argv[1])).land(pieces())
"""


@pytest.fixture
def landing(store_location: StoreLocation) -> LandingStore:
    return LandingStore(store_location.open())


def open_landing(folder: Path) -> LandingStore:
    return LandingStore(open_store(str(folder)))


@pytest.mark.parametrize(
    "content", [b"", b"a,b\r\n1,2\r\n\x00\xff", os.urandom(LARGE)], ids=["empty", "small", "large"]
)
def test_bytes_come_back_unchanged_under_the_hash_of_their_content(
    landing: LandingStore, store_location: StoreLocation, content: bytes
) -> None:
    landed = landing.land(io.BytesIO(content), expected_size=len(content))
    assert landed.sha256 == hashlib.sha256(content).hexdigest()
    assert landed.size_bytes == len(content)
    assert landed.path.endswith(landed.sha256)
    with landing.local_path(landed.sha256) as path:
        assert path.read_bytes() == content
    assert landing.find(landed.sha256) == landed._replace(landed_before=True)
    assert store_location.names() == [f"{landed.sha256[:2]}/{landed.sha256}"]


@pytest.mark.parametrize("size", [100, LARGE])
def test_landing_again_changes_nothing(landing: LandingStore, store_location: StoreLocation, size: int) -> None:
    content = os.urandom(size)
    first = landing.land(io.BytesIO(content))
    assert landing.land(content[start : start + 999] for start in range(0, size, 999)) == first
    assert len(store_location.names()) == 1


@pytest.mark.parametrize("announced", [3, 5, LARGE])
def test_a_file_of_another_size_than_announced_is_refused_and_not_kept(
    landing: LandingStore, store_location: StoreLocation, announced: int
) -> None:
    with pytest.raises(SourceChangedError, match=r"sftp://host/a\.csv changed"):
        landing.land(io.BytesIO(b"four"), expected_size=announced, location="sftp://host/a.csv")
    assert store_location.names() == []


def test_a_large_file_that_was_cut_is_refused_and_not_kept(
    landing: LandingStore, store_location: StoreLocation
) -> None:
    with pytest.raises(SourceChangedError):
        landing.land(io.BytesIO(bytes(LARGE)), expected_size=LARGE + 1)
    assert store_location.names() == []


@pytest.mark.parametrize("size", [1, LARGE])
def test_a_source_that_breaks_off_leaves_nothing_and_its_own_error_comes_through(
    landing: LandingStore, store_location: StoreLocation, size: int
) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(size)
        raise ConnectionResetError("the source went away")

    with pytest.raises(ConnectionResetError):
        landing.land(pieces())
    assert store_location.names() == []


def test_content_that_was_never_landed_is_missing(landing: LandingStore) -> None:
    assert landing.find("00" * 32) is None
    with pytest.raises(SourceNotFoundError), landing.local_path("00" * 32):
        pass


def test_a_large_file_needs_little_memory(tmp_path: Path) -> None:
    landing = open_landing(tmp_path)
    landed, grown_bytes = with_peak_memory(lambda: landing.land(bytes(1024**2) for _ in range(100)))
    assert landed.size_bytes == 100 * 1024**2
    assert grown_bytes < 30 * 1024**2


def test_a_process_killed_while_it_copies_leaves_nothing_that_counts_and_it_is_cleared_away(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANG, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    (left,) = (path for path in tmp_path.rglob("*") if path.is_file())
    store = open_store(str(tmp_path))
    assert left.exists(), "a file somebody may still be writing"
    assert store.remove_orphaned(timedelta(seconds=-5)) == 1
    assert not left.exists()


def test_a_file_that_a_power_cut_left_short_is_landed_again(tmp_path: Path) -> None:
    landing = open_landing(tmp_path)
    path = Path(landing.land(io.BytesIO(b"content")).path)
    path.chmod(0o644)
    path.write_bytes(b"")
    landing.land(io.BytesIO(b"content"))
    assert path.read_bytes() == b"content"


def test_a_thousand_small_files_take_less_than_a_second(tmp_path: Path) -> None:
    landing = open_landing(tmp_path)
    contents = [os.urandom(8) * 5_000 for _ in range(1_000)]
    before = resource.getrusage(resource.RUSAGE_SELF)
    for content in contents:
        landing.land(io.BytesIO(content), expected_size=len(content))
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
