"""A service is unreachable for a while: nothing is lost or doubled, and the system continues automatically."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from pydantic import SecretStr

from ingest_project.core.errors import DatabaseUnavailableError
from ingest_project.file_ingest.tables import FileState
from ingest_project.file_ingest.warehouse.postgres import PostgresTransaction
from ingest_project.platform.work_queue.queue import JobState
from ingest_project_tests.journeys.system import POLLING, System, changed, move_to, paused, readings
from ingest_project_tests.services.kafka import OwnServer
from ingest_project_tests.services.postgres import PostgresProcess, PostgresServer

ROWS = 4


@pytest.fixture
def impatient(system: System) -> System:
    """The system with no pause between attempts; what a dead run holds is taken back at once."""
    system.settings = changed(system.settings, "retries", delay_seconds=0.0, launch_grace_seconds=0.0)
    system.restart()
    return system


def announce(system: System, count: int = 3) -> None:
    system.send_files(*(system.write(f"{number}.csv", readings(ROWS, f"d{number}")) for number in range(count)))


def assert_all_stored_once(system: System, count: int = 3) -> None:
    assert set(system.states().values()) == {"ingested"}
    assert len(system.files()) == count
    assert system.services.warehouse.totals().rows == count * ROWS
    assert list(system.checks().values()) == ["SUCCEEDED"] * count


def test_a_database_connection_cut_while_storing_is_reopened(
    impatient: System, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingest_project.file_ingest.warehouse.postgres import PostgresTransaction  # loads the driver

    system = impatient
    database = system.settings.warehouse.database_url.get_secret_value().rpartition("/")[2]
    original, cuts = PostgresTransaction.append_rows, iter([True])

    def cut_off(transaction: PostgresTransaction, rows: object) -> None:
        original(transaction, rows)  # type: ignore[arg-type]
        if next(cuts, False):
            postgres_server.execute(
                f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{database}'"
            )

    monkeypatch.setattr(PostgresTransaction, "append_rows", cut_off)
    announce(system)
    assert all(run.success for run in system.drive())
    assert_all_stored_once(system)


def test_while_the_database_is_down_runs_and_ticks_fail_and_afterwards_they_go_on(
    impatient: System, own_postgres_server: PostgresProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = impatient
    system.settings = changed(system.settings, "warehouse", database_url=SecretStr(own_postgres_server.url()))
    system.restart()
    announce(system)
    (request,) = system.requests()
    own_postgres_server.kill()
    monkeypatch.setattr("ingest_project.file_ingest.load.STORE_WAIT_SECONDS", 0.0)
    assert not system.execute("file_batch", request).success
    with pytest.raises(DatabaseUnavailableError, match="does not answer"):
        system.tick()
    own_postgres_server.start()
    system.drive()
    assert_all_stored_once(system)


def test_a_database_that_is_killed_while_a_batch_is_stored_gets_all_of_it_when_it_is_back(
    impatient: System, own_postgres_server: PostgresProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingest_project.file_ingest.warehouse.postgres import PostgresTransaction  # loads the driver

    system = impatient
    system.settings = changed(system.settings, "warehouse", database_url=SecretStr(own_postgres_server.url()))
    system.restart()
    original, crashes = PostgresTransaction.finish_files, iter([True])

    def crash(transaction: PostgresTransaction, files: object) -> None:
        original(transaction, files)  # type: ignore[arg-type]
        if next(crashes, False):
            own_postgres_server.kill()
            threading.Timer(0.3, own_postgres_server.start).start()

    monkeypatch.setattr(PostgresTransaction, "finish_files", crash)
    monkeypatch.setattr("ingest_project.file_ingest.load.STORE_WAIT_SECONDS", 2.0)
    monkeypatch.setattr("ingest_project.file_ingest.load.STORE_ATTEMPTS", 4)
    announce(system)
    assert all(run.success for run in system.drive())
    assert_all_stored_once(system)


def test_while_the_broker_is_away_a_polling_job_waits_and_afterwards_announces_each_file_once(
    impatient: System, own_kafka_server: OwnServer
) -> None:
    system = impatient
    move_to(system, own_kafka_server)
    for number in range(3):
        system.write(f"{number}.csv", readings(ROWS, f"d{number}"))
    system.send_job(system.folder)
    (request,) = system.requests(POLLING)
    with paused(own_kafka_server, system):
        system.execute("polling_batch", request)
        (job,) = system.services.polling_jobs.list()
        assert (job.state, job.error_class) == (JobState.PENDING, "BrokerUnavailableError")
    system.drive()
    assert_all_stored_once(system)
    assert len(system.on_topic(system.settings.topics.file_event_queue)) == 3


def test_an_unreachable_source_is_polled_again(impatient: System, away: list[bool]) -> None:
    system = impatient
    announce(system)
    away.append(True)
    (request,) = system.requests()
    system.execute("file_batch", request)
    assert system.services.files.counts_by_state()[FileState.PENDING] == 3
    assert os.strerror(errno.ESTALE) in (system.file("0.csv").reason or "")
    away.clear()
    system.drive()
    assert_all_stored_once(system)


def test_a_drive_that_is_not_mounted_is_waited_for(impatient: System) -> None:
    system = impatient
    announce(system)
    system.send_job(system.folder)
    (files,), (job,) = system.requests(), system.requests(POLLING)
    unmounted = system.folder.rename(system.folder.with_name("unmounted"))
    system.execute("file_batch", files)
    system.execute("polling_batch", job)
    assert system.services.files.counts_by_state()[FileState.PENDING] == 3
    assert system.services.polling_jobs.counts_by_state()[JobState.PENDING] == 1
    assert "is not there" in (system.file("0.csv").reason or "")
    unmounted.rename(system.folder)
    system.drive()
    assert_all_stored_once(system)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """While there is something in this list, files cannot be looked at, as on a network drive that is gone."""
    gone: list[bool] = []
    original = os.lstat

    def stale(path: str, **more: int) -> os.stat_result:
        if gone and str(path).endswith(".csv"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return original(path, **more)

    monkeypatch.setattr(os, "lstat", stale)
    return gone
