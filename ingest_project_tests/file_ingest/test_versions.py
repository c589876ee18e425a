"""The version that counts does not depend on the order or the batches in which versions are stored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.contracts.files import FileEvent
from ingest_project.file_ingest.contract import meaning_of
from ingest_project.file_ingest.file_queue import FileQueue, FileRecord
from ingest_project.file_ingest.load import finish, lock_locations_of, settle_versions
from ingest_project.file_ingest.raw_files import versions_apart
from ingest_project.file_ingest.result import FileResult
from ingest_project.file_ingest.tables import FileState, files
from ingest_project.file_ingest.warehouse.sql import SqlTransaction
from ingest_project.platform.database import writing
from ingest_project.platform.database.sql import metadata
from ingest_project.readers.profiles import load_profiles
from ingest_project.sources import SourceFile
from ingest_project_tests.file_ingest.samples import NOW, arrival
from ingest_project_tests.fuzz import examples

LOCATIONS = ("local:/in/a.csv", "local:/in/b.csv")


def queue_with(versions: Sequence[tuple[int, int]]) -> tuple[sa.Engine, FileQueue]:
    """A queue of versions: location and minute of change of each."""
    # One connection for all: the database is in its memory.
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    metadata.create_all(
        engine, tables=[files, *[t for t in metadata.sorted_tables if t.name in {"contents", "file_statistics"}]]
    )
    queue = FileQueue(engine)
    arrivals = []
    for number, (location, minute) in enumerate(versions):
        one = arrival(f"{number}.csv~{number}", number)
        event = one.event
        changed_at = NOW - timedelta(days=1) + timedelta(minutes=minute)
        arrivals.append(
            one._replace(
                location=LOCATIONS[location],
                event=type(event)(
                    file_path=event.file_path, file_name=event.file_name, modified_at=changed_at, event_id="e"
                ),
            )
        )
    queue.record(arrivals, NOW)
    return engine, queue


def store(engine: sa.Engine, records: Sequence[FileRecord], refused: set[str]) -> None:
    with writing(engine) as connection:
        transaction = SqlTransaction(connection)
        outcomes = [
            FileResult(record, FileState.QUARANTINED if record.file_key in refused else FileState.INGESTED, reason="r")
            for record in records
        ]
        settled, _ = settle_versions(transaction, lock_locations_of(transaction, outcomes, wait=True), "run")
        finish(transaction, settled, "run")


@settings(deadline=None, max_examples=examples(60))
@given(data=st.data())
def test_the_newest_accepted_version_counts_whatever_the_order_and_the_groups(data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=7))
    engine, queue = queue_with(drawn)
    keys = [f"{number}.csv~{number}" for number in range(len(drawn))]
    refused = set(data.draw(st.lists(st.sampled_from(keys), unique=True)))
    order = data.draw(st.permutations(keys))
    again = data.draw(st.lists(st.sampled_from(keys), max_size=4))
    size = data.draw(st.integers(1, 4))
    todo = [*order, *again]
    for start in range(0, len(todo), size):
        store(engine, queue.begin(todo[start : start + size], "run", NOW), refused)
    records = [record for key in keys if (record := queue.get(key)) is not None]
    for location in LOCATIONS:
        versions = sorted((r for r in records if r.location == location), key=lambda record: record.order)
        accepted = [record for record in versions if record.file_key not in refused]
        newest = accepted[-1] if accepted else None
        assert [record.file_key for record in versions if record.stands] == ([newest.file_key] if newest else [])
        for record in versions:
            if newest is None or record.order > newest.order:
                assert record.state is FileState.QUARANTINED
            elif record is newest:
                assert record.state is FileState.INGESTED
            else:
                assert (record.state, record.replaced_by is None) == (FileState.REPLACED, False)
    engine.dispose()


def test_the_parts_of_a_name_that_a_profile_reads_are_part_of_the_meaning_and_the_rest_is_not() -> None:
    profile = load_profiles()["canonical"]
    by_name = profile.model_copy(update={"from_file_name": {"device_id": "^([^_]+)_"}})
    assert meaning_of(profile, "a.csv", "csv") == meaning_of(profile, "b.csv", "csv")
    assert meaning_of(profile, "a.csv", "csv") != meaning_of(profile, "a.csv", "xls")
    assert meaning_of(by_name, "f1_a.csv", "csv") == meaning_of(by_name, "f1_b.csv", "csv")
    assert meaning_of(by_name, "f1_a.csv", "csv") != meaning_of(by_name, "f2_a.csv", "csv")
    corrected = profile.model_copy(update={"skip_lines": 1})
    assert meaning_of(profile, "a.csv", "csv") != meaning_of(corrected, "a.csv", "csv")
    assert meaning_of(profile, "a.csv", "csv") == meaning_of(
        profile.model_copy(update={"description": "x"}), "a.csv", "csv"
    )


def test_files_with_the_same_etag_are_distinguished_by_size() -> None:
    event = FileEvent(file_path="/a.csv", file_name="a.csv", size_bytes=85, etag="v1")
    assert versions_apart(event, SourceFile("/a.csv", "a.csv", 85, None, "v2")) == ("etag=v1", "etag=v2")
    announced, found = versions_apart(event, SourceFile("/a.csv", "a.csv", 40, None, "v1"))
    assert (announced, found) == ("size=85 modified=unknown", "size=40 modified=unknown")
