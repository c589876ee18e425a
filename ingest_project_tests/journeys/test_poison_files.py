"""One poison file among 99 good ones, at every step: the 99 are stored at their first attempt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psycopg2
import pytest

from ingest_project.contracts.files import file_key, version_of
from ingest_project.core.errors import DatabaseUnavailableError
from ingest_project.file_ingest import contract
from ingest_project.file_ingest import pipeline as ingesting
from ingest_project.file_ingest.tables import FileState
from ingest_project.platform.object_store.content_store import safe_name
from ingest_project_tests.journeys.system import VALIDATED, System, changed, readings

GOOD = 99
POISON = "poison.csv"


class PanicException(BaseException):
    """What such a library raises when it panics: no Exception."""


def raising(error: BaseException, where: Any, name: str) -> Callable[[System, pytest.MonkeyPatch], Any]:  # noqa: ANN401 - a module
    """Have a function raise this where it is given the poison."""

    @contextmanager
    def poison(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        del system
        original = getattr(where, name)

        def poisoned(first: Any, *more: Any, **named: Any) -> Any:  # noqa: ANN401 - stands for any function
            if "poison" in str(first["device_id"].to_list() if isinstance(first, pl.DataFrame) else first):
                # A new one each time: a traceback grows with every raise.
                raise type(error)(*error.args)
            return original(first, *more, **named)

        monkeypatch.setattr(where, name, poisoned)
        yield

    return poison


def refusing(table: str, condition: str) -> Callable[[System, pytest.MonkeyPatch], Any]:
    """Have the database refuse the poison by a rule of its own."""

    @contextmanager
    def poison(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        del monkeypatch
        execute(
            system.settings.warehouse.database_url.get_secret_value(),
            f"ALTER TABLE {table} ADD CONSTRAINT no_poison CHECK ({condition})",
        )
        yield

    return poison


@contextmanager
def killing_its_connection(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the database drop the connection of whoever stores the poison, as a crash over it would."""
    del monkeypatch
    execute(
        system.settings.warehouse.database_url.get_secret_value(),
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$",
        "CREATE TRIGGER deadly BEFORE INSERT ON raw_sensor_data FOR EACH ROW "
        "WHEN (NEW.device_id = 'poison') EXECUTE FUNCTION die()",
    )
    yield


