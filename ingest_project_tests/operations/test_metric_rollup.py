"""Counters count each end once, whatever happens to the process, the rows and the clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest
import sqlalchemy as sa

from ingest_project import operations as counting
from ingest_project.attachments.queue import AttachmentQueue
from ingest_project.attachments.tables import AttachmentState, attachments, download_outcomes
from ingest_project.file_ingest.file_queue import FileQueue
from ingest_project.file_ingest.tables import FileState, files
from ingest_project.operations import CAPABILITIES, MOST_SERIES, RunningTotals, metric_minutes
from ingest_project.platform.capability import EVENT_TO_STORED, latency_bucket
from ingest_project.platform.database import open_engine, reading, writing
from ingest_project.polling.job_queue import polling_jobs
from ingest_project.streams.capability import STREAM_MESSAGES
from ingest_project.streams.positions import sink_positions
from ingest_project_tests.attachments.samples import arrival
from ingest_project_tests.operations.seeding import attachment_row, file_row, job_row, outcome_row, position_row, put

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
AGO = timedelta(minutes=1)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    made = open_engine(database_url)
    yield made
    made.dispose()


def test_every_kind_of_end_is_counted(engine: sa.Engine) -> None:
    ended = NOW - AGO
    bad_rows = {"value_out_of_range": 3}
    mostly_bad = {"value_not_a_number": 9, "too_many_bad_rows": 1}
    put(
        engine,
        files,
        [
            file_row("good", "ingested", ended, seconds=3, rows_accepted=97, rows_quarantined=3, rule_counts=bad_rows),
            file_row("bad", "quarantined", ended, rule_counts={"missing_column": 1}),
            file_row("mostly_bad", "quarantined", ended, rule_counts=mostly_bad, reason="too_many_bad_rows: 9 of 10"),
            file_row("same", "duplicate", ended),
            file_row("lost", "failed", ended),
            file_row("coming", "pending", ended),
        ],
    )
    put(engine, polling_jobs, [job_row("j", "done", ended, published=4), job_row("k", "failed", ended)])
    put(engine, attachments, [attachment_row("a", "stored", ended), attachment_row("b", "failed", ended)])
    sizes = {"size_bytes": 10}
    put(engine, download_outcomes, [outcome_row("a", 1, "failed_transient", ended, error_class="DownloadFailedError")])
    put(engine, download_outcomes, [outcome_row("a", 2, "success", ended, **sizes)])
    put(engine, sink_positions, [position_row(ended, {"opportunities": 90, "unidentified": 10})])

    totals = RunningTotals(engine)
    assert totals.count(NOW) == 13
    counted = totals.totals()
    assert {labels[0]: value for (name, labels), value in counted.items() if name == "ingest_files"} == {
        "ingested": 1,
        "quarantined": 2,
        "duplicate": 1,
        "failed": 1,
    }
    expected = {
        ("ingest_rows", ("accepted",)): 97,
        ("ingest_rows", ("quarantined",)): 3,
        ("ingest_quarantined_rows", ("value_out_of_range",)): 3,
        ("ingest_quarantined_files", ("missing_column",)): 1,
        ("ingest_quarantined_files", ("too_many_bad_rows",)): 1,
        ("poller_jobs", ("done",)): 1,
        ("poller_files_published", ("sftp",)): 4,
        ("ingest_downloads", ("failed_transient", "1")): 1,
        ("ingest_downloads", ("success", "2")): 1,
        ("ingest_download_failures", ("DownloadFailedError",)): 1,
        ("ingest_uploaded_bytes", ("claims",)): 10,
        ("ingest_stream_messages", ("sales_events", "opportunities")): 90,
        (EVENT_TO_STORED.bucket, ("files", "3")): 1,
        (EVENT_TO_STORED.sum, ("files",)): 3,
    }
    assert {series: counted.get(series) for series in expected} == expected


def test_a_file_that_is_done_again_counts_from_when_that_was_requested(engine: sa.Engine) -> None:
    queue, week, late = FileQueue(engine), timedelta(days=7), NOW - AGO
    keys = [f"{way}.csv~1" for way in ("released", "renamed", "corrected", "backfill", "partition")]
    put(engine, files, [file_row(key, "quarantined", NOW - week) for key in keys])
    known = {record.file_key.partition(".")[0]: record for record in queue.get_many(keys)}
    asked = late - timedelta(seconds=7)
    queue.reopen([keys[0]], asked)
    made = [queue.announce_again(known["renamed"], "legacy", asked), queue.correct(known["corrected"], "ab", 2, asked)]
    queue.request_again([keys[3]], asked)
    queue.begin([keys[4]], "of a person", asked)
    again = [keys[0], *(key for key in made if key), *keys[3:]]
    queue.begin(again, "run", late - timedelta(seconds=2))
    queue.finish({key: {"rows_accepted": 1} for key in again}, FileState.INGESTED, late)
    totals = RunningTotals(engine)
    totals.count(NOW)
    assert totals.totals()[EVENT_TO_STORED.bucket, ("files", "8")] == len(keys)
    assert totals.totals()[EVENT_TO_STORED.sum, ("files",)] == 7 * len(keys)


def test_a_replayed_attachment_counts_from_when_that_was_requested(engine: sa.Engine) -> None:
    queue, week, late = AttachmentQueue(engine), timedelta(days=7), NOW - AGO
    keys = ["by an action", "by a message", "by a run"]
    put(engine, attachments, [attachment_row(key, "failed", NOW - week) for key in keys])
    asked = late - timedelta(seconds=7)
    queue.replay(keys[:1], "a test", 5, 1.0, asked)
    queue.record([arrival(keys[1], repeat=True)], asked)
    queue.begin(keys[2:], "of a person", asked)
    queue.begin(keys, "run", late - timedelta(seconds=2))
    queue.finish({key: {"sha256": "ab"} for key in keys}, AttachmentState.STORED, late)
    totals = RunningTotals(engine)
    totals.count(NOW)
    assert totals.totals()[EVENT_TO_STORED.sum, ("attachments",)] == 7 * len(keys)


def test_messages_of_streams_are_counted_once_and_when_their_positions_move(engine: sa.Engine) -> None:
    put(engine, sink_positions, [position_row(NOW, {"opportunities": 90})])
    totals = RunningTotals(engine)
    assert [totals.count(NOW), totals.count(NOW)] == [1, 0]
    with writing(engine) as connection:
        connection.execute(sa.update(sink_positions).values(outcome={"opportunities": 95, "lost": 2}))
    totals.count(NOW)
    assert totals.totals()[STREAM_MESSAGES, ("sales_events", "opportunities")] == 95
    assert totals.totals()[STREAM_MESSAGES, ("sales_events", "lost")] == 2
    assert sum(one.value for one in totals.history(NOW - AGO, 1, [STREAM_MESSAGES])) == 97


def test_counting_again_and_in_another_process_counts_nothing_twice(engine: sa.Engine) -> None:
    put(engine, files, [file_row(f"f{n}", "ingested", NOW - AGO) for n in range(500)])
    counters = [threading.Thread(target=RunningTotals(engine).count, args=(NOW,)) for _ in range(4)]
    for counter in counters:
        counter.start()
    for counter in counters:
        counter.join()
    assert RunningTotals(engine).count(NOW + AGO) == 0
    assert RunningTotals(engine).totals()["ingest_files", ("ingested",)] == 500


def test_rows_that_retention_removes_stay_in_the_counters(engine: sa.Engine) -> None:
    put(engine, files, [file_row(f"old{n}", "ingested", NOW - AGO) for n in range(10)])
    totals = RunningTotals(engine)
    while totals.count(NOW):
        pass
    with reading(engine) as connection:
        progress = {row.source: row.counted_until for row in connection.execute(sa.select(counting.metric_progress))}
    sources = [source.name for capability in CAPABILITIES for source in capability.counted]
    assert min(progress.get(source, counting.BEGINNING) for source in sources) >= NOW - 2 * counting.SETTLE
    with writing(engine) as connection:
        connection.execute(sa.delete(files))
    put(engine, files, [file_row("new", "ingested", NOW + AGO)])
    totals.count(NOW + 2 * AGO)
    assert totals.totals()["ingest_files", ("ingested",)] == 11


def test_a_file_that_is_ingested_again_counts_again_and_never_less(engine: sa.Engine) -> None:
    put(engine, files, [file_row("f", "ingested", NOW - AGO)])
    totals = RunningTotals(engine)
    totals.count(NOW)
    FileQueue(engine).reopen(["f"], NOW)
    totals.count(NOW + AGO)
    assert totals.totals()["ingest_files", ("ingested",)] == 1
    with writing(engine) as connection:
        connection.execute(sa.update(files).values(state="ingested", updated_at=NOW + AGO, finished_at=NOW + AGO))
    totals.count(NOW + 2 * AGO)
    assert totals.totals()["ingest_files", ("ingested",)] == 2


def test_a_finish_is_counted_once_it_has_settled(engine: sa.Engine) -> None:
    put(engine, files, [file_row("f", "ingested", NOW - timedelta(seconds=1))])
    totals = RunningTotals(engine)
    assert totals.count(NOW) == 0
    assert totals.count(NOW + counting.SETTLE) == 1


def test_a_finish_committed_late_is_counted(postgres_url: str) -> None:
    engine = open_engine(postgres_url)
    now = datetime.now(UTC)
    put(engine, files, [file_row("late", "ingesting", now)])
    late = psycopg2.connect(postgres_url)
    with late.cursor() as cursor:
        cursor.execute("UPDATE files SET state = 'ingested', updated_at = now(), finished_at = now()")
    put(engine, files, [file_row("early", "ingested", now)])
    totals = RunningTotals(engine)
    later = now + timedelta(seconds=30)
    assert totals.count(later) == 0, "it waits for the transaction that may still bring an older end"
    late.commit()
    late.close()
    assert totals.count(later) == 2
    engine.dispose()


def test_a_long_past_is_counted_in_parts(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "ENDS_AT_A_TIME", 100)
    moments = [NOW - AGO - timedelta(seconds=n // 30) for n in range(1_000)]
    put(engine, files, [file_row(f"f{n}", "ingested", at) for n, at in enumerate(moments)])
    totals = RunningTotals(engine)
    assert 0 < totals.count(NOW) < 1_000
    while totals.count(NOW):
        pass
    assert totals.totals()["ingest_files", ("ingested",)] == 1_000


def test_invented_reasons_do_not_become_a_series_each(engine: sa.Engine) -> None:
    rows = [file_row(f"f{n}", "quarantined", NOW - AGO, rule_counts={f"rule_{n}": 1}) for n in range(200)]
    put(engine, files, rows)
    totals = RunningTotals(engine)
    totals.count(NOW)
    reasons = {labels: value for (name, labels), value in totals.totals().items() if name == "ingest_quarantined_files"}
    assert len(reasons) == MOST_SERIES + 1
    assert sum(reasons.values()) == 200
    assert reasons["other",] == 200 - MOST_SERIES


def test_history_lies_in_the_minutes_things_ended_in_and_is_dropped_after_a_while(engine: sa.Engine) -> None:
    ends = [NOW - timedelta(minutes=30), NOW - timedelta(minutes=29), NOW - timedelta(days=10)]
    put(engine, files, [file_row(f"f{n}", "ingested", at) for n, at in enumerate(ends)])
    totals = RunningTotals(engine)
    totals.count(NOW)
    values = totals.history(NOW - timedelta(hours=1), 1, ["ingest_files"])
    assert sorted((value.step * 60, value.value) for value in values) == [
        (ends[0].timestamp(), 1),
        (ends[1].timestamp(), 1),
    ]
    (coarse,) = totals.history(NOW - timedelta(hours=1), 15, ["ingest_files"])
    assert (coarse.step * 900, coarse.value) == (ends[0].timestamp(), 2)
    with engine.connect() as connection:
        oldest = connection.execute(sa.select(sa.func.min(metric_minutes.c.minute))).scalar_one()
    assert oldest * 60 == ends[0].timestamp()


@pytest.mark.parametrize(("seconds", "bucket"), [(0, "0.5"), (0.5, "0.5"), (0.51, "1"), (100_000, "+Inf")])
def test_a_latency_lies_in_the_first_bucket_that_reaches_it(seconds: float, bucket: str) -> None:
    assert latency_bucket(seconds) == bucket
