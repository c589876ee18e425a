"""Maintenance of a Delta table: fewer files, the same rows, and no conflict with other writers."""

from __future__ import annotations

import os
import time
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake.exceptions import CommitFailedError

from ingest_project.core.settings import DeltaSettings
from ingest_project.platform.delta.maintenance import Maintenance, _claimed, optimize_and_vacuum, summary
from ingest_project.platform.delta.table import Committed, DeltaStore
from ingest_project_tests.platform.delta.delta_log_reader import live_files, rows_of
from ingest_project_tests.platform.delta.test_append import numbers, store_at, together

pytestmark = pytest.mark.long

# Less than a setting may be.
AT_ONCE = DeltaSettings().model_copy(update={"retention_hours": 0})
EAGER = DeltaSettings(min_small_files=2)
EIGHT_DAYS_SECONDS = 8 * 86_400


def fill(store: DeltaStore, commits: int, start: int = 0) -> None:
    for version in range(start, start + commits):
        assert isinstance(store.append(numbers(version), app_id="topic-0", version=version), Committed)


def kept(store: DeltaStore, limits: DeltaSettings | None = None) -> Maintenance:
    done = optimize_and_vacuum(store, limits)
    assert done is not None
    return done


def keep_nothing_expired(store: DeltaStore) -> None:
    """Let the table itself allow what no limit of ours may: to remove files that a reader may still need."""
    table = store.opened()
    assert table is not None
    table.alter.set_table_properties({"delta.deletedFileRetentionDuration": "interval 0 hours"})


def test_small_files_are_merged_and_the_rows_and_positions_stay(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    fill(store, 30)
    done = kept(store)
    assert (done.before.files, done.after.files, done.after.rows) == (30, 1, 30)
    assert done.compacted == [""]
    assert summary(done) == "30 files became 1; 0 were removed."
    assert sorted(rows_of(tmp_path)["n"].to_pylist()) == list(range(30))
    assert store.committed_version("topic-0") == store_at(tmp_path).committed_version("topic-0") == 29
    fill(store, 1, start=30)


def test_a_table_that_is_not_there_needs_no_maintenance(tmp_path: Path) -> None:
    done = optimize_and_vacuum(store_at(tmp_path / "none"))
    assert done is None
    assert summary(done) == "There is no table yet."


def test_maintenance_of_a_healthy_table_writes_nothing_to_its_log(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    fill(store, 12)
    kept(store)
    again = kept(store)
    assert again.before == again.after
    assert again.compacted == []


def test_only_partitions_with_many_small_files_are_merged_whatever_their_values_are(tmp_path: Path) -> None:
    store = store_at(tmp_path, "day", "domain", "late")
    day = date(2026, 1, 15)
    for version in range(10):
        data = pa.table(
            {
                "day": pa.array([day, day, None] + [date(2026, 1, 16)] * (version == 0)),
                "domain": ["claims", "a b/ä=%'", None] + ["few"] * (version == 0),
                "n": [version] * (3 + (version == 0)),
                "late": pa.array([True, False, None] + [True] * (version == 0)),
            }
        )
        store.append(data, app_id="a", version=version)
    done = kept(store)
    assert sorted(done.compacted) == [
        "day=2026-01-15/domain=a b/ä=%'/late=false",
        "day=2026-01-15/domain=claims/late=true",
        "day=None/domain=None/late=None",
    ]
    assert (done.before.files, done.after.files, done.after.rows) == (31, 4, 31)


def test_vacuum_removes_expired_files_and_those_of_a_killed_writer(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    fill(store, 12)
    left = tmp_path / "part-00000-of-a-killed-writer.snappy.parquet"
    left.write_bytes(b"PAR1")
    busy = tmp_path / "part-00000-of-a-busy-writer.snappy.parquet"
    busy.write_bytes(b"PAR1")
    eight_days_ago = time.time() - EIGHT_DAYS_SECONDS
    os.utime(left, (eight_days_ago, eight_days_ago))
    assert kept(store).removed == [left.name]
    assert not left.exists()
    assert busy.exists()
    keep_nothing_expired(store)
    assert len(kept(store, AT_ONCE).removed) == 13
    assert [path.name for path in tmp_path.glob("*.parquet")] == list(live_files(tmp_path))
    assert rows_of(tmp_path).num_rows == 12


def test_the_log_is_truncated_to_its_retention(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    fill(store, 20)
    log = tmp_path / "_delta_log"
    eight_days_ago = time.time() - EIGHT_DAYS_SECONDS
    kept(store)
    for entry in log.iterdir():
        os.utime(entry, (eight_days_ago, eight_days_ago))
    behind = store_at(tmp_path)
    assert behind.committed_version("topic-0") == 19
    fill(store, 12, start=20)
    kept(store)
    assert len(list(log.glob("*.json"))) < 20
    assert behind.committed_version("topic-0") == 31
    assert store_at(tmp_path).committed_version("topic-0") == 31
    assert sorted(rows_of(tmp_path)["n"].to_pylist()) == list(range(32))


def test_maintenance_that_is_out_of_time_puts_the_rest_off(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    fill(store, 12)
    done = kept(store, DeltaSettings().model_copy(update={"time_limit_seconds": -1}))
    assert (done.compacted, done.postponed) == ([], [""])
    assert done.after.rows == 12


def test_a_later_maintenance_stops_an_earlier_one_that_is_still_at_it(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    fill(store, 12)
    earlier, later = store.opened(), store.opened()
    assert earlier is not None
    assert later is not None
    _claimed(earlier)
    _claimed(later)
    later.optimize.compact()
    with pytest.raises(CommitFailedError, match="Metadata changed"):
        earlier.optimize.compact()
    assert sorted(rows_of(tmp_path)["n"].to_pylist()) == list(range(12))


def test_maintenance_runs_and_writers_at_once_neither_lose_nor_double_a_row(tmp_path: Path) -> None:
    fill(store_at(tmp_path), 20)

    def keep() -> None:
        for _ in range(4):
            kept(store_at(tmp_path), EAGER)

    def append(stream: str) -> None:
        store = store_at(tmp_path)
        for version in range(25):
            store.append(numbers(1_000 + version), app_id=stream, version=version)

    together(keep, keep, lambda: append("a"), lambda: append("b"))
    found = sorted(rows_of(tmp_path)["n"].to_pylist())
    assert found == sorted([*range(20), *range(1_000, 1_025), *range(1_000, 1_025)])


def test_maintenance_keeps_a_commit_as_cheap_as_it_was(tmp_path: Path) -> None:
    store = store_at(tmp_path)

    def milliseconds(start: int) -> float:
        began = time.process_time()
        fill(store, 20, start)
        return (time.process_time() - began) * 50

    first = milliseconds(0)
    fill(store, 180, 20)
    kept(store)
    assert milliseconds(200) < 4 * first + 10
