"""What the landing store promises, the same in a folder and on S3."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_project.core.errors import SettingsError, SourceChangedError, SourceNotFoundError, StoreUnavailableError
from ingest_project.platform.object_store.content_store import LandingStore, open_landing
from ingest_project.platform.object_store.locations import S3Options, bucket_errors, location_of, s3_client

LARGE = 20 * 1024**2 + 17
LAND_LARGE = """
import sys, resource
from ingest_project.platform.object_store.content_store import open_landing
store = open_landing(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.land(bytes(1024**2) for _ in range(300))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
HANG = """
import sys
from ingest_project.platform.object_store.content_store import open_landing
def pieces():
    yield b"first"
    print("half-way", flush=True)
    sys.stdin.readline()
open_landing(sys.argv[1]).land(pieces())
"""


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "landing")
    address: str = request.getfixturevalue("s3_url")
    return address


@pytest.fixture
def landing(url: str, s3_options: S3Options) -> LandingStore:
    return open_landing(url, s3_options)


def stored(url: str, s3_options: S3Options) -> list[str]:
    """Every file or object of the store, temporary ones too."""
    place = location_of(url)
    if isinstance(place, Path):
        return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    listing = s3_client(s3_options).list_objects_v2(Bucket=place.name, Prefix=place.prefix)
    return sorted(entry["Key"].removeprefix(place.prefix) for entry in listing.get("Contents", []))


@pytest.mark.parametrize(
    "content", [b"", b"a,b\r\n1,2\r\n\x00\xff", os.urandom(LARGE)], ids=["empty", "small", "large"]
)
def test_bytes_come_back_unchanged_under_the_hash_of_their_content(
    landing: LandingStore, url: str, s3_options: S3Options, content: bytes
) -> None:
    landed = landing.land(io.BytesIO(content), expected_size=len(content))
    assert landed.sha256 == hashlib.sha256(content).hexdigest()
    assert landed.size_bytes == len(content)
    assert landed.path.endswith(landed.sha256)
    with landing.open(landed.sha256) as stream:
        assert stream.read() == content
    with landing.local_path(landed.sha256) as path:
        assert path.read_bytes() == content
    assert landing.find(landed.sha256) == landed._replace(landed_before=True)
    assert stored(url, s3_options) == [f"{landed.sha256[:2]}/{landed.sha256}"]


@pytest.mark.parametrize("size", [100, LARGE])
def test_landing_again_changes_nothing(landing: LandingStore, url: str, s3_options: S3Options, size: int) -> None:
    content = os.urandom(size)
    first = landing.land(io.BytesIO(content))
    assert landing.land(content[start : start + 999] for start in range(0, size, 999)) == first
    assert len(stored(url, s3_options)) == 1


@pytest.mark.parametrize("announced", [3, 5, LARGE])
def test_a_file_of_another_size_than_announced_is_refused_and_not_kept(
    landing: LandingStore, url: str, s3_options: S3Options, announced: int
) -> None:
    with pytest.raises(SourceChangedError, match=r"sftp://host/a\.csv changed"):
        landing.land(io.BytesIO(b"four"), expected_size=announced, location="sftp://host/a.csv")
    assert stored(url, s3_options) == []


def test_a_large_file_that_was_cut_is_refused_and_not_kept(
    landing: LandingStore, url: str, s3_options: S3Options
) -> None:
    with pytest.raises(SourceChangedError):
        landing.land(io.BytesIO(bytes(LARGE)), expected_size=LARGE + 1)
    assert stored(url, s3_options) == []


def test_the_checksum_of_the_source_is_verified(landing: LandingStore, url: str, s3_options: S3Options) -> None:
    digest = hashlib.md5(b"four", usedforsecurity=False).hexdigest()
    landing.land(io.BytesIO(b"four"), expected_md5=digest.upper())
    with pytest.raises(SourceChangedError, match="checksum"):
        landing.land(io.BytesIO(b"fire"), expected_md5=digest)
    assert len(stored(url, s3_options)) == 1


@pytest.mark.parametrize("size", [1, LARGE])
def test_a_source_that_breaks_off_leaves_nothing_and_its_own_error_comes_through(
    landing: LandingStore, url: str, s3_options: S3Options, size: int
) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(size)
        raise ConnectionResetError("the source went away")

    with pytest.raises(ConnectionResetError):
        landing.land(pieces())
    assert stored(url, s3_options) == []


def test_content_that_was_never_landed_is_missing(landing: LandingStore) -> None:
    assert landing.find("00" * 32) is None
    with pytest.raises(SourceNotFoundError):
        landing.open("00" * 32)
    with pytest.raises(SourceNotFoundError), landing.local_path("00" * 32):
        pass


def test_a_large_file_needs_little_memory(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LAND_LARGE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 30, "MiB more than before, for a file of 300 MiB"


def test_a_process_killed_while_it_copies_leaves_nothing_that_counts_and_it_is_cleared_away(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANG, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    (left,) = (tmp_path / "incoming").iterdir()
    open_landing(str(tmp_path))
    assert left.exists(), "a file somebody may still be writing"
    two_days_ago = time.time() - 2 * 86_400
    os.utime(left, (two_days_ago, two_days_ago))
    open_landing(str(tmp_path))
    assert not left.exists()


def test_a_file_that_a_power_cut_left_short_is_landed_anew(tmp_path: Path) -> None:
    landing = open_landing(str(tmp_path))
    path = Path(landing.land(io.BytesIO(b"content")).path)
    path.chmod(0o644)
    path.write_bytes(b"")
    landing.land(io.BytesIO(b"content"))
    assert path.read_bytes() == b"content"


def test_a_thousand_small_files_take_less_than_a_second(tmp_path: Path) -> None:
    landing = open_landing(str(tmp_path))
    contents = [os.urandom(8) * 5_000 for _ in range(1_000)]
    before = resource.getrusage(resource.RUSAGE_SELF)
    for content in contents:
        landing.land(io.BytesIO(content), expected_size=len(content))
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path, s3_options: S3Options) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailableError, match="cannot be used"):
        open_landing(str(tmp_path / "file"))
    with pytest.raises(StoreUnavailableError, match="NoSuchBucket"):
        open_landing("s3://no-such-bucket/x", s3_options).land(io.BytesIO(b"1"))


def test_an_s3_server_that_is_away_says_so() -> None:
    options = S3Options("http://127.0.0.1:1", "us-east-1", "key", "secret")
    place = location_of("s3://bucket/x")
    assert not isinstance(place, Path)
    with pytest.raises(StoreUnavailableError), bucket_errors(place):
        s3_client(options).head_bucket(Bucket="bucket")


def test_addresses_that_are_no_stores_are_settings_to_mend(tmp_path: Path) -> None:
    for wrong in ("s3://", "gopher://x/y"):
        with pytest.raises(SettingsError):
            open_landing(wrong)
    assert location_of(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
