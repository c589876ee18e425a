"""Undeclared columns are rescued, added or refused, and always reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from dagster import AssetCheckEvaluation, DagsterInstance
from dagster._core.storage.partition_status_cache import AssetPartitionStatus

from ingest_project.core.settings import Settings, load_settings
from ingest_project.file_ingest.capability import FileIngest
from ingest_project.file_ingest.declared import DeclaredContract, refused_by_tables, tables_of, with_columns
from ingest_project.file_ingest.resources import open_warehouse
from ingest_project.file_ingest.warehouse.delta_rows import delta_store
from ingest_project.platform.database import open_engine, reading, writing
from ingest_project.platform.delta.table import query_events
from ingest_project.readers.declaration import DatasetDeclaration
from ingest_project_tests.file_ingest.datasets.system import (
    WEATHER,
    DatasetSystem,
    declare,
    opened,
    read_in_chunks,
    settings_of,
    weather_file,
)
from ingest_project_tests.journeys.system import changed
from ingest_project_tests.services.kafka import Server

VALIDATED = dg.AssetKey(["weather", "validated"])
B = "station,observed_at,temperature\nBBB,2026-01-15T10:00:00Z,3\n"
OTHER = "observed_at,station,Wind Speed,1st\n2026-01-15T10:00:00Z,AAA,3,x\n2026-01-15T11:00:00Z,AAA,,\n"

Make = Callable[..., DatasetSystem]


@pytest.fixture
def system(kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path) -> Iterator[Make]:
    """A system with a changed declaration of weather."""
    made: list[DatasetSystem] = []

    def make(**changes: Any) -> DatasetSystem:  # noqa: ANN401 - what a declaration holds
        declare(tmp_path, "weather", **{**WEATHER, **changes})
        for one in made:
            one.close()
        settings = made[-1].settings if made else settings_of(kafka_server, postgres_url, tmp_path)
        made.append(opened(settings, instance, tmp_path))
        if len(made) > 1:
            made[-1].cursors = made[-2].cursors
        return made[-1]

    yield make
    made[-1].close()


def with_few_attempts(system: DatasetSystem) -> DatasetSystem:
    """Let a file have two attempts, so that more than it may have are few."""
    system.settings = changed(system.settings, "retries", max_attempts=2)
    system.restart()
    return system


def reported(system: DatasetSystem) -> AssetCheckEvaluation:
    """Return the newest result of `schema_unchanged`."""
    return newest(system, "schema_unchanged")


def newest(system: DatasetSystem, check: str) -> AssetCheckEvaluation:
    """Return the newest result of a check."""
    key = dg.AssetCheckKey(VALIDATED, check)
    (record, *_) = system.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    assert record.event is not None
    assert record.event.dagster_event is not None
    return record.event.dagster_event.asset_check_evaluation_data


def test_rescue_keeps_unknown_columns_in_rescued_data(system: Make) -> None:
    weather = system()
    weather.send_files(weather_file(weather, content=OTHER))
    weather.run_due()
    assert weather.rows("SELECT rescued_data FROM weather ORDER BY line_number") == [
        ({"Wind Speed": "3", "1st": "x"},),
        (None,),
    ]
    shown = weather.metadata(VALIDATED, weather.file("a.csv").file_key)
    assert shown["unknown_columns"] == ["Wind Speed", "1st"]
    assert shown["missing_columns"] == ["temperature", "rain", "sunny", "note", "day"]
    assert shown["columns_reordered"]
    result = reported(weather)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "unknown: Wind Speed, 1st" in str(result.description)
    assert "kept in rescued_data" in str(result.description)


def test_evolve_adds_columns_and_later_files_share_them(system: Make) -> None:
    weather = system(drift="evolve")
    weather.send_files(
        weather_file(weather, content=OTHER),
        weather_file(weather, "b.csv", "station,observed_at\nBBB,2026-01-15T10:00:00Z\n"),
    )
    weather.run_due()
    assert set(weather.states().values()) == {"ingested"}
    assert weather.rows("SELECT station, wind_speed, _1st, rescued_data FROM weather ORDER BY 1, line_number") == [
        ("AAA", "3", "x", None),
        ("AAA", None, None, None),
        ("BBB", None, None, None),
    ]
    weather.send_files(
        weather_file(weather, "c.csv", "station,observed_at,wind speed,new\nCCC,2026-01-15T10:00:00Z,7,8\n")
    )
    weather.run_due()
    assert weather.rows("SELECT wind_speed, new FROM weather WHERE station = 'CCC'") == [("7", "8")]


def test_freeze_quarantines_the_file(system: Make) -> None:
    weather = system(drift="freeze")
    weather.send_files(weather_file(weather, content=OTHER))
    weather.run_due()
    record = weather.file("a.csv")
    assert record.state.value == "quarantined"
    assert record.rule_counts == {"schema_changed": 1}
    assert "unknown: Wind Speed, 1st" in str(record.reason)
    assert not reported(weather).passed


def test_a_column_of_another_type_is_reported(system: Make) -> None:
    weather = system(max_rejected_share=1)
    rows = "".join(f"AAA,2026-01-15T10:00:00Z,{text}\n" for text in ("cold", "warm", "3"))
    weather.send_files(weather_file(weather, content="station,observed_at,temperature\n" + rows))
    weather.run_due()
    shown = weather.metadata(VALIDATED, weather.file("a.csv").file_key)
    assert shown["retyped_columns"] == ["temperature"]


def test_a_new_optional_column_and_a_wider_decimal_are_added(system: Make) -> None:
    weather = system()
    weather.send_files(weather_file(weather))
    weather.run_due()
    columns = [dict(column) for column in WEATHER["columns"]]
    columns[3]["type"] = "decimal(12,3)"
    weather = system(columns=[*columns, {"name": "wind", "type": "number"}])
    weather.send_files(
        weather_file(weather, "b.csv", "station,observed_at,wind,rain\nBBB,2026-01-15T10:00:00Z,7.5,1.125\n")
    )
    weather.run_due()
    assert weather.states() == {"a.csv": "ingested", "b.csv": "ingested"}
    assert [(w, str(r)) for w, r in weather.rows("SELECT wind, rain FROM weather WHERE wind IS NOT NULL")] == [
        (7.5, "1.125")
    ]


REFUSED = {
    "another type": ({"type": "integer", "min": -90, "max": 60}, "the table holds number, declared is integer"),
    "required": ({"required": True}, "became required"),
    "removed": (None, "not declared any more"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_change_that_would_lose_data_is_refused_and_the_files_wait(
    system: Make, change: dict[str, Any] | None, reason: str
) -> None:
    weather = system()
    weather.send_files(weather_file(weather))
    weather.run_due()
    columns = [dict(column) for column in WEATHER["columns"]]
    if change is None:
        del columns[2]
    else:
        columns[2] |= change
    measures = {"columns": ["rain"], "group_by": ["station"]}
    weather = system(columns=columns, measures=measures)
    weather.send_files(weather_file(weather, "b.csv", B))
    (request,) = weather.requests()
    assert not weather.execute(str(request.job_name), request).success
    record = weather.file("b.csv")
    assert record.state.value == "pending"
    assert reason in str(record.reason)
    assert "ALTER TABLE weather" in str(record.reason)


@pytest.mark.parametrize("target", [{}, {"delta": "weather"}], ids=["table", "Delta"])
def test_files_that_the_table_refuses_wait_until_it_is_fixed(system: Make, target: dict[str, str]) -> None:
    weather = with_few_attempts(system(target=target))
    weather.send_files(weather_file(weather))
    weather.run_due()
    columns = [dict(column) for column in WEATHER["columns"]]
    columns[2]["type"] = "integer"
    weather = system(target=target, columns=columns)
    weather.send_files(weather_file(weather, "b.csv", B))
    for _ in range(weather.settings.retries.max_attempts + 2):
        (request,) = weather.requests()
        run = weather.execute(str(request.job_name), request)
        assert not run.success
    record, stored = weather.file("b.csv"), weather.file("a.csv")
    assert (record.state.value, record.attempts, record.error_class) == ("pending", 0, "SchemaConflictError")
    assert "Column 'temperature' does not fit" in str(record.reason)
    assert "Declare the" in str(record.reason)
    assert ("name another Delta table" if target else "name a new table as target.table") in str(record.reason)
    (problem,) = FileIngest().read_work(weather.services, detailed=False).problems
    assert problem.startswith(f"1 file waits in the dataset weather. {record.reason}")
    (failed,) = (event.step_failure_data.user_failure_data for event in run.all_events if event.is_step_failure)
    assert failed is not None
    assert failed.description == problem
    assert weather.item("b.csv").reason == record.reason
    shown = newest(weather, "file_accepted")
    assert (shown.passed, shown.partition, shown.description) == (False, record.file_key, record.reason)
    assert [*refused_by_tables(weather.declarations.declared, weather.settings)] == [
        f"The dataset weather: {record.reason}"
    ]
    # A person processes a stored file again: it waits as well, and its rows stay.
    job = weather.definitions.resolve_job_def("weather_batch")
    assert not job.execute_in_process(
        instance=weather.instance, partition_key=stored.file_key, raise_on_error=False
    ).success
    assert weather.states() == {"a.csv": "pending", "b.csv": "pending"}
    assert weather.file("a.csv").stands
    weather = system(target=target)
    weather.run_due()
    assert weather.states() == {"a.csv": "ingested", "b.csv": "ingested"}
    assert weather.check("rows_add_up").passed
    assert (
        weather.services.warehouse.of(tables_of(weather.declarations["weather"], weather.settings)).totals().rows == 4
    )
    keys = [record.file_key, stored.file_key]
    assert weather.instance.get_materialized_partitions(VALIDATED) == {*keys}
    statuses = weather.instance.get_status_by_partition(VALIDATED, keys, weather_partitions(weather))
    assert statuses == dict.fromkeys(keys, AssetPartitionStatus.MATERIALIZED)
    assert FileIngest().read_work(weather.services, detailed=False).problems == ()


def weather_partitions(weather: DatasetSystem) -> dg.PartitionsDefinition[str]:
    """Return the partitions of the dataset."""
    found = weather.definitions.resolve_asset_graph().get(VALIDATED).partitions_def
    assert found is not None
    return found


@pytest.mark.parametrize("chunk_bytes", [1024**2, 40])
def test_files_wait_for_a_right_that_is_missing(
    system: Make, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    read_in_chunks(monkeypatch, chunk_bytes)
    weather = with_few_attempts(system())
    weather.send_files(weather_file(weather))
    weather.run_due()
    forbid = (
        "CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE insufficient_privilege; END $$"
    )
    with writing(weather.services.engine) as connection:
        # As the owner of the table, the user of the tests has every right.
        connection.exec_driver_sql(forbid)
        connection.exec_driver_sql("CREATE TRIGGER t BEFORE INSERT ON weather EXECUTE FUNCTION forbid()")
    weather.send_files(weather_file(weather, "b.csv", B), weather_file(weather, "c.csv", B + B.splitlines()[1] + "\n"))
    for _ in range(weather.settings.retries.max_attempts + 2):
        for request in weather.requests():
            assert not weather.execute(str(request.job_name), request).success
    assert weather.states() == {"a.csv": "ingested", "b.csv": "pending", "c.csv": "pending"}
    assert "The database refuses to store: " in str(weather.file("b.csv").reason)
    with writing(weather.services.engine) as connection:
        connection.exec_driver_sql("DROP TRIGGER t ON weather")
    weather.run_due()
    assert set(weather.states().values()) == {"ingested"}
    assert weather.check("rows_add_up").passed


KEPT = "SELECT rescued_data::text FROM weather ORDER BY station"
TEMP = "station,observed_at,Gust,{}\n{},2026-01-15T10:00:00Z,{}\n"


@pytest.mark.parametrize("target", [{}, {"delta": "weather"}], ids=["table", "Delta"])
@pytest.mark.parametrize("chunk_bytes", [1024**2, 40])
def test_spellings_of_a_new_column_are_one_column(
    system: Make, monkeypatch: pytest.MonkeyPatch, target: dict[str, str], chunk_bytes: int
) -> None:
    read_in_chunks(monkeypatch, chunk_bytes)
    weather = system(drift="evolve", target=target)
    files = {
        "a": TEMP.format("Wind Speed", "AAA", "1,2"),
        "b": TEMP.format("wind_speed", "BBB", "3,4"),
        # Both in one file: the column has its own name's, the other one stays where it is.
        "c": TEMP.format("Wind Speed,wind_speed", "CCC", "5,6,7") + "CCC,2026-01-15T10:00:00Z,,8,\n",
        # No letter of the one is in the other.
        "d": TEMP.format("\u6e29\u5ea6 1,\u6e7f\u5ea6 1", "DDD", "9,10,11"),
        "e": TEMP.format("More", "EEE", "x,y"),
        "f": TEMP.format("gust,More [2]", "FFF", "12,13,14"),
    }
    weather.send_files(*(weather_file(weather, f"{name}.csv", content) for name, content in files.items()))
    weather.run_due()
    assert set(weather.states().values()) == {"ingested"}
    table = tables_of(weather.declarations["weather"], weather.settings)
    found = {}
    for name in files:
        key = weather.file(f"{name}.csv").file_key
        tables = with_columns(table, ["gust", "wind_speed", "_1", "more"])
        page = weather.services.warehouse.of(tables).page_of(key, 0, 9)
        shown = [page.columns.index(column) for column in ("gust", "wind_speed", "_1", "more", "rescued_data")]
        rows = [[row[index] for index in shown] for row in page.rows]
        found[name] = [(*row, rescued and json.loads(rescued)) for *row, rescued in rows]
    assert found == {
        "a": [("1", "2", None, None, None)],
        "b": [("3", "4", None, None, None)],
        "c": [("5", "7", None, None, {"Wind Speed": "6"}), (None, None, None, None, {"Wind Speed": "8"})],
        "d": [("9", None, "10", None, {"\u6e7f\u5ea6 1": "11"})],
        "e": [("x", None, None, "y", None)],
        "f": [("12", None, None, None, {"gust [2]": "13"})],
    }
    metadata = weather.metadata(VALIDATED, weather.file("c.csv").file_key)
    assert metadata["rescued_columns"] == ["Wind Speed"]


JSON_LINES = r"""
{"station": "AAA", "observed_at": "2026-01-15T10:00:00Z", "Gust": 0.10, "": "x", "list": [1e200000, {"b": 1.0}]}
{"station": "BBB", "observed_at": "2026-01-15T11:00:00Z", "gust": 12345678901234567890123, "more": 1e200000}
{"station": "CCC", "observed_at": "2026-01-15T12:00:00Z", "Gust": 1, "gust": "2", "more": null}
"""


@pytest.mark.parametrize("drift", ["rescue", "evolve"])
def test_fields_of_json_are_kept_as_they_are_written(system: Make, drift: str) -> None:
    weather = system(drift=drift, file_types=["jsonl"])
    weather.send_files(weather_file(weather, "a.jsonl", JSON_LINES))
    weather.run_due()
    assert weather.states() == {"a.jsonl": "ingested"}, weather.file("a.jsonl").reason
    rescued = [json.loads(text or "{}", parse_int=str, parse_float=str) for (text,) in weather.rows(KEPT)]
    unnamed = "column 4, without a name"
    if drift == "rescue":
        assert rescued == [
            {"Gust": "0.10", unnamed: "x", "list": ["1e200000", {"b": "1.0"}]},
            {"gust [2]": "12345678901234567890123", "more": "1e200000"},
            {"Gust": "1", "gust [2]": "2"},
        ]
        return
    assert weather.rows("SELECT gust, list::text, more FROM weather ORDER BY station") == [
        ("0.10", '["1e200000",{"b":1.0}]', None),
        (None, None, "1e200000"),
        ("1", None, None),
    ]
    assert [one.get("gust [2]") for one in rescued] == [None, "12345678901234567890123", "2"]


def test_columns_and_not_their_spellings_count_against_the_limit(system: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest_project.file_ingest.declared.MAX_EVOLVED_COLUMNS", 20)
    weather = system(drift="evolve")
    names = [spelt for number in range(20) for spelt in (f"c{number:03d}", f"C{number:03d}")]
    weather.send_files(
        *(
            weather_file(
                weather, f"{part}.csv", f"station,observed_at,{','.join(own)}\nAAA,2026-01-15T10:00:00Z{',1' * 10}\n"
            )
            for part in range(4)
            for own in [names[part * 10 : part * 10 + 10]]
        )
    )
    weather.run_due()
    assert set(weather.states().values()) == {"ingested"}
    (count,) = weather.rows("SELECT SUM(c000::int), SUM(c019::int), COUNT(rescued_data) FROM weather")
    assert count == (1, 1, 4)
    weather.send_files(weather_file(weather, "b.csv", "station,observed_at,More,c000\nBBB,2026-01-15T10:00:00Z,1,2\n"))
    weather.run_due()
    assert weather.rows("SELECT c000, rescued_data FROM weather WHERE station = 'BBB'") == [("2", {"More": "1"})]


def test_a_new_column_that_the_table_has_of_another_type_stays_in_rescued_data(system: Make) -> None:
    weather = system(drift="evolve")
    weather.send_files(weather_file(weather))
    weather.run_due()
    with writing(weather.services.engine) as connection:
        connection.exec_driver_sql("ALTER TABLE weather ADD COLUMN gust DOUBLE PRECISION")
    weather.send_files(weather_file(weather, "b.csv", "station,observed_at,Gust,Calm\nBBB,2026-01-15T10:00:00Z,3,4\n"))
    weather.run_due()
    assert weather.rows("SELECT gust, calm, rescued_data FROM weather WHERE file_key LIKE 'b.csv%'") == [
        (None, "4", {"Gust": "3"})
    ]


def test_a_file_with_a_new_column_and_no_good_row_is_quarantined(system: Make) -> None:
    weather = system(drift="evolve")
    weather.send_files(weather_file(weather, content="station,observed_at,Gust\nbad,2026-01-15T10:00:00Z,3\n"))
    weather.run_due()
    assert weather.states() == {"a.csv": "quarantined"}


@pytest.mark.parametrize("target", [{}, {"delta": "places"}], ids=["table", "Delta"])
def test_writers_that_add_columns_at_the_same_time_all_store_theirs(
    postgres_url: str, tmp_path: Path, target: dict[str, str]
) -> None:
    environ = {"DATABASE_URL": postgres_url, "INGEST_STATE_DIR": str(tmp_path / "state")}
    settings = load_settings(environ, tmp_path).settings
    columns = [{"name": "place", "type": "text"}]
    declaration = DatasetDeclaration.model_validate(
        {"name": "places", "columns": columns, "drift": "evolve", "target": target}
    )
    contract = DeclaredContract.of(declaration, settings)

    def store(number: int) -> None:
        # As a process of its own: nothing but the database is shared.
        engine, warehouse = open_engine(postgres_url), open_warehouse(postgres_url)
        contract.prepare_tables(engine)
        names = ["Shared", f"Own {number}"]
        row = {"place": "x", "line_number": 1, "rescued_data": None, "file_key": str(number)}
        rows = pl.DataFrame([{**row, "shared": "s", f"own_{number}": str(number)}])
        with warehouse.of(contract.widened(engine, names)).transaction() as transaction:
            transaction.append_rows(rows)
        engine.dispose()
        warehouse.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store, range(5)))
    found = stored_places(settings, postgres_url, declaration)
    assert sorted(found["file_key"]) == [str(number) for number in range(5)]
    assert found["shared"].to_list() == ["s"] * 5
    for number in range(5):
        assert found[f"own_{number}"].drop_nulls().to_list() == [str(number)]


def stored_places(settings: Settings, url: str, declaration: DatasetDeclaration) -> pl.DataFrame:
    """Return the rows of the dataset in either target."""
    if declaration.target.delta:
        batches = query_events(delta_store(declaration, settings), "SELECT * FROM events")
        return pl.concat([pl.DataFrame(pl.from_arrow(batch)) for batch in batches])
    with reading(open_engine(url)) as connection:
        return pl.DataFrame([*connection.exec_driver_sql("SELECT * FROM places").mappings()], infer_schema_length=None)
