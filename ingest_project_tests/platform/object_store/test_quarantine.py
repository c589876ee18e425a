"""The promises of the quarantine store, the same in a folder, in S3 and in OneLake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.core.local_files import LocalFile
from ingest_project.platform.object_store import open_store
from ingest_project.platform.object_store.content_store import LandingStore, QuarantineStore, safe_name
from ingest_project.testing.stores import local_file
from ingest_project_tests.services.object_stores import StoreLocation

REASON = {
    "rule": "missing_column",
    "detail": "There is no column 'value'.",
    "kafka": {"offset": 7},
    "when": "2026-01-15",
}


@pytest.fixture
def quarantine(store_location: StoreLocation) -> QuarantineStore:
    return QuarantineStore(store_location.open())


def content_of(quarantine: QuarantineStore, file_key: str) -> bytes:
    with quarantine.local_path(file_key) as path:
        return path.read_bytes()


def test_a_refused_file_is_kept_with_its_reason(quarantine: QuarantineStore) -> None:
    put = quarantine.put("a.csv~1", b"bytes\x00", REASON)
    assert quarantine.get("a.csv~1") == put
    assert put.reason == REASON
    assert put.location.endswith("a.csv~1")
    assert content_of(quarantine, "a.csv~1") == b"bytes\x00"


def test_a_file_that_is_not_in_quarantine_has_no_reason(quarantine: QuarantineStore) -> None:
    assert quarantine.get("a.csv~1") is None


def test_putting_again_replaces_bytes_and_reason(
    quarantine: QuarantineStore, store_location: StoreLocation, tmp_path: Path
) -> None:
    landed = local_file(tmp_path, b"first")
    quarantine.put("a", landed, REASON)
    names = store_location.names()
    quarantine.put("a", landed, REASON)
    # As long as the first ones: only the content distinguishes them.
    quarantine.put("a", b"other", REASON | {"when": "2026-01-16"})
    assert landed.path.read_bytes() == b"first"
    assert content_of(quarantine, "a") == b"other"
    found = quarantine.get("a")
    assert found
    assert found.reason["when"] == "2026-01-16"
    assert store_location.names() == names == ["a", "a.json"]


def test_removing_leaves_the_others_and_removing_again_changes_nothing(
    quarantine: QuarantineStore, store_location: StoreLocation
) -> None:
    for key in ("a", "b"):
        quarantine.put(key, b"1", REASON)
    quarantine.remove("a")
    quarantine.remove("a")
    assert quarantine.get("a") is None
    assert store_location.names() == ["b", "b.json"]


def test_any_file_key_is_safe(quarantine: QuarantineStore) -> None:
    keys = ("Messung_Größe_温度.csv~1", "../../etc/passwd", ".hidden", "a.json", "a b%20c?*:|", "ü" * 90 + "~1", "x/y")
    for file_key in keys:
        quarantine.put(file_key, b"1", REASON)
        found = quarantine.get(file_key)
        assert found
        assert found.file_key == file_key
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
    landing = LandingStore(open_store(str(tmp_path / "landing")))
    quarantine = QuarantineStore(open_store(str(tmp_path / "quarantine")))
    landed = landing.land(iter([b"content"]))
    with landing.local_path(landed.sha256) as path:
        quarantine.put("a", LocalFile(path, landed.size_bytes, landed.sha256), REASON)
        assert (tmp_path / "quarantine" / "a").samefile(path)
        quarantine.remove("a")
        assert path.read_bytes() == b"content"