@contextmanager
def unkept(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have something in the way of the one file that is refused."""
    del monkeypatch
    path = system.write(POISON, "timestamp,value\n1,2\n")
    changed_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=path.stat().st_mtime_ns // 1_000)
    version = version_of(None, path.stat().st_size, changed_at)
    key = file_key(f"local:{path.resolve()}", POISON, version, "canonical")
    (Path(system.settings.quarantine_url) / safe_name(key)).mkdir(parents=True)
    yield


@contextmanager
def not_shown(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have Dagster's database refuse what is told of the poison."""
    del system, monkeypatch
    url = os.environ["DAGSTER_POSTGRES_URL"]
    execute(
        url,
        "CREATE FUNCTION refuse_poison() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no poison here' USING ERRCODE = '22000'; END $$",
        "CREATE TRIGGER refuse_poison BEFORE INSERT ON event_logs FOR EACH ROW "
        "WHEN (NEW.partition LIKE 'poison%' AND NEW.event LIKE '%rows_read%') EXECUTE FUNCTION refuse_poison()",
    )
    try:
        yield
    finally:
        execute(url, "DROP TRIGGER refuse_poison ON event_logs", "DROP FUNCTION refuse_poison()")


def execute(url: str, *statements: str) -> None:
    connection = psycopg2.connect(url.replace("postgresql+psycopg2", "postgresql"))
    with connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


# Step, how it is poisoned, where the poison ends, and what its reason says.
STEPS = [
    ("landing", raising(RuntimeError("cannot land"), ingesting, "land"), FileState.FAILED, "RuntimeError: cannot land"),
    ("reading", raising(MemoryError(), ingesting, "open_file"), FileState.PENDING, "more memory"),
    ("reading, a panic", raising(PanicException("oh no"), ingesting, "open_file"), FileState.FAILED, "oh no"),
    (
        "validating",
        raising(pl.exceptions.ComputeError("strptime says no"), contract, "cast"),
        FileState.FAILED,
        "ComputeError: strptime says no",
    ),
    (
        "aggregating",
        raising(PanicException("index out of bounds"), contract, "aggregate_files"),
        FileState.FAILED,
        "index out of bounds",
    ),
    ("storing readings", refusing("raw_sensor_data", "device_id <> 'poison'"), FileState.PENDING, "no_poison"),
    ("storing metrics", refusing("aggregated_metrics", "device_id <> 'poison'"), FileState.PENDING, "no_poison"),
    ("finishing", refusing("files", f"file_name <> '{POISON}' OR state <> 'ingested'"), FileState.PENDING, "no_poison"),
    ("storing, a lost connection", killing_its_connection, FileState.PENDING, "terminat"),
    ("quarantining", unkept, FileState.FAILED, "another file or folder has that name"),
    ("reporting", not_shown, FileState.INGESTED, ""),
]


# The others go the same way as one of these: they are left for the long run.
SHORT = ("reading, a panic", "storing, a lost connection", "reporting")
CASES = [pytest.param(*case, id=case[0], marks=[] if case[0] in SHORT else [pytest.mark.long]) for case in STEPS]


@pytest.mark.parametrize(("step", "poison", "state", "reason"), CASES)
def test_the_99_good_files_are_stored_at_their_first_attempt(  # noqa: PLR0913, PLR0917 - a step, and what it must come to
    system: System,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    poison: Callable[[System, pytest.MonkeyPatch], AbstractContextManager[None]],
    state: FileState,
    reason: str,
) -> None:
    monkeypatch.setattr("ingest_project.file_ingest.load.STORE_WAIT_SECONDS", 0.0)
    system.settings = changed(system.settings, "retries", delay_seconds=3_600.0)
    system.restart()
    names = [f"{number}.csv" for number in range(GOOD)]
    system.write(POISON, readings(2, "poison"))
    with poison(system, monkeypatch):
        for name in names:
            system.write(name, readings(1, f"device-{name}"))
        system.send_files(*(system.folder / name for name in [*names[:50], POISON, *names[50:]]))
        runs = [system.execute("file_batch", request) for request in system.requests()]
    assert [run.success for run in runs] == [True]
    files = system.files()
    poisoned = files.pop(POISON)
    assert (poisoned.state, step) == (state, step)
    assert reason in (poisoned.reason or "")
    assert {(file.state, file.attempts) for file in files.values()} == {(FileState.INGESTED, 1)}
    assert len(files) == GOOD
    stored = system.services.warehouse.file_counts([file.file_key for file in files.values()])
    assert {counts.rows for counts in stored.values()} == {1}
    shown = system.checks()
    assert {shown[file.file_key] for file in files.values()} == {"SUCCEEDED"}
    if state is FileState.FAILED:
        assert shown[poisoned.file_key] == "FAILED"
    if step == "reporting":
        assert "no poison here" in str(system.metadata(VALIDATED, poisoned.file_key))


TABLE = "ALTER TABLE raw_sensor_data"
REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'site closed'; END $$;
    CREATE TRIGGER refusing BEFORE INSERT ON raw_sensor_data FOR EACH ROW EXECUTE FUNCTION refuse()"""
# What a person may do to our tables, how it is undone, and what the reason says.
RULES = {
    "column": (f"{TABLE} ADD COLUMN site TEXT NOT NULL", f"{TABLE} DROP COLUMN site", 'value in column "site"'),
    "constraint": (f"{TABLE} ADD CONSTRAINT most CHECK (value < -999)", f"{TABLE} DROP CONSTRAINT most", '"most"'),
    "index": ("CREATE UNIQUE INDEX single ON raw_sensor_data (unit)", "DROP INDEX single", '"single"'),
    "trigger": (REFUSE, "DROP TRIGGER refusing ON raw_sensor_data", "site closed"),
    # As wide as a double: its bytes would be stored as another number.
    "type": (f"{TABLE} ALTER value TYPE BIGINT", f"{TABLE} ALTER value TYPE DOUBLE PRECISION", "it is BIGINT, not"),
}


@pytest.mark.parametrize(("rule", "undone", "reason"), RULES.values(), ids=RULES)
def test_files_that_a_rule_of_the_tables_refuses_wait_until_it_is_gone(
    system: System, rule: str, undone: str, reason: str
) -> None:
    system.settings = changed(system.settings, "retries", max_attempts=2)
    system.restart()
    url = system.settings.warehouse.database_url.get_secret_value()
    execute(url, rule)
    system.send_files(*(system.write(f"{name}.csv", readings(2, name)) for name in "ab"))
    for _ in range(4):
        for request in system.requests():
            assert not system.execute("file_batch", request).success
    assert system.states() == {"a.csv": "pending", "b.csv": "pending"}
    assert reason in str(system.file("a.csv").reason)
    assert "Failing row" not in str(system.file("a.csv").reason)
    execute(url, undone)
    system.drive()
    assert system.states() == {"a.csv": "ingested", "b.csv": "ingested"}
    assert system.check("rows_add_up").passed


def test_an_unreachable_database_is_not_counted_against_a_file(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest_project.file_ingest import load as storing  # patched here alone

    calls = []

    def away(*_: Any, **__: Any) -> None:  # noqa: ANN401 - stands for any function
        calls.append(1)
        raise DatabaseUnavailableError("somewhere", "it is away")

    monkeypatch.setattr(storing, "STORE_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(storing, "STORE_ATTEMPTS", 2)
    system.send_files(*(system.write(f"{number}.csv", readings(1, f"d{number}")) for number in range(10)))
    (request,) = system.requests()
    with monkeypatch.context() as patch:
        patch.setattr(storing, "store_at_once", away)
        patch.setattr(storing, "accepts_transactions", lambda _: False)
        assert not system.execute("file_batch", request).success
    assert len(calls) == 2, "once, and once more after the pause: not for each file"
    assert set(system.states().values()) == {"pending"}
    system.drive()
    assert set(system.states().values()) == {"ingested"}
