"""Appends to a Delta table: each position once after any fault, and a table that any reader can read."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest_project.core.errors import StoreUnavailableError, TransactionConflictError
from ingest_project.platform.delta import delta_location
from ingest_project.platform.delta.table import AlreadyCommitted, Committed, DeltaStore, Standing, open_delta_table
from ingest_project_tests.fuzz import examples
from ingest_project_tests.platform.delta.delta_log_reader import live_files, rows_of

APPEND_FOR_EVER = """
import sys
import pyarrow as pa
from ingest_project.platform.delta.table import open_delta_table
rows = int(sys.argv[2])
data = pa.table({"n": range(rows), "text": [f"row {n}" for n in range(rows)]})
store = open_delta_table(sys.argv[1])
store.committed_version("topic-0")
print("ready", flush=True)
store.append(data, app_id="topic-0", version=1)
print("committed", flush=True)
sys.stdin.read()
"""
APPEND_WITH_REPEATS = """
import random, sys
import pyarrow as pa
from ingest_project.platform.delta.table import open_delta_table
choice = random.Random(int(sys.argv[2]))
store = open_delta_table(sys.argv[1])
for version in range(1, 9):
    for stream in choice.sample(["a", "b"], 2):
        for _ in range(choice.randrange(1, 3)):
            store.append(pa.table({"stream": [stream], "version": [version]}), app_id=stream, version=version)
