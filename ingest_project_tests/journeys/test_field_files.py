"""Files as they came from the field, by way of a polling job: each is stored as its manifest says, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project_tests.file_ingest.stored_metrics import device_metrics
from ingest_project_tests.journeys.system import System, changed
from ingest_project_tests.readers.real_files import DATA

FIELD = DATA / "field"
MANIFEST = FIELD / "manifest.jsonl"
NINE = datetime(2026, 1, 15, 9, tzinfo=UTC)
MIDNIGHT = datetime(2026, 1, 15, tzinfo=UTC)
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


def stored(system: System, case: str = "") -> list[tuple[Any, ...]]:
    """Time, device and value of everything that is stored, or of one case."""
    rows = [
        row
        for record in records(system, case)
        for part in system.services.warehouse.rows_of(record.file_key)
        for row in part.select("timestamp", "device_id", "value").rows()
    ]
    return sorted(rows)


def reasons(system: System, case: str) -> dict[str, int]:
    """How often each rule was broken, all files of a case together."""
    counts: dict[str, int] = {}
    for record in records(system, case):
        for rule, count in (record.rule_counts or {}).items():
            counts[rule] = counts.get(rule, 0) + count
    return counts


def records(system: System, case: str) -> list[FileRecord]:
    """The files of one case, or all."""
    found = system.services.files.list(limit=1_000)
    return [record for record in found if not case or f"/{case}/" in record.event.file_path]


def each_at(start: datetime, minutes: Sequence[float], device: str, values: Sequence[float]) -> list[tuple[Any, ...]]:
    """Readings of one device, so many minutes after a start."""
    return [(start + timedelta(minutes=minute), device, value) for minute, value in zip(minutes, values, strict=True)]


def test_every_case_of_the_manifest_has_its_test() -> None:
    if not FIELD.exists():
        pytest.skip(f"The files from the field are not at {FIELD}.")
    cases = [json.loads(line)["case"] for line in MANIFEST.read_text(encoding="utf-8").splitlines()]
    own = Path(__file__).read_text(encoding="utf-8")
    assert [case for case in cases if f'"{case}"' not in own] == []


class Case(NamedTuple):
    """What becomes of the files of a case.

    Args:
        profile: by which they are polled.
        rows: that are stored.
        reasons: how many rows broke each rule.
    """

    profile: str | None
    rows: list[tuple[Any, ...]]
    reasons: dict[str, int]


CASES = {
    "f01_two_digit_year_default": Case(None, [], {"timestamp_unparseable": 8, "too_many_bad_rows": 2}),
    "f03_dash_hour": Case("f03", each_at(NINE, (5, 345), "dev-d", (20.1, 22.1)), {}),
    "f03c_hour_only": Case("f03c", each_at(MIDNIGHT, (0, 60, 120, 180), "dev-d3", (20.1, 21.1, 22.1, 23.1)), {}),
    "f03c_good_neighbours": Case(None, [(TEN, "dev-g1", 20.1), (TEN, "dev-g2", 20.1)], {}),
    "f06_xlsx_locale": Case(
        "f06", each_at(NINE, range(0, 70, 10), "dev-y", (21.375, 1.013, -3.125, 0.225, 21.5, 7.0, 1234.5)), {}
    ),
    "f07_xlsx_formula_zero": Case(None, [], {"value_not_calculated": 4, "too_many_bad_rows": 1}),
    "f10_bom_mid": Case(None, each_at(TEN, range(4), "dev-h", (20.1, 20.2, 20.3, 20.4)), {}),
    "f11_dup_by_name": Case(
        "f11", [(MIDNIGHT + timedelta(hours=hour), f"fridge-{n}", 4.0) for hour in range(3) for n in (1, 2)], {}
    ),
}
# Where most rows of a file may be bad.
MOSTLY_BAD = {
    "f02_two_digit_year_profile": Case("f02", [(NINE, "dev-c", 21.4)], {"timestamp_unparseable": 2}),
    "f42_zero_group": Case("f42", each_at(TEN, (1,), "dev-zg", (0.5,)), {"value_not_a_number": 2}),
}


@pytest.mark.parametrize(("cases", "max_rejected_share"), [(CASES, None), (MOSTLY_BAD, 0.9)], ids=["usual", "bad"])
def test_files_of_each_case_are_stored_as_they_are_meant_or_refused_at_the_first_attempt(
    field: System, cases: dict[str, Case], max_rejected_share: float | None
) -> None:
    if max_rejected_share:
        field.settings = changed(field.settings, "file_ingest", max_rejected_share=max_rejected_share)
        field.restart()
    for name, case in cases.items():
        take(field, name, case.profile)
    assert all(run.success for run in field.drive())
    assert {name: stored(field, name) for name in cases} == {name: case.rows for name, case in cases.items()}
    assert {name: reasons(field, name) for name in cases} == {name: case.reasons for name, case in cases.items()}
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


@pytest.mark.long
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


@pytest.mark.long
def test_f40_wrong_format_first_is_corrected_by_the_next_job(field: System) -> None:
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
