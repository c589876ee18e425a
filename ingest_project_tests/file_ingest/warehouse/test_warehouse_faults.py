"""Killed processes, cut connections and rivals: the files of a group are stored wholly or not at all."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ingest_project.core.errors import DatabaseUnavailableError, TableUnusableError, TransactionConflictError
from ingest_project.file_ingest.resources import open_warehouse
from ingest_project.file_ingest.warehouse import StoredCounts
from ingest_project.file_ingest.warehouse.sql import SqlWarehouse
from ingest_project.platform.database import open_engine, writing
from ingest_project_tests.crashes.deadly_process import DeadlyProcess
from ingest_project_tests.file_ingest.warehouse.samples import claims, finished, in_ledger, metrics, readings, states
from ingest_project_tests.services.postgres import PostgresProcess, PostgresServer


def half_a_transaction(database_url: str) -> None:
    """Write in a transaction and die."""
    with open_warehouse(database_url).transaction() as transaction:
        transaction.replace_files(["a"])
        transaction.claim_contents(claims(("a", "1")))
        rows = readings("a", range(1_000))
        transaction.append_rows(rows)
        transaction.put_metrics(metrics(rows))
        transaction.finish_files(finished("a", accepted=1_000))
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def postgres_warehouse(postgres_url: str) -> Iterator[SqlWarehouse]:
    warehouse = open_warehouse(postgres_url)
    yield warehouse
    warehouse.close()


def store(warehouse: SqlWarehouse, file_key: str, values: range) -> None:
    rows = readings(file_key, values)
    with warehouse.transaction() as transaction:
        transaction.replace_files([file_key])
        transaction.append_rows(rows)
        transaction.put_metrics(metrics(rows))
        transaction.finish_files(finished(file_key, accepted=len(values)))


def cut_everybody_off(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    server.execute(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'")


def test_a_warehouse_that_nobody_closed_leaves_no_connection_open(postgres_url: str) -> None:
    """The driver warns about one, and a warning fails the test in which Python finds it."""
    warehouse = open_warehouse(postgres_url)
    assert list(warehouse.rows_of("a.csv~1")) == []
    del warehouse
    gc.collect()


def test_a_process_killed_in_the_middle_leaves_the_file_as_it_was(
    deadly_process: DeadlyProcess, database_url: str
) -> None:
    in_ledger(database_url, "a")
    warehouse = open_warehouse(database_url)
    store(warehouse, "a", range(3))
    assert deadly_process.call(f"{__name__}:{half_a_transaction.__name__}", database_url) == -signal.SIGKILL
    assert warehouse.file_counts(["a"]) == {"a": StoredCounts(3, 0, 1)}
    store(warehouse, "a", range(5))
    assert warehouse.file_counts(["a"]) == {"a": StoredCounts(5, 0, 1)}
    with warehouse.transaction() as transaction:
        assert transaction.claim_contents(claims(("b", "1"))) == {"b": "b"}
    warehouse.close()


def test_a_connection_cut_in_the_middle_is_unavailable_and_the_same_warehouse_goes_on(
    postgres_warehouse: SqlWarehouse, postgres_url: str, postgres_server: PostgresServer
) -> None:
    in_ledger(postgres_url, "a")
    store(postgres_warehouse, "a", range(3))

    def store_and_be_cut_off() -> None:
        with postgres_warehouse.transaction() as transaction:
            transaction.replace_files(["a"])
            cut_everybody_off(postgres_server, postgres_url)
            transaction.append_rows(readings("a", range(9)))

    with pytest.raises(DatabaseUnavailableError):
        store_and_be_cut_off()
    assert postgres_warehouse.file_counts(["a"]) == {"a": StoredCounts(3, 0, 1)}
    store(postgres_warehouse, "a", range(4))
    assert postgres_warehouse.totals().rows == 4


def test_a_connection_cut_between_transactions_is_replaced_unnoticed(
    postgres_warehouse: SqlWarehouse, postgres_url: str, postgres_server: PostgresServer
) -> None:
    store(postgres_warehouse, "a", range(3))
    cut_everybody_off(postgres_server, postgres_url)
    store(postgres_warehouse, "b", range(3))
    assert postgres_warehouse.totals().rows == 6


def test_a_server_that_was_away_is_used_again(own_postgres_server: PostgresProcess) -> None:
    warehouse = open_warehouse(own_postgres_server.url(), connect_timeout_seconds=2)
    with warehouse.transaction():
        pass
    own_postgres_server.kill()
    with pytest.raises(DatabaseUnavailableError), warehouse.transaction():
        pass
    own_postgres_server.start()
    with warehouse.transaction():
        pass
    warehouse.close()


def test_two_transactions_on_one_file_leave_it_stored_once(database_url: str) -> None:
    in_ledger(database_url, "a")
    at_once = threading.Barrier(4)

    def run(_: int) -> None:
        warehouse = open_warehouse(database_url)
        at_once.wait(timeout=10)
        for _repetition in range(3):
            store(warehouse, "a", range(50))
        warehouse.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    warehouse = open_warehouse(database_url)
    assert warehouse.file_counts(["a"]) == {"a": StoredCounts(50, 0, 1)}
    warehouse.close()


def test_of_two_transactions_that_claim_one_content_at_once_only_one_stands_for_it(database_url: str) -> None:
    at_once = threading.Barrier(4)

    def claim(name: str) -> dict[str, str]:
        warehouse = open_warehouse(database_url)
        at_once.wait(timeout=10)
        with warehouse.transaction() as transaction:
            # Each names the contents in another order: only their own order keeps them from waiting crosswise.
            contents = [(f"{name}-{number}", str(number)) for number in range(20)]
            owners = transaction.claim_contents(claims(*(contents if name in "ac" else reversed(contents))))
        warehouse.close()
        return owners

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(claim, "abcd"))
    for number in range(20):
        owners = {owner for owners in found for owner in owners.values() if owner.endswith(f"-{number}")}
        assert len(owners) == 1


def test_a_content_given_up_while_its_duplicate_is_stored_finds_the_duplicate(
    postgres_warehouse: SqlWarehouse, postgres_url: str
) -> None:
    in_ledger(postgres_url, "a", "b")
    with postgres_warehouse.transaction() as transaction:
        transaction.claim_contents(claims(("a", "1")))
        transaction.finish_files(finished("a"))

    def give_up() -> tuple[str, ...]:
        with postgres_warehouse.transaction() as transaction:
            reopened = transaction.release_contents(["a"])
            transaction.finish_files(finished("a", "quarantined"))
            return reopened

    with ThreadPoolExecutor(1) as pool:
        with postgres_warehouse.transaction() as transaction:
            assert transaction.claim_contents(claims(("b", "1"))) == {"b": "a"}
            given_up = pool.submit(give_up)
            transaction.finish_files(finished("b", "duplicate", duplicate_of="a"))
        assert given_up.result(timeout=20) == ("b",)
    assert states(postgres_url) == {"a": "quarantined", "b": "pending"}


def test_a_deadlock_is_a_conflict_that_may_be_tried_again(postgres_warehouse: SqlWarehouse, postgres_url: str) -> None:
    in_ledger(postgres_url, "a", "b")
    at_once = threading.Barrier(2)

    def lock(first: str, second: str) -> str:
        try:
            with postgres_warehouse.transaction() as transaction:
                transaction.replace_files([first])
                at_once.wait(timeout=10)
                transaction.replace_files([second])
        except TransactionConflictError as conflict:
            return type(conflict).__name__
        return "stored"

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lock, "ab", "ba"))
    assert sorted(outcomes) == ["TransactionConflictError", "stored"]
    store(postgres_warehouse, "a", range(2))


INTERRUPTED = """
import os, signal, sys, threading
from ingest_project.file_ingest.resources import open_warehouse
class Interrupted(BaseException): pass
def interrupt(*_): raise Interrupted
signal.signal(signal.SIGINT, interrupt)
try:
    with open_warehouse(sys.argv[1]).transaction() as transaction:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        transaction.lock_locations(["held"], wait=True)
        transaction.replace_files(["a"])
