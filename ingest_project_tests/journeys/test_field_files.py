"""Files as they came from the field, by way of a polling job: each is stored as its manifest says, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ingest_project_tests.file_ingest.stored_metrics import device_metrics
from ingest_project_tests.journeys.system import System, changed
from ingest_project_tests.readers.real_files import DATA

FIELD = DATA / "field"
MANIFEST = FIELD / "manifest.jsonl"
NINE = datetime(2026, 1, 15, 9, tzinfo=UTC)
TEN = datetime(2026, 1, 15, 10, tzinfo=UTC)


@pytest.fixture
def field(system: System) -> System:
    """The system with the profiles of the field files, among them a broken one."""
    if not FIELD.exists():
        pytest.skip(f"The files from the field are not at {FIELD}.")
    system.settings = changed(system.settings, "file_ingest", profiles=[FIELD / "profiles"])
    system.restart()
    return system


def take(system: System, case: str, profile: str | None = None) -> None:
    """Copy the files of one case to where they may be read from, and have them polled by a profile."""
    folder = system.folder / case
    if not folder.exists():
        shutil.copytree(FIELD / case, folder)
    system.send_job(folder, metadata={"format": profile} if profile else {})


def stored(system: System) -> list[tuple[Any, ...]]:
    """Time, device and value of everything that is stored."""
    rows = [
        row
        for record in system.services.files.list(limit=1_000)
        for part in system.services.warehouse.rows_of(record.file_key)
        for row in part.select("timestamp", "device_id", "value").rows()
    ]
    return sorted(rows)


def reasons(system: System) -> dict[str, int]:
    """How often each rule was broken, all files together."""
    counts: dict[str, int] = {}
    for record in system.services.files.list(limit=1_000):
        for rule, count in (record.rule_counts or {}).items():
            counts[rule] = counts.get(rule, 0) + count
    return counts


def each_at(start: datetime, minutes: Sequence[float], device: str, values: Sequence[float]) -> list[tuple[Any, ...]]:
    """Readings of one device, so many minutes after a start."""
    return [(start + timedelta(minutes=minute), device, value) for minute, value in zip(minutes, values, strict=True)]


def test_every_case_of_the_manifest_has_its_test() -> None:
    if not FIELD.exists():
        pytest.skip(f"The files from the field are not at {FIELD}.")
    cases = [json.loads(line)["case"] for line in MANIFEST.read_text(encoding="utf-8").splitlines()]
    own = Path(__file__).read_text(encoding="utf-8")
    assert [case for case in cases if f"def test_{case}" not in own] == []


def test_f01_two_digit_year_default_is_never_stored(field: System) -> None:
    take(field, "f01_two_digit_year_default")
    field.drive()
    assert set(field.states().values()) == {"quarantined"}
    assert reasons(field)["timestamp_unparseable"] == 8
    assert stored(field) == []


def test_f02_two_digit_year_profile_takes_four_digits(field: System) -> None:
    field.settings = changed(field.settings, "file_ingest", max_rejected_share=0.9)
    field.restart()
    take(field, "f02_two_digit_year_profile", "f02")
    field.drive()
    assert stored(field) == [(NINE, "dev-c", 21.4)]
    assert reasons(field) == {"timestamp_unparseable": 2}


def test_f03_dash_hour_is_kept(field: System) -> None:
    take(field, "f03_dash_hour", "f03")
    field.drive()
    assert stored(field) == each_at(NINE, (5, 345), "dev-d", (20.1, 22.1))


def test_f03c_hour_only_and_its_good_neighbours_are_stored_at_the_first_attempt(field: System) -> None:
    take(field, "f03c_hour_only", "f03c")
    take(field, "f03c_good_neighbours")
    assert all(run.success for run in field.drive())
    midnight = datetime(2026, 1, 15, tzinfo=UTC)
    assert stored(field) == [
        *each_at(midnight, (0, 60, 120, 180), "dev-d3", (20.1, 21.1, 22.1, 23.1)),
        (TEN, "dev-g1", 20.1),
        (TEN, "dev-g2", 20.1),
    ]
    assert {record.attempts for record in field.files().values()} == {1}


def test_f05_percent_s_zone_is_refused_with_its_directive_and_right_as_unix_seconds(
    field: System, tmp_path: Path
) -> None:
    take(field, "f05_percent_s_zone", "f05")
    field.drive()
    record = field.file("x.csv")
    assert record.state.value == "quarantined"
    assert "f05.yaml, line 3" in str(record.reason)
    assert "%s is not supported; write unix_seconds instead" in str(record.reason)
    profile = (FIELD / "profiles" / "f05.yaml").read_text(encoding="utf-8")
    (tmp_path / "f05.yaml").write_text(profile.replace('"%s"', "unix_seconds"), encoding="utf-8")
    field.settings = changed(field.settings, "file_ingest", profiles=[tmp_path / "f05.yaml"])
    field.restart()
    field.materialize([record.file_key])
    assert stored(field) == each_at(TEN, (0, 60), "dev-f", (20.1, 20.2))


def test_f06_xlsx_locale_is_for_text_cells(field: System) -> None:
    take(field, "f06_xlsx_locale", "f06")
    field.drive()
    values = (21.375, 1.013, -3.125, 0.225, 21.5, 7.0, 1234.5)
    assert stored(field) == each_at(NINE, range(0, 70, 10), "dev-y", values)


def test_f07_xlsx_formula_zero_is_not_stored(field: System) -> None:
    take(field, "f07_xlsx_formula_zero")
    field.drive()
    assert stored(field) == []
    assert reasons(field)["value_not_calculated"] == 4


def test_f10_bom_mid_makes_no_device(field: System) -> None:
    take(field, "f10_bom_mid")
    field.drive()
    assert stored(field) == each_at(TEN, range(4), "dev-h", (20.1, 20.2, 20.3, 20.4))


def test_f11_dup_by_name_is_no_duplicate(field: System) -> None:
    take(field, "f11_dup_by_name", "f11")
    field.drive()
    midnight = datetime(2026, 1, 15, tzinfo=UTC)
    expected = [(midnight + timedelta(hours=hour), f"fridge-{n}", 4.0) for hour in range(3) for n in (1, 2)]
    assert stored(field) == expected


def test_f12_growing_counts_each_reading_once(field: System) -> None:
    take(field, "f12_growing")
    field.drive()
    path = field.folder / "f12_growing" / "today.csv"
    path.write_text(path.read_text("utf-8") + "2026-01-15T10:03:00Z,dev-k,temperature,20.4,°C\n", encoding="utf-8")
    field.send_job(path.parent)
    field.drive()
    (metrics,) = device_metrics(field.services.warehouse)
    assert metrics.count == 4
    assert stored(field) == each_at(TEN, range(4), "dev-k", (20.1, 20.2, 20.3, 20.4))


def test_f40_wrong_format_first_is_mended_by_the_next_job(field: System) -> None:
    take(field, "f40_wrong_format_first")
    field.drive()
    assert stored(field) == []
    take(field, "f40_wrong_format_first", "f02")
    field.drive()
    assert stored(field) == each_at(NINE, (0, 10), "dev-wf", (21.4, 21.5))


def test_f41_broken_profile_elsewhere_stops_only_what_uses_it(field: System) -> None:
    take(field, "f41_broken_profile_elsewhere")
    field.write("uses_it.csv", "a\n1\n")
    field.send_job(field.folder, "uses_it.csv", metadata={"format": "broken"})
    assert all(run.success for run in field.drive())
    assert stored(field) == [(TEN, "dev-bp", 20.1)]
    assert field.file("ok.csv").attempts == 1
    refused = field.file("uses_it.csv")
    assert refused.state.value == "quarantined"
    assert "broken.yaml, line 2" in str(refused.reason)
    assert "colums is unknown, did you mean columns" in str(refused.reason)


def test_f42_zero_group_is_refused(field: System) -> None:
    field.settings = changed(field.settings, "file_ingest", max_rejected_share=0.9)
    field.restart()
    take(field, "f42_zero_group", "f42")
    field.drive()
    assert stored(field) == each_at(TEN, (1,), "dev-zg", (0.5,))
    assert reasons(field) == {"value_not_a_number": 2}
