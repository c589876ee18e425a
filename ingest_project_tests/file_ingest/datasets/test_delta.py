"""A declared dataset in a Delta table: each file's rows in one commit, once, also where the process is killed."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from dagster import DagsterInstance
from dagster._serdes import serialize_value

from ingest_project.core.settings import Settings
from ingest_project.file_ingest.warehouse.delta_rows import delta_store
from ingest_project.platform.database import writing
from ingest_project.platform.delta.table import query_events
from ingest_project.readers.datasets import load_declarations
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint, bury_the_dead
from ingest_project_tests.file_ingest.datasets.system import (
    BAD,
    GOOD,
    HEADER,
    WEATHER,
    DatasetSystem,
    declare,
    opened,
    read_in_chunks,
    settings_of,
    weather_file,
)
from ingest_project_tests.journeys.system import environment
from ingest_project_tests.services.kafka import Server

DELTA = {**WEATHER, "target": {"delta": "weather", "partition_by": ["station"]}}
WAY = "ingest_project_tests.file_ingest.datasets.system:DatasetSystem.run_due"
OUTSIDE = "ingest_project.file_ingest.warehouse.delta_rows:DeltaSession"


@pytest.fixture
def delta(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> Iterator[DatasetSystem]:
    """A system with the dataset `weather` in a Delta table."""
    declare(tmp_path, "weather", **DELTA)
    system = opened(settings_of(kafka_server, postgres_url, tmp_path), instance, tmp_path)
    yield system
    system.close()


def stored(system: DatasetSystem) -> pl.DataFrame:
    """Return the rows of the Delta table."""
    return stored_at(system.settings, "weather")


def stored_at(settings: Settings, dataset: str) -> pl.DataFrame:
    """Return the rows of a dataset's Delta table."""
    store = delta_store(load_declarations(settings)[dataset], settings)
    batches = list(query_events(store, "SELECT * FROM events ORDER BY file_key, line_number"))
    return pl.concat([pl.DataFrame(pl.from_arrow(batch)) for batch in batches]) if batches else pl.DataFrame()


def versions(system: DatasetSystem) -> list[str]:
    """Return the kind of each commit."""
    table = delta_store(system.declarations["weather"], system.settings).opened()
    return [str(entry["operation"]) for entry in reversed(table.history())] if table else []