"""


def store_at(folder: Path, *partition_by: str) -> DeltaStore:
    """A store that shares its handle with no other."""
    return DeltaStore(delta_location(str(folder)), partition_by)


def numbers(*values: int) -> pa.Table:
    return pa.table({"n": pa.array(values, pa.int64())})


def test_the_first_append_creates_the_table_and_a_repeated_one_changes_nothing(tmp_path: Path) -> None:
    store = store_at(tmp_path / "new" / "table")
    assert store.committed_version("topic-0") is None
    assert store.figures() is None
    assert store.append(numbers(1, 2), app_id="topic-0", version=10) == Committed(table_version=1, rows=2)
    for version in (10, 3):
        assert store.append(numbers(1, 2), app_id="topic-0", version=version) == AlreadyCommitted(10)
    assert store.committed_version("topic-0") == 10
    figures = store.figures()
    assert figures is not None
    assert (figures.table_version, figures.files, figures.rows) == (1, 1, 2)
    assert figures.size_bytes > 0


def test_streams_do_not_hinder_each_other(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for stream in ("topic-0", "topic-1"):
        assert isinstance(store.append(numbers(1), app_id=stream, version=1), Committed)
    assert rows_of(tmp_path).num_rows == 2


def test_no_rows_still_move_the_position(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.append(numbers(), app_id="topic-0", version=5)
    assert store.committed_version("topic-0") == 5
    assert live_files(tmp_path) == {}


def test_a_range_that_does_not_begin_at_the_tables_position_is_refused(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    with pytest.raises(TransactionConflictError, match="topic-0 is at None"):
        store.append(numbers(1), app_id="topic-0", version=20, after=10)
    store.append(numbers(1), app_id="topic-0", version=10, after=None)
    for planned in (None, 5, 15):
        with pytest.raises(TransactionConflictError, match="topic-0 is at 10"):
            store.append(numbers(2), app_id="topic-0", version=20, after=planned)
    store.append(numbers(2), app_id="topic-0", version=20, after=10)
    assert sorted(rows_of(tmp_path)["n"].to_pylist()) == [1, 2]


def test_every_type_reaches_an_independent_reader_unchanged(tmp_path: Path) -> None:
    at = datetime(2026, 1, 15, 10, 30, 45, 123456, UTC)
    rows = [
        {
            "id": "ä",
            "at": at,
            "data": {"form": {"a": 1}, "list": [{"x": 1.5}]},
            "tags": [("k", "v")],
            "day": "2026-01-15",
        },
        {"id": None, "at": None, "data": None, "tags": None, "day": None},
    ]
    schema = pa.schema(
        {
            "id": pa.string(),
            "at": pa.timestamp("us", "UTC"),
            "data": pa.struct({"form": pa.struct({"a": pa.int64()}), "list": pa.list_(pa.struct({"x": pa.float64()}))}),
            "tags": pa.map_(pa.string(), pa.string()),
            "day": pa.string(),
        }
    )
    store_at(tmp_path, "day").append(pa.Table.from_pylist(rows, schema), app_id="topic-0", version=1)
    read = sorted(rows_of(tmp_path).to_pylist(), key=lambda row: row["id"] is None)
    assert [row | {"at": row["at"] and row["at"].astimezone(UTC)} for row in read] == rows


def test_columns_of_polars_are_accepted(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ["a", None], "at": [datetime(2026, 1, 1, tzinfo=UTC)] * 2, "list": [["x"], []]})
    store_at(tmp_path).append(frame.to_arrow(), app_id="a", version=1)
    store_at(tmp_path).append(pa.table(frame), app_id="a", version=2)
    assert rows_of(tmp_path)["text"].to_pylist() == ["a", None, "a", None]


def test_another_store_sees_each_commit_without_reopening(tmp_path: Path) -> None:
    writer, reader = store_at(tmp_path), store_at(tmp_path)
    for version in range(1, 4):
        writer.append(numbers(version), app_id="topic-0", version=version)
        assert reader.committed_version("topic-0") == version


def test_a_table_that_was_deleted_is_begun_again_and_its_positions_are_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    store = store_at(folder)
    store.append(numbers(1), app_id="topic-0", version=10)
    folder.rename(tmp_path / "moved")
    assert store.committed_version("topic-0") is None
    store.append(numbers(1), app_id="topic-0", version=10)
    assert rows_of(folder).num_rows == 1


def test_a_store_is_kept_per_process(tmp_path: Path) -> None:
    assert open_delta_table(str(tmp_path)) is open_delta_table(str(tmp_path))


def test_a_location_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailableError, match="cannot be used") as caught:
        store_at(tmp_path / "file").append(numbers(1), app_id="topic-0", version=1)
    assert "\n" not in str(caught.value)


def test_a_table_that_may_not_be_written_is_no_conflict_and_is_not_tried_again(tmp_path: Path) -> None:
    store = store_at(tmp_path / "table")
    store.append(numbers(1), app_id="topic-0", version=1)
    protocol = {"protocol": {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["ofTomorrow"]}}
    entry = tmp_path / "table" / "_delta_log" / f"{2:020}.json"
    entry.write_text(json.dumps(protocol), "utf-8")
    before = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="table features required"):
        store.append(numbers(2), app_id="topic-0", version=2)
    assert time.monotonic() - before < 2


@pytest.mark.parametrize("attempt", [0, *(pytest.param(again, marks=pytest.mark.long) for again in range(1, 5))])
def test_many_creators_at_once_make_one_table(tmp_path: Path, attempt: int) -> None:
    del attempt
    together(*(lambda n=n: store_at(tmp_path).append(numbers(n), app_id=f"s-{n}", version=1) for n in range(4)))
    assert sorted(rows_of(tmp_path)["n"].to_pylist()) == [0, 1, 2, 3]
    created = [entry for entry in (tmp_path / "_delta_log").glob("*.json") if '"protocol"' in entry.read_text()]
    assert len(created) == 1


def test_the_same_position_from_many_writers_at_once_is_committed_once(tmp_path: Path) -> None:
    store_at(tmp_path).append(numbers(0), app_id="topic-0", version=0)
    outcomes: list[Committed | AlreadyCommitted] = []

    def append() -> None:
        outcomes.append(store_at(tmp_path).append(numbers(1), app_id="topic-0", version=1))

    together(*[append] * 6)
    assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 1
    assert sorted(rows_of(tmp_path)["n"].to_pylist()) == [0, 1]


def test_a_commit_that_landed_while_its_answer_was_lost_is_not_repeated(tmp_path: Path) -> None:
    store, rival = store_at(tmp_path), store_at(tmp_path)
    store.append(numbers(0), app_id="topic-0", version=0)
    rival.append(numbers(1), app_id="topic-0", version=1)
    # The state a writer is in when its commit landed and it received a failure.
    table = store._table
    assert table is not None
    assert table.transaction_version("topic-0") == 0
    with pytest.raises(TransactionConflictError):
        store._commit(table, numbers(1), {"topic-0": 1})
    assert store.append(numbers(1), app_id="topic-0", version=1) == AlreadyCommitted(1)
    assert rows_of(tmp_path).num_rows == 2


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=12))
def test_any_order_of_ranges_by_two_writers_keeps_each_offset_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    writers = (store_at(folder), store_at(folder))
    reached = 0
    for second, start, length in steps:
        end = start + length
        try:
            writers[second].append(numbers(*range(start, end)), app_id="topic-0", version=end, after=start or None)
        except TransactionConflictError:
            assert reached != start, "a range that begins where the table is gets in"
        else:
            reached = max(reached, end)
    if reached:
        assert sorted(rows_of(folder)["n"].to_pylist()) == list(range(reached))


def test_repeated_appends_by_two_processes_keep_each_position_once(tmp_path: Path) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", APPEND_WITH_REPEATS, str(tmp_path), str(seed)]) for seed in (1, 2)
    ]
    assert [child.wait(60) for child in children] == [0, 0]
    rows = rows_of(tmp_path)
    kept = sorted(zip(rows["stream"].to_pylist(), rows["version"].to_pylist(), strict=True))
    assert kept == [(stream, version) for stream in "ab" for version in range(1, 9)]


@pytest.mark.parametrize("moment", ["before", "first file", "a little later", "later", "much later", "committed"])
def test_a_writer_killed_at_any_moment_leaves_each_row_once_after_it_ran_again(tmp_path: Path, moment: str) -> None:
    rows = 200_000
    with subprocess.Popen(
        [sys.executable, "-c", APPEND_FOR_EVER, str(tmp_path), str(rows)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        wait_for(child, tmp_path, moment)
        child.kill()
    data = pa.table({"n": range(rows), "text": [f"row {n}" for n in range(rows)]})
    outcome = open_delta_table(str(tmp_path)).append(data, app_id="topic-0", version=1)
    if moment == "committed":
        assert isinstance(outcome, AlreadyCommitted)
    if moment == "before":
        assert isinstance(outcome, Committed)
    assert sorted(rows_of(tmp_path)["n"].to_pylist()) == list(range(rows))


def wait_for(child: subprocess.Popen[str], folder: Path, moment: str) -> None:
    if moment == "before":
        return
    if moment == "committed":
        assert child.stdout is not None
        assert child.stdout.readline() == "committed\n"
        return
    while not any("parquet" in path.name for path in folder.iterdir()):
        pass
    time.sleep({"first file": 0, "a little later": 0.02, "later": 0.05, "much later": 0.1}[moment])


def test_positions_and_rows_survive_in_the_checkpoint_that_a_commit_now_and_then_writes(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.append(numbers(-1), app_id="topic-1", version=7)
    DeltaTable(tmp_path).alter.set_table_properties({"delta.checkpointInterval": "10"})
    for version in range(15):
        store.append(numbers(version), app_id="topic-0", version=version)
    checkpoint = json.loads((tmp_path / "_delta_log" / "_last_checkpoint").read_text())["version"]
    for entry in (tmp_path / "_delta_log").glob("*.json"):
        if int(entry.stem) <= checkpoint:
            entry.unlink()
    opened = store_at(tmp_path)
    assert opened.committed_version("topic-1") == 7
    assert opened.committed_version("topic-0") == 14
    assert sorted(rows_of(tmp_path)["n"].to_pylist()) == list(range(-1, 15))


def together(*tasks: Callable[[], object]) -> None:
    """Run all at once, and see each one through."""
    failures: list[BaseException] = []

    def run(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_table_that_lost_its_newest_log_entries_is_noticed_by_a_handle_that_is_kept(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for version in (10, 20, 30):
        store.append(numbers(version), app_id="topic-0", version=version)
    for entry in (2, 3):
        (tmp_path / "_delta_log" / f"{entry:020}.json").unlink()
    with pytest.raises(TransactionConflictError, match="topic-0 is at 10, and not at 30"):
        store.append(numbers(40), app_id="topic-0", version=40, after=30)
    assert store.standings(["topic-0"]) == {"topic-0": Standing(10, 1)}
    # Somebody else goes on from there: the versions are the same, and not what they were.
    other = store_at(tmp_path)
    for version in (15, 25):
        other.append(numbers(version), app_id="topic-0", version=version)
    assert store.committed_version("topic-0") == 25


def test_a_restore_between_a_plan_and_its_commit_is_seen_at_the_next_look(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.append(numbers(1), app_id="topic-0", version=10)
    store.append(numbers(2), app_id="topic-0", version=20)
    before = store.standings(["topic-0"])["topic-0"]
    assert before == Standing(20, 2)
    DeltaTable(tmp_path).restore(1)
    store.append(numbers(3), app_id="topic-0", version=30, after=20, checked=before.table_version)
    assert store.standings(["topic-0"])["topic-0"] == Standing(30, 4, ("RESTORE (version 3)",))
    store.append(numbers(4), app_id="topic-0", version=40, after=30, checked=4)
    assert store.standings(["topic-0"])["topic-0"].doubts == ()


def test_a_check_of_all_streams_counts_for_each_and_merges_raise_no_doubt(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for stream in ("topic-0", "topic-1"):
        store.append(numbers(1), app_id=stream, version=10, checked=0)
    DeltaTable(tmp_path).optimize.compact()
    streams = ["topic-0", "topic-1", "new"]
    found = store.standings(streams)
    assert found == {"topic-0": Standing(10, 3), "topic-1": Standing(10, 3), "new": Standing(None, 3)}
    DeltaTable(tmp_path).delete("n = 1")
    found = store.standings(streams)
    assert [found[stream].doubts for stream in streams] == [("DELETE (version 4)",), ("DELETE (version 4)",), ()]
    store.mark_checked(4)
    assert not any(one.doubts for one in store.standings(streams).values())


def test_versions_missing_from_the_log_raise_a_doubt(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for version in range(1, 6):
        store.append(numbers(version), app_id="topic-0", version=version, checked=0)
    table = DeltaTable(tmp_path)
    table.create_checkpoint()
    for entry in (1, 2, 3):
        (tmp_path / "_delta_log" / f"{entry:020}.json").unlink()
    (doubt,) = store.standings(["topic-0"])["topic-0"].doubts
    assert doubt == "version 3 and those before it were not checked"
