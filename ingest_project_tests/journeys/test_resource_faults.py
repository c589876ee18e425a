"""A resource is exhausted, shared or slow: nothing is lost or doubled, and the system continues automatically."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import pytest
from pydantic import SecretStr

from ingest_project.core.settings import load_settings
from ingest_project.platform.database import migrate, open_engine
from ingest_project_tests.journeys.system import System, changed, environment, readings
from ingest_project_tests.services.dagster import instance_on
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.services.postgres import PostgresProcess
from ingest_project_tests.services.slow_network import SlowWay, slow_way

pytestmark = pytest.mark.long

ROWS = 4
MANY_FILES, MANY_ROWS = 30, 3_000
SMALL_DISK_BYTES = 64 * 1024**2


@pytest.fixture
def impatient(system: System) -> System:
    """The system with no pause between attempts; what a dead run holds is taken back at once."""
    system.settings = changed(system.settings, "retries", delay_seconds=0.0, launch_grace_seconds=0.0)
    system.restart()
    return system


def announce(system: System, count: int = 3, rows: int = ROWS) -> None:
    system.send_files(*(system.write(f"{number}.csv", readings(rows, f"d{number}")) for number in range(count)))


def assert_all_stored_once(system: System, count: int = 3, rows: int = ROWS) -> None:
    assert set(system.states().values()) == {"ingested"}
    assert len(system.files()) == count
    assert system.services.warehouse.totals().rows == count * rows


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of its own, which a file fills in no time."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    """Leave so much room."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave_bytes)
    return filler


def test_a_disk_of_the_database_that_is_full_stops_only_as_long_as_it_is_full(
    impatient: System, own_postgres_server: PostgresProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, server = impatient, own_postgres_server
    monkeypatch.setattr("ingest_project.file_ingest.load.STORE_WAIT_SECONDS", 0.0)
    with small_disk(server.folder / "small") as disk:
        owner = server.data.stat()
        os.chown(disk, owner.st_uid, owner.st_gid)
        server.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        server.execute("CREATE DATABASE small TABLESPACE small")
        system.settings = changed(system.settings, "warehouse", database_url=SecretStr(server.url("small")))
        system.restart()
        engine = open_engine(server.url("small"))
        migrate(engine)
        engine.dispose()
        announce(system, MANY_FILES, MANY_ROWS)
        (request,) = system.requests()
        filler = fill(disk, leave_bytes=256 * 1024)
        assert not system.execute("file_batch", request).success
        assert not {"quarantined", "failed", "ingested"} & set(system.states().values())
        filler.unlink()
        system.drive()
        assert_all_stored_once(system, MANY_FILES, MANY_ROWS)
        system.close()
        server.kill()


def test_two_installations_on_one_warehouse_store_each_file_once(
    impatient: System, kafka_server: Server, tmp_path: Path
) -> None:
    url = impatient.settings.warehouse.database_url.get_secret_value()
    environ = environment(kafka_server.bootstrap_servers, url, tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        other = System(load_settings(environ, tmp_path).settings, instance, impatient.folder)
        other.settings = changed(other.settings, "retries", delay_seconds=0.0, launch_grace_seconds=0.0)
        other.restart()
        announce(impatient)
        other.send_files(*(impatient.folder / f"{number}.csv" for number in range(3)))
        other.send_files(impatient.write("of-the-other.csv", readings(ROWS, "other")))
        # Each asks before the other has done anything, and finds runs on record that it knows nothing of.
        first, second = impatient.requests(), other.requests()
        for request in second:
            other.execute("file_batch", request)
        for request in first:
            impatient.execute("file_batch", request)
        other.drive()
        impatient.drive()
        assert_all_stored_once(impatient, count=4)
        other.close()


@pytest.fixture
def slow_system(
    kafka_server: Server, postgres_url: str, dagster_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[System, SlowWay]]:
    """A system whose records of Dagster are at the end of a slow way, and that way."""
    address = urlsplit(dagster_postgres_url)
    assert address.port is not None
    (tmp_path / "in").mkdir()
    environ = environment(kafka_server.bootstrap_servers, postgres_url, tmp_path)
    with slow_way(address.port) as way:
        slow_url = dagster_postgres_url.replace(f":{address.port}/", f":{way.port}/")
        with instance_on(slow_url, tmp_path, monkeypatch) as instance:
            system = System(load_settings(environ, tmp_path).settings, instance, tmp_path / "in")
            yield system, way
            system.close()


def test_a_slow_event_log_delays_a_batch_and_changes_nothing(slow_system: tuple[System, SlowWay]) -> None:
    system, way = slow_system
    announce(system, count=100)
    way.delay_seconds = 0.1
    assert all(run.success for run in system.drive())
    way.delay_seconds = 0.0
    assert_all_stored_once(system, count=100)
    assert list(system.checks().values()) == ["SUCCEEDED"] * 100