@pytest.mark.parametrize("chunk_bytes", [1024**2, 60])
def test_rows_of_new_files_are_appended_in_one_commit(
    delta: DatasetSystem, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    read_in_chunks(monkeypatch, chunk_bytes)
    delta.send_files(weather_file(delta), weather_file(delta, "bad.csv", HEADER + BAD))
    delta.run_due()
    assert delta.states() == {"a.csv": "ingested", "bad.csv": "quarantined"}
    rows = stored(delta)
    assert rows["station"].to_list() == ["AAA", "AAA", "BBB"]
    assert [str(value) for value in rows["rain"].to_list()] == ["0.20", "None", "3.05"]
    assert versions(delta) == ["CREATE TABLE", "WRITE"]
    assert delta.check("contract_holds", delta.file("a.csv").file_key).passed
    assert delta.check("rows_add_up").passed


@pytest.mark.parametrize("partitions", [[], ["station", "sunny"]])
def test_other_partitions_of_the_table_are_refused_and_the_files_wait(
    delta: DatasetSystem, tmp_path: Path, partitions: list[str]
) -> None:
    delta.send_files(weather_file(delta))
    delta.run_due()
    before = stored(delta).height
    declare(tmp_path, "weather", **{**DELTA, "target": {"delta": "weather", "partition_by": partitions}})
    delta.restart()
    delta.send_files(weather_file(delta, "b.csv", HEADER + GOOD.splitlines(keepends=True)[1]))
    (request,) = delta.requests()
    assert not delta.execute(str(request.job_name), request).success
    reason = delta.file("b.csv").reason or ""
    assert f"partitioned by station, and partition_by asks for {', '.join(partitions) or 'nothing'}" in reason
    assert (delta.states(), stored(delta).height) == ({"a.csv": "ingested", "b.csv": "pending"}, before)
    declare(tmp_path, "weather", **DELTA)
    delta.restart()
    delta.run_due()
    assert (delta.states()["b.csv"], stored(delta).height) == ("ingested", before + 1)


def test_a_newer_version_and_a_repeated_run_replace_the_rows(delta: DatasetSystem) -> None:
    delta.send_files(weather_file(delta), weather_file(delta, "b.csv", HEADER + "CCC,2026-01-15T10:00:00Z,1,,,,\n"))
    delta.run_due()
    job = delta.definitions.resolve_job_def("weather_batch")
    key = delta.file("a.csv").file_key
    assert job.execute_in_process(instance=delta.instance, partition_key=key).success
    assert sorted(stored(delta)["station"]) == ["AAA", "AAA", "BBB", "CCC"]
    delta.send_files(weather_file(delta, content=HEADER + "ZZZ,2026-01-15T10:00:00Z,1,,,,\n"))
    delta.run_due()
    assert sorted(stored(delta)["station"]) == ["CCC", "ZZZ"]


def test_a_file_that_is_rejected_later_has_no_rows(delta: DatasetSystem) -> None:
    delta.send_files(weather_file(delta))
    delta.run_due()
    record = delta.file("a.csv")
    delta.send_files(
        weather_file(delta, "a.csv", HEADER + GOOD + "\n"), metadata={"dataset": "weather", "format": "nope"}
    )
    delta.run_due()
    assert record.file_key in {row["file_key"] for row in stored(delta).to_dicts()}, (
        "a version that cannot be read replaces nothing"
    )


def test_drift_evolves_the_delta_table(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> None:
    declare(tmp_path, "weather", **{**DELTA, "drift": "evolve"})
    system = opened(settings_of(kafka_server, postgres_url, tmp_path), instance, tmp_path)
    system.send_files(weather_file(system))
    system.run_due()
    system.send_files(weather_file(system, "b.csv", "station,observed_at,Wind\nCCC,2026-01-15T10:00:00Z,7\n"))
    system.run_due()
    assert stored(system).sort("station")["wind"].to_list() == [None, None, None, "7"]
    system.close()


POINTS = [
    KillPoint("rows replaced", f"{OUTSIDE}.replace"),
    KillPoint("rows committed to Delta, not to the database", f"{OUTSIDE}.commit"),
]


def environ_of_the_dead(server: Server, database_url: str, folder: Path) -> dict[str, Any]:
    """Return the settings of the process that is killed: of the databases of this test, also of Dagster's."""
    dagster = {"DAGSTER_POSTGRES_URL": os.environ["DAGSTER_POSTGRES_URL"]}
    return environment(server.bootstrap_servers, database_url, folder) | dagster | {"INGEST_LAUNCH_GRACE_SECONDS": "0"}


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.step)
def test_killed_between_the_two_commits_every_row_is_there_once(  # noqa: PLR0913, PLR0917 - fixtures
    kafka_server: Server,
    postgres_url: str,
    instance: DagsterInstance,
    tmp_path: Path,
    deadly_process: DeadlyProcess,
    point: KillPoint,
) -> None:
    declare(tmp_path, "weather", **DELTA)
    environ = environ_of_the_dead(kafka_server, postgres_url, tmp_path)
    system = opened(settings_of(kafka_server, postgres_url, tmp_path, **environ), instance, tmp_path)
    system.send_files(weather_file(system), weather_file(system, "b.csv", HEADER + "CCC,2026-01-15T10:00:00Z,1,,,,\n"))
    system.close()
    code = deadly_process.drive(point, tmp_path / "in", serialize_value(instance.get_ref()), environ, WAY)
    assert code == -9
    bury_the_dead(instance)
    system = opened(settings_of(kafka_server, postgres_url, tmp_path, **environ), instance, tmp_path)
    system.run_due()
    assert sorted(stored(system)["station"]) == ["AAA", "AAA", "BBB", "CCC"]
    assert set(system.states().values()) == {"ingested"}
    system.close()


PARTS = [
    *("a b", "a/b", "k=v", "100%", "%2F", "\u00fc\u4e2d", ".", "..", "a\\b", "a:b", "#?&", "'", '"', "*", "+", "~"),
    *("\U0001f600", "1", "CON", "_x"),
]
NO_PARTS = ["__HIVE_DEFAULT_PARTITION__", "a" * 300, "\u00e4" * 200]


def test_any_text_is_a_partition_and_comes_back_as_it_was(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> None:
    columns = [{"name": "part", "type": "text"}, {"name": "n", "type": "integer"}]
    declare(
        tmp_path,
        "weather",
        columns=columns,
        paths=["*/weather/*"],
        max_rejected_share=0.5,
        target=DELTA["target"] | {"partition_by": ["part"]},
    )
    system = opened(settings_of(kafka_server, postgres_url, tmp_path), instance, tmp_path)
    text = io.StringIO()
    csv.writer(text).writerows(
        [("part", "n"), *((part, number) for number, part in enumerate([*PARTS, "", *NO_PARTS]))]
    )
    system.send_files(weather_file(system, content=text.getvalue()))
    system.run_due()
    assert system.states() == {"a.csv": "ingested"}, system.file("a.csv").reason
    assert stored(system).sort("n")["part"].to_list() == [*PARTS, None]
    rejected = system.rows("SELECT reasons FROM quarantined_rows")
    assert rejected == [(["part_not_a_partition"],)] * len(NO_PARTS)
    system.close()


NEWER = HEADER + "ZZZ,2026-01-15T10:00:00Z,1,,,,\n"
COMMITS_FAIL = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'nothing is ingested here' USING ERRCODE = '22000'; END $$;
    CREATE CONSTRAINT TRIGGER refused AFTER UPDATE ON files DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.state = 'ingested') EXECUTE FUNCTION refuse()"""


def test_where_the_database_never_commits_the_rows_go_and_those_that_they_replaced_come_back(
    delta: DatasetSystem,
) -> None:
    delta.send_files(weather_file(delta))
    delta.run_due()
    before = stored(delta)
    with writing(delta.services.engine) as connection:
        connection.exec_driver_sql(COMMITS_FAIL)
    delta.send_files(weather_file(delta, content=NEWER), weather_file(delta, "b.csv", NEWER + "\n"))
    delta.run_due()
    assert {record.state.value for record in delta.services.files.list()} == {"ingested", "failed"}
    assert stored(delta).equals(before)
    assert delta.check("rows_add_up").passed
    with writing(delta.services.engine) as connection:
        connection.exec_driver_sql("DROP TRIGGER refused ON files")
    delta.services.files.reopen([delta.file("b.csv").file_key], datetime.now(UTC))
    delta.run_due()
    assert sorted(stored(delta)["station"]) == ["AAA", "AAA", "BBB", "ZZZ"]


def test_a_stored_file_whose_next_attempt_is_given_up_between_the_commits_has_its_recorded_rows(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path, deadly_process: DeadlyProcess
) -> None:
    declare(tmp_path, "weather", **DELTA)
    environ = environ_of_the_dead(kafka_server, postgres_url, tmp_path) | {"MAX_RETRIES": "1"}
    settings = settings_of(kafka_server, postgres_url, tmp_path, **environ)
    system = opened(settings, instance, tmp_path)
    system.send_files(weather_file(system))
    system.run_due()
    before = stored(system)
    # The same file, whose newer parse has as many rows.
    (tmp_path / "in" / "weather" / "a.csv").write_text((HEADER + GOOD).replace("AAA", "XXX"), encoding="utf-8")
    system.services.files.reopen([system.file("a.csv").file_key], datetime.now(UTC))
    system.close()
    assert deadly_process.drive(POINTS[1], tmp_path / "in", serialize_value(instance.get_ref()), environ, WAY) == -9
    assert "XXX" in stored_at(settings, "weather")["station"].to_list()
    bury_the_dead(instance)
    system = opened(settings, instance, tmp_path)
    system.run_due()
    assert system.file("a.csv").stands
    for _ in range(2):
        assert system.definitions.resolve_job_def("dataset_maintenance").execute_in_process(instance=instance).success
        assert stored(system).equals(before)
    assert system.check("rows_add_up").passed
    system.close()


def test_a_file_given_up_after_a_kill_between_the_commits_leaves_no_rows_after_maintenance(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path, deadly_process: DeadlyProcess
) -> None:
    declare(tmp_path, "weather", **DELTA)
    environ = environ_of_the_dead(kafka_server, postgres_url, tmp_path) | {"MAX_RETRIES": "1"}
    settings = settings_of(kafka_server, postgres_url, tmp_path, **environ)
    system = opened(settings, instance, tmp_path)
    system.send_files(weather_file(system))
    system.run_due()
    before = stored(system)
    system.send_files(weather_file(system, content=NEWER))
    system.close()
    assert deadly_process.drive(POINTS[1], tmp_path / "in", serialize_value(instance.get_ref()), environ, WAY) == -9
    assert stored_at(settings, "weather")["station"].to_list() == ["ZZZ"]
    bury_the_dead(instance)
    system = opened(settings, instance, tmp_path)
    system.run_due()
    assert {record.state.value for record in system.services.files.list()} == {"ingested", "failed"}
    assert system.definitions.resolve_job_def("dataset_maintenance").execute_in_process(instance=instance).success
    assert stored(system).equals(before)
    system.close()
