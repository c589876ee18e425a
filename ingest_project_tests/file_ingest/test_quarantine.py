"""What the quarantine store promises, the same in a folder and on S3."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.platform.object_store.content_store import open_landing
from ingest_project.platform.object_store.locations import S3Options
from ingest_project.platform.object_store.quarantine import QuarantineStore, open_quarantine, safe_name

REASON = {
    "rule": "missing_column",
    "detail": "There is no column 'value'.",
    "kafka": {"offset": 7},
    "when": "2026-01-15",
}


@pytest.fixture(params=["folder", "s3"])
def quarantine(request: pytest.FixtureRequest, tmp_path: Path, s3_options: S3Options) -> QuarantineStore:
    if request.param == "folder":
        return open_quarantine(str(tmp_path / "quarantine"))
    return open_quarantine(request.getfixturevalue("s3_url"), s3_options)


def content_of(quarantine: QuarantineStore, file_key: str) -> bytes:
    with quarantine.open(file_key) as stream:
        return stream.read()


def test_a_refused_file_is_kept_with_its_reason(quarantine: QuarantineStore) -> None:
    put = quarantine.put("a.csv~1", io.BytesIO(b"bytes\x00"), REASON)
    assert quarantine.get("a.csv~1") == put
    assert put.reason == REASON
    assert put.location.endswith("a.csv~1")
    assert content_of(quarantine, "a.csv~1") == b"bytes\x00"


def test_a_file_that_is_not_in_quarantine_has_no_reason(quarantine: QuarantineStore) -> None:
    assert quarantine.get("a.csv~1") is None
    assert list(quarantine.list()) == []


def test_putting_again_replaces_bytes_and_reason(quarantine: QuarantineStore, tmp_path: Path) -> None:
    landing = open_landing(str(tmp_path / "landing"))
    landed = landing.land(io.BytesIO(b"first"))
    with landing.local_path(landed.sha256) as path:
        quarantine.put("a", path, REASON)
        quarantine.put("a", path, REASON)
        quarantine.put("a", io.BytesIO(b"second"), {"rule": "no_rows"})
        assert path.read_bytes() == b"first"
    assert content_of(quarantine, "a") == b"second"
    assert [found.reason for found in quarantine.list()] == [{"rule": "no_rows"}]


def test_removing_leaves_the_others_and_removing_again_changes_nothing(quarantine: QuarantineStore) -> None:
    for key in ("a", "b"):
        quarantine.put(key, io.BytesIO(b"1"), REASON)
    quarantine.remove("a")
    quarantine.remove("a")
    assert quarantine.get("a") is None
    assert [found.file_key for found in quarantine.list()] == ["b"]


@pytest.mark.parametrize(
    "file_key",
    ["Messung_Größe_温度.csv~1", "../../etc/passwd", ".hidden", "a.json", "a b%20c?*:|", "ü" * 90 + "~1", "x/y"],
)
def test_any_file_key_is_safe(quarantine: QuarantineStore, file_key: str) -> None:
    quarantine.put(file_key, io.BytesIO(b"1"), REASON)
    assert [found.file_key for found in quarantine.list()] == [file_key]
    assert content_of(quarantine, file_key) == b"1"
    quarantine.remove(file_key)
    assert quarantine.get(file_key) is None


@given(st.text(), st.text())
def test_different_keys_have_different_names_that_every_system_takes(first: str, second: str) -> None:
    names = safe_name(first), safe_name(second)
    assert (first == second) == (names[0] == names[1])
    for name in names:
        assert len(name) < 220
        assert "/" not in name
        assert not name.startswith(".")
        assert not name.endswith(".json")


def test_a_landed_file_is_not_copied_on_the_same_disk(tmp_path: Path) -> None:
    landing = open_landing(str(tmp_path / "landing"))
    quarantine = open_quarantine(str(tmp_path / "quarantine"))
    landed = landing.land(io.BytesIO(b"content"))
    with landing.local_path(landed.sha256) as path:
        quarantine.put("a", path, REASON)
        assert (tmp_path / "quarantine" / "a").samefile(path)
        quarantine.remove("a")
        assert path.read_bytes() == b"content"


def test_no_temporary_name_stays(tmp_path: Path) -> None:
    quarantine = open_quarantine(str(tmp_path))
    source = tmp_path / "source"
    source.write_bytes(b"1")
    for _ in range(2):
        quarantine.put("a", source, REASON)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.json", "source"]
