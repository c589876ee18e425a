"""One bad item among ninety-nine good ones fails alone: the others succeed at their first attempt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from ingest_project.core.errors import DatabaseUnavailableError
from ingest_project.file_ingest.tables import FileState
from ingest_project.platform.database import writing
from ingest_project.platform.work_queue.queue import JobState
from ingest_project.sources import Source, SourceFile
from ingest_project_tests.journeys.system import FILE_EVENTS, POLLING, System, changed, file_event, readings

GOOD = 99
DEEP = "[" * 400 + "]" * 400
PLACEHOLDER = json.dumps("here")


def change_table(system: System, statement: str) -> None:
    """What an operator or a later version might do to the database."""
    with writing(system.services.engine) as connection:
        connection.execute(sa.text(statement))


def reasons(system: System, topic: str) -> dict[bytes, str]:
    """Why each message became a dead letter, by its value."""
    letters = system.on_topic(topic)
    found = {letter.value or b"": (letter.header("dlq.reason") or b"").decode() for letter in letters}
    assert len(letters) == len(found), "each once"
    return found


def among(good: list[bytes], bad: list[bytes]) -> list[bytes]:
    """The bad ones in the midst of the good ones."""
    return [*good[:50], *bad, *good[50:]]


def poisoned(event: dict[str, object], name: str, text: str) -> bytes:
    """A message whose field is this JSON text."""
    return json.dumps(event | {name: "here"}).encode().replace(PLACEHOLDER.encode(), text.encode())


def test_ninety_nine_file_events_are_ingested_at_their_first_attempt_next_to_every_kind_of_poison(
    system: System,
) -> None:
    change_table(system, "ALTER TABLE files ADD CHECK (file_name <> 'refused-by-the-database.csv')")
    good = [json.dumps(file_event(system.write(f"{n}.csv", readings(1, f"d{n}")))).encode() for n in range(GOOD)]
    one = file_event(system.folder / "0.csv")
    bad = [
        poisoned(one, "modified_at", '"0001-01-01T00:00:00+14:00"'),
        poisoned(one, "discovered_at", '"9999-12-31T23:59:59-14:00"'),
        poisoned(one, "file_path", '"http://[::1/a.csv"'),
        poisoned(one | {"source_type": "http"}, "file_path", '"http://[::1/a.csv"'),
        poisoned(one | {"source_type": "http"}, "source_config", '{"path": "http://[v1.x]:99999999/"}'),
        poisoned(one, "file_path", json.dumps("a/" * 500_000 + "a.csv")),
        poisoned(one, "metadata", '{"a": ' + "9" * 5_000 + "}"),
        poisoned(one, "metadata", DEEP),
        poisoned(one, "metadata", '{"a": ' + DEEP + "}"),
        poisoned(one, "metadata", '{"a": "\\u0000"}'),
        poisoned(one, "metadata", '{"a": "\\ud800"}'),
        poisoned(one, "metadata", '{"format": {"a": 1}}'),
        poisoned(one, "metadata", '{"a": NaN}'),
        poisoned(one, "source_config", '{"host": "' + "h" * 100_000 + '"}'),
        poisoned(one, "size_bytes", str(2**63)),
        poisoned(one, "etag", json.dumps("e" * 100_000)),
        poisoned(one, "trace_id", '"\\u0000"'),
        json.dumps(file_event(system.write("refused-by-the-database.csv", readings()))).encode(),
    ]
    system.send(system.settings.topics.file_event_queue, *among(good, bad))
    (request, *_) = system.requests(FILE_EVENTS)
    assert request.tags["ingest/batch_size"] == str(GOOD)
    found = reasons(system, system.settings.topics.file_event_queue_dlq)
    assert sorted(found) == sorted(bad)
    assert all(found.values())
    assert "check constraint" in found[bad[-1]]
    assert {record.attempts for record in system.files().values()} == {1}
    assert system.execute("file_batch", request).success
    assert Counter(record.state for record in system.files().values()) == {FileState.INGESTED: GOOD}
    assert len(system.instance.get_dynamic_partitions("files")) == GOOD


def test_ninety_nine_polling_jobs_run_at_their_first_attempt_next_to_every_kind_of_poison(system: System) -> None:
    system.settings = changed(system.settings, "polling", max_jobs_per_tick=1_000)
    system.restart()
    change_table(system, "ALTER TABLE polling_jobs ADD CHECK (job_id <> 'refused-by-the-database')")
    job: dict[str, Any] = {"job_id": "j", "source_config": {"source_type": "local", "path": str(system.folder)}}
    good = [json.dumps(job | {"job_id": f"good-{n}"}).encode() for n in range(GOOD)]
    bad = [
        poisoned(job, "source_config", '{"source_type": "http", "path": "http://[::1/"}'),
        poisoned(job, "source_config", '{"source_type": "local", "path": ' + json.dumps("a/" * 400_000) + "}"),
        poisoned(job, "source_config", '{"source_type": "s3", "path": 5}'),
        poisoned(job, "source_config", '{"source_type": "sftp", "port": ' + "9" * 5_000 + "}"),
        poisoned(job, "source_config", '{"source_type": "ftp", "host": "\\u0000", "path": "/"}'),
        poisoned(job, "metadata", '{"a": ' + DEEP + "}"),
        poisoned(job, "metadata", '{"trace_id": ["t"]}'),
        poisoned(job, "file_pattern", json.dumps("*" * 10_000)),
        poisoned(job, "trace_id", '"\\u0000"'),
        poisoned(job, "job_id", '"\\ud800"'),
        json.dumps(job | {"job_id": "refused-by-the-database"}).encode(),
    ]
    system.send(system.settings.topics.polling_queue, *among(good, bad))
    requests = system.requests(POLLING)
    found = reasons(system, system.settings.topics.polling_queue_dlq)
    assert sorted(found) == sorted(bad)
    assert "check constraint" in found[bad[-1]]
    assert sum(int(request.tags["ingest/batch_size"]) for request in requests) == 80
    records = system.services.polling_jobs.list(limit=1_000)
    assert {record.job.job_id for record in records} == {f"good-{n}" for n in range(GOOD)}
    assert {record.attempts for record in records} == {0, 1}
    assert len(system.instance.get_dynamic_partitions("polling_jobs")) == GOOD


class Poisonous:
    """A source whose listing raises what nobody foresaw."""

    def __init__(self, source: Source, error: Exception) -> None:
        self._source = source
        self._error = error

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the source's own
        return getattr(self._source, name)

    def list_files(self, _pattern: str) -> Iterator[SourceFile]:
        """Fails."""
        raise self._error


POISON = {
    "deep": RecursionError("maximum recursion depth exceeded"),
    "large": MemoryError(),
    "late": OverflowError("date value out of range"),
    "digits": ValueError("Exceeds the limit (4300 digits) for integer string conversion"),
    "codec": LookupError("'hex' is not a text encoding\x00\ud800"),
    "defect": AttributeError("'NoneType' object has no attribute 'group'"),
}


def test_a_listing_that_raises_anything_fails_its_job_alone_with_the_real_reason(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = system.services.open_source
    names = [*(f"good-{n}" for n in range(10)), *POISON]
    for name in names:
        system.write(f"{name}/{name}.csv", readings(1, name))
        system.send_job(system.folder / name)

    def open_source(config: dict[str, Any]) -> Any:  # noqa: ANN401 - a source
        source, name = opened(config), str(config["path"]).rpartition("/")[2]
        return Poisonous(source, POISON[name]) if name in POISON else source

    monkeypatch.setattr(system.services, "open_source", open_source)
    (request,) = system.requests(POLLING)
    assert system.execute("polling_batch", request).success
    records = {record.job.path.rpartition("/")[2]: record for record in system.services.polling_jobs.list()}
    assert {records[name].state for name in names if name not in POISON} == {JobState.DONE}
    assert {record.attempts for record in records.values()} == {1}
    for name, error in POISON.items():
        assert (records[name].state, records[name].error_class) == (JobState.FAILED, type(error).__name__)
        assert type(error).__name__ in (records[name].reason or "")
    assert len(system.on_topic(system.settings.topics.file_event_queue)) == 10


def test_a_job_that_failed_repeatedly_goes_alone_so_that_it_takes_no_other_down(system: System) -> None:
    system.settings = changed(system.settings, "retries", launch_grace_seconds=0.0)
    system.restart()
    for _ in range(3):
        system.send_job(system.folder)
    sizes = [[request.tags["ingest/batch_size"] for request in system.requests(POLLING)] for _ in range(3)]
    assert sizes == [["3"], ["3"], ["1", "1", "1"]]


def test_a_database_without_its_tables_does_not_skip_a_message(system: System) -> None:
    system.send_files(system.write("a.csv", readings()))
    change_table(system, "ALTER TABLE files RENAME TO files_elsewhere")
    with pytest.raises(sa.exc.ProgrammingError, match="files"):
        system.tick()
    change_table(system, "ALTER TABLE files_elsewhere RENAME TO files")
    assert system.on_topic(system.settings.topics.file_event_queue_dlq) == []
    system.drive()
    assert system.states() == {"a.csv": "ingested"}


def test_an_unreachable_database_does_not_skip_a_message(system: System) -> None:
    system.send_files(system.write("a.csv", readings()))
    url = system.settings.warehouse.database_url
    elsewhere = type(url)("postgresql://nobody@127.0.0.1:9/none")
    system.settings = changed(system.settings, "warehouse", database_url=elsewhere)
    system.restart()
    with pytest.raises(DatabaseUnavailableError):
        system.tick()
    system.settings = changed(system.settings, "warehouse", database_url=url)
    system.restart()
    system.drive()
    assert system.states() == {"a.csv": "ingested"}
    assert system.on_topic(system.settings.topics.file_event_queue_dlq) == []
