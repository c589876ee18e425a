"""A declared dataset from a message to stored rows, metrics, quarantine and Dagster."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterInstance

from ingest_project.file_ingest.tables import FileState
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
from ingest_project_tests.journeys.system import readings
from ingest_project_tests.services.kafka import Server

CONTRACT = dg.AssetCheckKey(dg.AssetKey(["weather", "validated"]), "contract_holds")


def test_a_file_of_a_declared_dataset_is_stored_in_its_own_table_and_shown_as_one_of_the_shipped_dataset(
    weather: DatasetSystem,
) -> None:
    weather.send_files(weather_file(weather))
    weather.run_due()
    record = weather.file("a.csv")
    assert (record.state.value, record.dataset, record.reason) == ("ingested", "weather", None)
    columns = "station, temperature, rain, sunny, note, day::text, rescued_data, line_number"
    assert weather.rows(f"SELECT {columns} FROM weather ORDER BY line_number") == [
        ("AAA", 1.5, Decimal("0.20"), True, {"a": 1}, "2026-01-15", None, 2),
        ("AAA", 2.5, None, False, None, "2026-01-15", None, 3),
        ("BBB", None, Decimal("3.05"), None, None, None, None, 4),
    ]
    metrics = weather.rows('SELECT station, measure, "min", "max", "count" FROM weather_metrics ORDER BY 1, 2')
    assert metrics == [
        ("AAA", "rain", 0.2, 0.2, 1),
        ("AAA", "temperature", 1.5, 2.5, 2),
        ("BBB", "rain", 3.05, 3.05, 1),
    ]
    assert weather.instance.get_dynamic_partitions("weather_files") == [record.file_key]
    assert weather.instance.get_dynamic_partitions("files") == []
    for name in ("raw_files", "validated", "quarantined_files", "metrics"):
        assert weather.instance.get_materialized_partitions(dg.AssetKey(["weather", name])) == {record.file_key}
    assert weather.check("contract_holds", record.file_key).passed
    assert weather.check("schema_unchanged", record.file_key).passed
    weather.send_files(weather_file(weather, "b.csv", HEADER + "AAA,2026-01-16T10:00:00Z,5,,,,\n"))
    weather.run_due()
    view = "SELECT measure, min, max, mean, count, round(stddev::numeric, 6) FROM weather_metrics_merged"
    assert weather.rows(f"{view} WHERE station = 'AAA' ORDER BY measure") == [
        ("rain", 0.2, 0.2, 0.2, 1, None),
        ("temperature", 1.5, 5.0, 3.0, 3, Decimal("1.802776")),
    ]


def test_rows_that_break_the_contract_are_quarantined_with_every_reason(weather: DatasetSystem) -> None:
    weather.send_files(weather_file(weather, content=HEADER + GOOD + BAD + "CCC,yesterday,,x,perhaps,{,15.1.\n"))
    weather.run_due()
    record = weather.file("a.csv")
    assert (record.rows_accepted, record.rows_quarantined) == (3, 2)
    assert [row.reasons for row in weather.services.warehouse.quarantined_rows_of(record.file_key)] == [
        ("rain_out_of_range", "station_pattern", "temperature_out_of_range"),
        ("day_not_a_date", "note_not_json", "observed_at_not_a_timestamp", "rain_not_a_decimal", "sunny_not_a_boolean"),
    ]
    assert weather.check("rows_add_up").passed


def test_two_datasets_of_one_tick_are_ingested_by_a_run_each(weather: DatasetSystem) -> None:
    weather.send_files(weather_file(weather), weather.write("sensor.csv", readings(4)))
    requests = weather.requests()
    assert sorted(str(request.job_name) for request in requests) == ["file_batch", "weather_batch"]
    for request in requests:
        assert weather.execute(str(request.job_name), request).success
    assert weather.states() == {"a.csv": "ingested", "sensor.csv": "ingested"}
    assert weather.rows("SELECT COUNT(*) FROM weather") == [(3,)]
    assert weather.services.warehouse.totals().rows == 4


def test_a_file_is_routed_by_its_metadata_its_job_or_its_path(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> None:
    declare(tmp_path, "weather", **{**WEATHER, "jobs": ["weather-*"]})
    system = opened(settings_of(kafka_server, postgres_url, tmp_path), instance, tmp_path)
    content = HEADER + GOOD
    system.send_files(system.write("by_path/weather/a.csv", content))
    system.send_files(system.write("b.csv", content + "DDD,2026-01-15T10:00:00Z,,,,,\n"), job_id="weather-daily")
    system.send_files(system.write("c.csv", content + BAD), metadata={"dataset": "weather"})
    system.send_files(system.write("d.csv", content), metadata={"dataset": "wether"})
    system.send_files(weather_file(system, "e.parquet", "x"))
    system.run_due()
    assert {name: record.dataset for name, record in system.files().items()} == dict.fromkeys(
        ("a.csv", "b.csv", "c.csv"), "weather"
    )
    letters = system.on_topic(system.settings.topics.file_event_queue_dlq)
    reasons = sorted((dict(letter.headers)["dlq.reason"] or b"").decode() for letter in letters)
    assert reasons == [
        "Only csv, xlsx, xls are ingested of the dataset weather, not 'parquet'.",
        "There is no dataset 'wether', did you mean weather?",
    ]
    system.close()


def test_a_newer_version_replaces_and_a_copy_counts_once(weather: DatasetSystem) -> None:
    first = weather_file(weather)
    weather.send_files(first, weather_file(weather, "copy.csv"))
    weather.run_due()
    assert sorted(weather.states().values()) == ["duplicate", "ingested"]
    assert weather.rows("SELECT COUNT(*) FROM weather") == [(3,)]
    original = weather.file(next(name for name, state in weather.states().items() if state == "ingested"))
    newer = HEADER + "ZZZ,2026-01-16T10:00:00Z,3,,,,\n"
    weather.send_files(weather_file(weather, original.event.file_name, newer))
    (request,) = weather.requests()
    assert weather.execute(str(request.job_name), request).success
    (revived,) = (record for record in weather.services.files.list() if record.state is FileState.PENDING)
    assert str(revived.reason).startswith(f"It was a duplicate of {original.file_key}, which does not")
    weather.run_due()
    states = sorted(record.state for record in weather.services.files.list())
    assert states == [FileState.INGESTED, FileState.INGESTED, FileState.REPLACED]
    # What the copy holds is stored again, as it is no copy of anything any more.
    assert weather.rows("SELECT station, COUNT(*) FROM weather GROUP BY 1 ORDER BY 1") == [
        ("AAA", 2),
        ("BBB", 1),
        ("ZZZ", 1),
    ]


def test_a_backfill_of_its_partitions_stores_the_same_rows(weather: DatasetSystem) -> None:
    weather.send_files(weather_file(weather), weather_file(weather, "b.csv", HEADER + GOOD + BAD))
    weather.run_due()
    before = weather.rows("SELECT file_key, line_number FROM weather ORDER BY 1, 2")
    keys = weather.instance.get_dynamic_partitions("weather_files")
    job = weather.definitions.resolve_job_def("weather_batch")
    tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
    assert job.execute_in_process(instance=weather.instance, tags=tags).success
    assert weather.rows("SELECT file_key, line_number FROM weather ORDER BY 1, 2") == before


def test_a_file_that_cannot_be_landed_again_keeps_the_record_of_its_bytes(weather: DatasetSystem) -> None:
    path = weather_file(weather, content=HEADER + BAD)
    weather.send_files(path)
    weather.run_due()
    before = weather.file("a.csv")
    assert (before.state, before.landed_bytes) == (FileState.QUARANTINED, len(HEADER + BAD))
    source, moved = path.parent, path.parent.with_name("elsewhere")
    source.rename(moved)
    source.symlink_to("/etc")
    weather.services.files.reopen([before.file_key], datetime.now(UTC))
    weather.run_due()
    after = weather.file("a.csv")
    assert after.state is FileState.FAILED
    assert (after.sha256, after.landed_bytes) == (before.sha256, before.landed_bytes)


@pytest.mark.parametrize("chunk_bytes", [1024**2, 60])
def test_sqlite_stores_the_same(
    kafka_server: Server, instance: DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    read_in_chunks(monkeypatch, chunk_bytes)
    declare(tmp_path, "weather", **WEATHER)
    system = opened(settings_of(kafka_server, f"sqlite:///{tmp_path}/w.db", tmp_path), instance, tmp_path)
    system.send_files(weather_file(system))
    system.run_due()
    record = system.file("a.csv")
    assert record.state is FileState.INGESTED, record.reason
    assert system.rows("SELECT station, rain, sunny, note, day FROM weather ORDER BY line_number") == [
        ("AAA", "0.20", 1, '{"a": 1}', "2026-01-15"),
        ("AAA", None, 0, None, "2026-01-15"),
        ("BBB", "3.05", None, None, None),
    ]
    assert system.check("contract_holds", record.file_key).passed
    system.close()


@pytest.mark.parametrize("chunk_bytes", [1_000_000, 400])
def test_an_empty_column_of_a_declared_dataset_is_not_usual(
    weather: DatasetSystem, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    read_in_chunks(monkeypatch, chunk_bytes)
    rows = [f"ABC,2026-01-15T{hour:02d}:00:00Z,{hour},0.20,true,,2026-01-15\n" for hour in range(20)]
    for number in range(10):
        content = HEADER + "".join(rows).replace(",0.20,", f",{number}.25,")
        weather.send_files(weather_file(weather, f"day_{number}.csv", content))
    weather.run_due()
    weather.send_files(weather_file(weather, "odd.csv", HEADER + "".join(rows).replace(",0.20,", ",,")))
    weather.run_due()
    odd = weather.check("within_baseline", weather.file("odd.csv").file_key)
    assert (odd.passed, odd.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "share of nulls in rain 1: usual are at most 0.02 (median 0) of 10 files" in (odd.description or "")
    assert weather.check("within_baseline", weather.file("day_3.csv").file_key).passed
    stored = weather.rows("SELECT null_counts, source FROM file_statistics ORDER BY arrived_at DESC LIMIT 1")
    assert stored[0][0] == {"rain": 20, "note": 20}
    assert stored[0][1].endswith("/weather")
