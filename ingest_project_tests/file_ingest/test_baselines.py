"""A file that differs from the others of its source is reported, and a usual one is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from ingest_project.core.settings import Settings
from ingest_project.core.settings.capabilities import FileIngestSettings
from ingest_project.file_ingest.capability import FileIngest
from ingest_project.file_ingest.tables import file_statistics
from ingest_project.file_ingest.warehouse.baselines import (
    LATENESS,
    REJECTED,
    ROWS,
    SAMPLE_FILES,
    Baseline,
    FileStatistics,
    Tolerance,
    read_baselines,
    read_statistics,
    report_sources,
    sample_order_of,
    source_of,
    usual_range,
    usual_values,
)
from ingest_project.platform.database import open_engine, reading
from ingest_project_tests.journeys.check_results import numbers
from ingest_project_tests.journeys.system import VALIDATED, System, changed, readings
from ingest_project_tests.operations.seeding import put

NOW = datetime(2026, 3, 29, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
SOURCE = ("sensor_readings", "local:/data")


def seen(key: str, rows: int = 100, *, bad: int = 0, at: datetime = NOW, **more: Any) -> FileStatistics:  # noqa: ANN401 - fields
    """A file of the source."""
    known: dict[str, Any] = {"null_counts": {}, "lateness_seconds": 60.0} | more
    return FileStatistics(
        file_key=key, dataset=SOURCE[0], source=SOURCE[1], arrived_at=at, rows_read=rows, rows_quarantined=bad, **known
    )


def baseline_of(files: Sequence[FileStatistics], **settings: Any) -> Baseline:  # noqa: ANN401 - settings
    return Baseline(SOURCE, files, FileIngestSettings(**settings))


def outside(files: Sequence[FileStatistics], file: FileStatistics) -> set[str]:
    return {one.measure for one in baseline_of(files).judge(file).outside}


def row_of(file: FileStatistics) -> dict[str, Any]:
    """A row of the table."""
    known = {name: getattr(file, name) for name in FileStatistics.__struct_fields__}
    return known | {"sample_order": sample_order_of(file.file_key)}


def test_the_worked_example_of_the_documentation_is_right() -> None:
    rows = [1_440, 1_380, 1_455, 1_500, 1_410, 1_440, 12, 1_475, 1_430, 1_440]
    usual = usual_values(rows, Tolerance(1, 0.1, below=True), 5.0)
    assert usual_range(usual) == "1,273 to 1,607 (median 1,440)"
    page = " ".join(Path("docs/monitoring.md").read_text("utf-8").split())
    assert "1,440, 1,380, 1,455, 1,500, 1,410, 1,440, 12, 1,475, 1,430 and 1,440" in page
    assert "1,273 to 1,607" in page


def test_few_files_are_no_baseline_and_the_verdict_says_so() -> None:
    verdict = baseline_of([seen(f"f{n}") for n in range(9)]).judge(seen("new", 1))
    assert not verdict.outside
    assert str(verdict) == "No baseline yet: 9 of 10 files of local:/data are known."
    assert outside([seen(f"f{n}") for n in range(10)], seen("new", 1)) == {ROWS}


@pytest.mark.parametrize(
    ("file", "unusual"),
    [
        (seen("new", 95), set()),
        (seen("new", 109), set()),
        (seen("new", 150), {ROWS}),
        (seen("new", 100, bad=1), set()),
        (seen("new", 100, bad=30), {REJECTED}),
        (seen("new", null_counts={"unit": 50}), {"null_share:unit"}),
        (seen("new", lateness_seconds=86_400.0), {LATENESS}),
        (seen("new", lateness_seconds=None), set()),
        (seen("new", lateness_seconds=0.0), set()),
    ],
)
def test_files_that_are_all_alike_have_a_range_all_the_same(file: FileStatistics, unusual: set[str]) -> None:
    assert outside([seen(f"f{n}") for n in range(20)], file) == unusual


def test_a_few_wrong_files_do_not_move_the_baseline_and_a_file_is_not_compared_with_itself() -> None:
    files = [seen(f"f{n}", 100 + n % 5) for n in range(30)] + [seen(f"bad{n}", 10_000, bad=4_000) for n in range(12)]
    assert outside(files, files[-1]) == {ROWS, REJECTED}
    assert outside(files, seen("new", 103)) == set()
    usual = baseline_of(files).judge(files[0])
    assert usual.files == len(files) - 1


def test_columns_that_often_have_nulls_have_their_own_usual_share() -> None:
    files = [seen(f"f{n}", null_counts={"unit": 40 + n % 4}) for n in range(20)]
    assert outside(files, seen("new", null_counts={"unit": 43})) == set()
    assert outside(files, seen("new", null_counts={"unit": 43, "value": 43})) == {"null_share:value"}
    assert outside(files, seen("new", null_counts={"unit": 90})) == {"null_share:unit"}


def test_a_wide_spread_makes_a_wide_range_and_the_setting_scales_it() -> None:
    files = [seen(f"f{n}", 100 * n) for n in range(1, 21)]
    assert outside(files, seen("new", 3_000)) == set()
    narrow = baseline_of(files, baseline_width=1.0)
    assert {one.measure for one in narrow.judge(seen("new", 3_000)).outside} == {ROWS}


@pytest.mark.parametrize(
    ("location", "source"),
    [
        ("local:/data/in/a.csv", "local:/data/in"),
        ("local:/data/2026/01/15/a.csv", "local:/data/*/*/*"),
        ("s3://bucket/site=4/day=2026-01-15/a.csv", "s3://bucket/site=*/day=*"),
        ("sftp://10.0.0.7:2222/out/dev-0001/a.csv", "sftp://10.0.0.7:2222/out/dev-0001"),
        ("https://example.com/daily/a.csv?token=ab/cd", "https://example.com/daily"),
        ("a.csv", "/"),
        ("local:/" + "é" * 5_000 + "/a.csv", "local:/" + "é" * 493),
        ("local:/nul\x00\udcff/a.csv", "local:/nul\ufffd\ufffd"),
    ],
)
def test_a_source_is_a_folder_with_dates_and_numbers_left_open(location: str, source: str) -> None:
    assert source_of(location) == source


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """Both kinds of databases."""
    made = open_engine(database_url)
    yield made
    made.dispose()


def test_only_recent_weeks_count_and_a_lasting_change_is_usual_after_half_a_week(engine: sa.Engine) -> None:
    old = [seen(f"old{n}", 5_000, at=NOW - timedelta(days=29) - n * HOUR) for n in range(500)]
    before = [seen(f"before{n}", 100 + n % 3, at=NOW - timedelta(days=5) - n * HOUR) for n in range(24 * 23)]
    after = [seen(f"after{n}", 200 + n % 3, at=NOW - n * HOUR) for n in range(24 * 5)]
    put(engine, file_statistics, [row_of(file) for file in [*old, *before, *after]])
    with reading(engine) as connection:
        now = read_baselines(connection, [SOURCE], Settings(), NOW)[SOURCE]
        earlier = read_baselines(connection, [SOURCE], Settings(), NOW - timedelta(days=5))[SOURCE]
    assert len(now.sample) < SAMPLE_FILES
    assert not now.judge(seen("new", 201)).outside
    assert now.judge(seen("new", 101)).outside
    assert earlier.usual[ROWS].high > 100


def test_sources_are_reported_with_their_last_file_those_that_are_not_usual_first(engine: sa.Engine) -> None:
    for name in ("a", "b", "c"):
        files = [seen(f"{name}{n}", at=NOW - n * HOUR) for n in range(1, 15)] + [seen(name, 3 if name == "b" else 100)]
        put(engine, file_statistics, [row_of(file) | {"source": f"local:/{name}"} for file in files])
    reports = report_sources(engine, Settings(), NOW, limit=100)
    assert [(one.source, one.file, one.outside) for one in reports] == [
        ("local:/b", "b", True),
        ("local:/a", "a", False),
        ("local:/c", "c", False),
    ]
    assert reports[0].rows[-1] == 3
    assert [one.source for one in report_sources(engine, Settings(), NOW, search="/C", limit=100)] == ["local:/c"]
    assert len(report_sources(engine, Settings(), NOW, limit=2)) == 2


def send(system: System, name: str, rows: int, *, age: float = 30.0, **more: Any) -> None:  # noqa: ANN401 - of readings
    """Announce a file of so many rows that changed a while ago."""
    path = system.write(name, readings(rows, f"device-{name}", **more))
    changed_at = datetime.now(UTC).timestamp() - age
    os.utime(path, (changed_at, changed_at))
    system.send_files(path)


def history(system: System, rows: int = 20) -> None:
    """A source of which twelve files are known."""
    for number in range(12):
        send(system, f"day_{number}.csv", rows + number % 3)
    assert all(run.success for run in system.drive())


def within_baseline(system: System) -> dict[str, str]:
    return system._check_results(dg.AssetCheckKey(VALIDATED, "within_baseline"))


def test_a_file_with_few_rows_many_bad_ones_and_late_gets_a_warning_that_explains_itself(system: System) -> None:
    system.settings = changed(system.settings, "file_ingest", max_rejected_share=0.9)
    system.restart()
    history(system)
    assert within_baseline(system) == {}
    send(system, "odd.csv", 5, bad=2, age=90_000.0)
    send(system, "usual.csv", 21)
    assert all(run.success for run in system.drive())
    odd, usual = system.file("odd.csv").file_key, system.file("usual.csv").file_key
    assert within_baseline(system) == {odd: "FAILED"}
    assert system.accepted()[odd] == "SUCCEEDED", "a warning, and no more"
    assert system.metadata(VALIDATED, usual)["baseline"].startswith("As usual, compared with 12 files of local:")

    again = system.check("within_baseline", odd)
    assert (again.passed, again.severity) == (False, dg.AssetCheckSeverity.WARN)
    shown = numbers(again)
    assert shown["rows"] == {"value": 5.0, "outside": True, "median": 21.0, "low": 13.587, "high": 28.413, "files": 13}
    assert {name for name, one in shown.items() if isinstance(one, dict) and one["outside"]} == {
        "rows",
        "rejected_share",
        "lateness_seconds",
    }
    assert "rows 5: usual are 13.6 to 28.4 (median 21) of 13 files" in (again.description or "")
    assert system.check("within_baseline", usual).passed


def test_the_first_files_pass_and_say_that_there_is_no_baseline_yet(system: System) -> None:
    send(system, "first.csv", 5)
    system.drive()
    evaluation = system.check("within_baseline", system.file("first.csv").file_key)
    assert evaluation.passed
    assert "No baseline yet: 0 of 10 files" in (evaluation.description or "")


def test_a_file_counts_once_however_often_it_is_ingested_and_a_newer_version_counts_instead(system: System) -> None:
    history(system)
    keys = {name: record.file_key for name, record in system.files().items()}
    before = read_statistics(system.services.engine, list(keys.values()))
    assert len(before) == 12
    assert all(29 < (file.lateness_seconds or 0) < 300 for file in before.values())
    system.materialize([keys["day_0.csv"]])
    after = read_statistics(system.services.engine, list(keys.values()))
    assert after == before, "its arrival and lateness are those of the first time"
    send(system, "day_1.csv", 33)
    system.drive()
    with reading(system.services.engine) as connection:
        found = connection.execute(sa.select(file_statistics.c.file_key, file_statistics.c.rows_read))
        rows = {row.file_key: row.rows_read for row in found}
    assert len(rows) == 12
    assert keys["day_1.csv"] not in rows
    assert rows[system.file("day_1.csv").file_key] == 33


def test_statistics_are_written_with_the_rows_and_without_a_refused_file(system: System) -> None:
    system.send_files(
        system.write("refused.csv", "timestamp,value\n1,2\n"),
        system.write("nulls.csv", readings(4).replace(",C\n", ",\n")),
    )
    system.drive()
    (found,) = read_statistics(system.services.engine, [record.file_key for record in system.files().values()]).values()
    assert (found.rows_read, found.rows_quarantined, found.file_key) == (4, 0, system.file("nulls.csv").file_key)


def test_retention_purges_what_no_baseline_reads(engine: sa.Engine, settings_of_database: Callable[..., Any]) -> None:
    services = settings_of_database(engine)
    put(engine, file_statistics, [row_of(seen("old", at=NOW - timedelta(days=40))), row_of(seen("new"))])
    (step,) = [one for one in FileIngest().purge_steps(services, NOW) if one.what == "statistics of files"]
    assert (step.number, step.examples) == (1, ["old"])
    step.remove()
    assert set(read_statistics(engine, ["old", "new"])) == {"new"}


def test_an_arrival_in_the_future_is_set_to_now(engine: sa.Engine, settings_of_database: Callable[..., Any]) -> None:
    services = settings_of_database(engine)
    put(engine, file_statistics, [row_of(seen("ahead", at=NOW + timedelta(days=300)))])
    assert FileIngest().correct_future_times(services, NOW, 5.0) == 1
    assert read_statistics(engine, ["ahead"])["ahead"].arrived_at == NOW


@pytest.fixture
def settings_of_database(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[sa.Engine], Any]:
    """Makes resources on a database."""
    from ingest_project.core.settings import load_settings
    from ingest_project.file_ingest.resources import FileIngestResources

    def made(engine: sa.Engine) -> FileIngestResources:
        url = engine.url.render_as_string(hide_password=False)
        services = FileIngestResources(load_settings({"DATABASE_URL": url}, tmp_path).settings)
        request.addfinalizer(services.engine.dispose)
        return services

    return made


def test_json_of_the_metadata_is_plain() -> None:
    verdict = baseline_of([seen(f"f{n}") for n in range(10)]).judge(seen("new", 7, null_counts={"unit": 7}))
    assert json.loads(json.dumps(verdict.metadata()))["null_share:unit"]["median"] == 0.0
