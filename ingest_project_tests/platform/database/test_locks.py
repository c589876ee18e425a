"""A named lock excludes other processes, and is released when its process ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from ingest_project.core.errors import TransactionConflictError
from ingest_project.platform.database import exclusive, open_engine, reading

HOLD = """
import sys
from ingest_project.platform.database import open_engine
from ingest_project.platform.database import exclusive
with exclusive(open_engine(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
LONG_SECONDS = 120.0


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


@contextmanager
def held_elsewhere(url: str, name: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, until its input ends or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, url, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.communicate()


def test_a_lock_that_is_not_released_in_time_is_reported_and_comes_free_when_its_process_is_killed(
    engine: sa.Engine, database_url: str
) -> None:
    with held_elsewhere(database_url, "one") as process:
        with pytest.raises(TransactionConflictError), exclusive(engine, "one", wait_seconds=0.1):
            pass
        with exclusive(engine, "another", wait_seconds=0.1):
            pass
        process.kill()
        with exclusive(engine, "one", wait_seconds=LONG_SECONDS):
            pass


def test_a_lock_is_released_when_the_work_under_it_fails(engine: sa.Engine) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(engine, "one"):
        raise ZeroDivisionError
    with exclusive(engine, "one", wait_seconds=LONG_SECONDS):
        pass


def test_waiting_for_a_locked_table_names_the_holder_of_the_lock(postgres_url: str) -> None:
    holder, waiting = open_engine(postgres_url), open_engine(postgres_url, lock_timeout_seconds=1)
    with holder.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE files, contents IN ACCESS EXCLUSIVE MODE")
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with (
            pytest.raises(
                TransactionConflictError, match=rf"process {pid} of \w+ \(\w+\) has locked contents, files for"
            ),
            reading(waiting) as reader,
        ):
            reader.exec_driver_sql("SELECT 1 FROM files")
    holder.dispose()
    waiting.dispose()
