"""Oddities of an accepted file are shown: columns that are not read, many readings at one instant."""

from __future__ import annotations

import dagster as dg
import polars as pl
import pytest
import sqlalchemy as sa

from ingest_project.file_ingest import contract as validated_sensor_data
from ingest_project.file_ingest.tables import raw_sensor_data
from ingest_project.platform.database import reading
from ingest_project.readers.casting import cast as real
from ingest_project.readers.profiles import ReaderProfile
from ingest_project_tests.journeys.check_results import numbers
from ingest_project_tests.journeys.system import HEADER, VALIDATED, System, readings


def failed_checks(system: System, key: str) -> dict[str, dg.AssetCheckEvaluation]:
    """What Dagster shows as failed of one file, by name of the check."""
    found = {}
    for name in ("every_column_read", "one_reading_an_instant"):
        check = dg.AssetCheckKey(VALIDATED, name)
        records = system.instance.event_log_storage.get_asset_check_execution_history(check, limit=100)
        for record in records:
            event = record.event.dagster_event if record.event else None
            if event and record.partition == key and not event.asset_check_evaluation_data.passed:
                found[name] = event.asset_check_evaluation_data
    return found


def test_columns_that_nobody_reads_are_named_and_counted(system: System) -> None:
    row = "2026-01-15T10:00:00Z,d,temperature,20,C,52.1,x\n"
    system.send_files(system.write("extra.csv", HEADER.replace("\n", ",lat,note\n") + row))
    system.send_files(system.write("plain.csv", readings(3)))
    system.drive()
    key = system.file("extra.csv").file_key
    check = failed_checks(system, key)["every_column_read"]
    assert check.severity is dg.AssetCheckSeverity.WARN
    assert numbers(check) == {"unknown_columns": ["lat", "note"]}
    assert system.metadata(VALIDATED, key)["unknown_columns"] == ["lat", "note"]
    with reading(system.services.engine) as connection:
        rows = connection.execute(sa.select(raw_sensor_data.c.file_key, raw_sensor_data.c.rescued_data)).all()
    assert [kept for of, kept in rows if of == key] == [{"lat": "52.1", "note": "x"}]
    assert {kept for of, kept in rows if of != key} == {None}
    assert failed_checks(system, system.file("plain.csv").file_key) == {}
    again = system.check("every_column_read", key)
    assert (again.passed, numbers(again)["unknown_columns"]) == (False, ["lat", "note"])


def test_many_readings_at_one_instant_are_counted_with_examples(system: System) -> None:
    hourly = "".join(f"2026-01-{15 + n // 24}T00:00:00Z,d,temperature,{n % 20},C\n" for n in range(48))
    system.send_files(system.write("days.csv", HEADER + hourly))
    system.drive()
    key = system.file("days.csv").file_key
    check = failed_checks(system, key)["one_reading_an_instant"]
    assert check.severity is dg.AssetCheckSeverity.WARN
    assert numbers(check) == {
        "readings": 48,
        "largest": 24,
        "examples": [f"24 readings of temperature of d at 2026-01-{day}T00:00:00.000000Z" for day in (15, 16)],
    }
    again = system.check("one_reading_an_instant", key)
    assert numbers(again) == numbers(check)


def test_a_file_whose_rows_cannot_be_checked_fails_alone_and_says_why(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cast(rows: pl.DataFrame, profile: ReaderProfile) -> pl.DataFrame:
        if "poison" in rows["device_id"].to_list():
            raise ValueError("the parser said so")
        return real(rows, profile)

    monkeypatch.setattr(validated_sensor_data, "cast", cast)
    paths = [system.write(f"good-{number}.csv", readings(3, f"d{number}")) for number in range(20)]
    system.send_files(*paths[:10], system.write("poison.csv", readings(3, "poison")), *paths[10:])
    system.drive()
    states = system.states()
    assert states.pop("poison.csv") == "failed"
    assert set(states.values()) == {"ingested"}
    assert {record.attempts for record in system.files().values()} == {1}
    assert "the parser said so" in str(system.file("poison.csv").reason)
