"""The checker accepts exactly the right rows, which the peer's own code stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from benchmarks import peer_celery
from benchmarks.peer_celery import TABLES, ingest_file
from benchmarks.results import differences
from benchmarks.workload import Workload, write_workload

pytestmark = pytest.mark.long

FILES, ROWS = 100, 100


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    return write_workload(tmp_path / "inbox", FILES, ROWS)


@pytest.fixture
def database_url(empty_postgres_url: str, workload: Workload, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database into which the peer has ingested the workload."""
    url = empty_postgres_url.replace("+psycopg2", "")
    monkeypatch.setenv("PEER_DATABASE_URL", url)
    execute(url, TABLES)
    for path in workload.paths:
        ingest_file(str(path))
    yield url
    # The worker's own connection, which it keeps for as long as it lives.
    peer_celery._open_connection().close()


def execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)


def test_the_peer_benchmark_stores_exact_values(database_url: str, workload: Workload) -> None:
    assert differences(database_url, workload) == []


def test_a_task_that_is_delivered_twice_stores_its_file_once(database_url: str, workload: Workload) -> None:
    ingest_file(str(workload.good(1).paths[0]))
    assert differences(database_url, workload) == []


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM raw_sensor_data WHERE line_number = 7",
        "INSERT INTO raw_sensor_data SELECT * FROM raw_sensor_data WHERE line_number = 7",
        "UPDATE raw_sensor_data SET value = value + 0.01 WHERE line_number = 7",
        'UPDATE raw_sensor_data SET "timestamp" = "timestamp" + interval \'1 second\' WHERE line_number = 7',
        "UPDATE raw_sensor_data SET line_number = 8 WHERE line_number = 7",
        "DELETE FROM quarantined_rows WHERE line_number < 30",
        "UPDATE aggregated_metrics SET mean = mean * 1.0001 WHERE file_key = 'readings-000001.csv'",
        "UPDATE aggregated_metrics SET stddev = NULL WHERE file_key = 'readings-000001.csv'",
        "DELETE FROM aggregated_metrics WHERE file_key = 'readings-000001.csv'",
        "UPDATE files SET state = 'ingested' WHERE state = 'quarantined'",
        "DELETE FROM files WHERE file_key = 'readings-000001.csv'",
        "UPDATE files SET rows_accepted = rows_accepted + 1 WHERE file_key = 'readings-000001.csv'",
    ],
)
def test_any_other_row_or_number_is_noticed(database_url: str, workload: Workload, damage: str) -> None:
    execute(database_url, damage)
    assert differences(database_url, workload)