except Interrupted:
    print("interrupted")
"""
IGNORES_ITS_CANCELLATION = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(40); RETURN NULL; EXCEPTION WHEN query_canceled THEN RETURN NULL; END $$;
    CREATE TRIGGER waiting BEFORE DELETE ON quarantined_rows FOR EACH STATEMENT EXECUTE FUNCTION wait()"""


@pytest.mark.parametrize("ends", ["cancelled", "by itself"])
def test_an_interrupt_during_a_statement_ends_the_run_however_the_statement_ends(postgres_url: str, ends: str) -> None:
    with open_warehouse(postgres_url).transaction() as transaction:
        transaction.lock_locations(["held" if ends == "cancelled" else "another"], wait=True)
        with writing(open_engine(postgres_url)) as connection:
            connection.exec_driver_sql(IGNORES_ITS_CANCELLATION)
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, postgres_url], capture_output=True, text=True, timeout=50, check=False
        )
    assert done.stdout == "interrupted\n", done.stderr


DROPS_ROWS = {
    "postgresql": """
        CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF NEW.line_number > 3 THEN RETURN NULL; END IF; RETURN NEW; END $$;
        CREATE TRIGGER forgetting BEFORE INSERT ON raw_sensor_data FOR EACH ROW EXECUTE FUNCTION forget()""",
    "sqlite": """
        CREATE TRIGGER forgetting BEFORE INSERT ON raw_sensor_data WHEN NEW.line_number > 3
            BEGIN SELECT RAISE(IGNORE); END""",
}


def test_rows_that_a_trigger_drops_are_missed_before_anything_is_stored(database_url: str) -> None:
    in_ledger(database_url, "a", "b")
    engine = open_engine(database_url)
    with writing(engine) as connection:
        connection.exec_driver_sql(DROPS_ROWS[engine.dialect.name])
    warehouse = open_warehouse(database_url)
    with pytest.raises(TableUnusableError, match="a trigger of raw_sensor_data let 2 of 5 rows through"):
        store(warehouse, "a", range(5))
    store(warehouse, "b", range(2))
    assert warehouse.file_counts(["a", "b"]) == {"a": StoredCounts(0, 0, 0), "b": StoredCounts(2, 0, 1)}
    warehouse.close()


def test_rows_of_a_partitioned_table_are_not_missed(postgres_url: str) -> None:
    """PostgreSQL counts the rows that it inserts into a partition with the partition."""
    in_ledger(postgres_url, "a")
    with writing(open_engine(postgres_url)) as connection:
        connection.exec_driver_sql(
            "ALTER TABLE raw_sensor_data RENAME TO plain; DROP VIEW IF EXISTS device_metrics;"
            " CREATE TABLE raw_sensor_data (LIKE plain) PARTITION BY LIST (sensor_type);"
            " CREATE TABLE rest PARTITION OF raw_sensor_data DEFAULT"
        )
    warehouse = open_warehouse(postgres_url)
    store(warehouse, "a", range(5))
    store(warehouse, "a", range(4))
    assert warehouse.file_counts(["a"]) == {"a": StoredCounts(4, 0, 1)}
    warehouse.close()
