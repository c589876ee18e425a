"""The expected result of a workload equals that of a plain reading of its files."""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import pytest

from benchmarks.workload import FILE_FLAWS, Workload, write_workload

FILES, ROWS = 300, 100


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return write_workload(tmp_path_factory.mktemp("workload") / "inbox", FILES, ROWS)


def accepted_rows(path: Path) -> tuple[list[tuple[int, dict[str, str]]], int]:
    """Line number and cells of each good row, and how many rows there are, by the standard library alone."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(enumerate(csv.DictReader(file), start=2))
    return [(line, row) for line, row in rows if is_good(row)], len(rows)


def is_good(row: dict[str, str]) -> bool:
    try:
        moment, value = datetime.fromisoformat(row["timestamp"]), float(row["value"])
    except ValueError:
        return False
    return moment.year < 2025 and bool(row["device_id"]) and -100 <= value <= 2000


def test_two_files_in_a_hundred_are_bad_and_every_kind_of_bad_is_there(workload: Workload) -> None:
    flaws = workload.files["flaw"].drop_nulls().to_list()
    assert len(flaws) == FILES * 0.02
    assert set(flaws) == set(FILE_FLAWS)


def test_one_row_in_a_hundred_of_a_good_file_is_bad(workload: Workload) -> None:
    good = workload.good(FILES).files
    assert good["quarantined"].to_list() == [ROWS // 100] * good.height


def test_no_two_files_have_the_same_content(workload: Workload) -> None:
    assert len({path.read_bytes() for path in workload.paths}) == FILES


def test_the_same_seed_writes_the_same_files(workload: Workload, tmp_path: Path) -> None:
    again = write_workload(tmp_path / "again", FILES, ROWS)
    assert [path.read_bytes() for path in again.paths] == [path.read_bytes() for path in workload.paths]


def test_counts_and_sums_are_those_of_a_plain_reading(workload: Workload) -> None:
    good = workload.good(FILES)
    for path, truth in zip(good.paths, good.files.iter_rows(named=True), strict=True):
        accepted, rows = accepted_rows(path)
        assert (len(accepted), rows - len(accepted)) == (truth["accepted"], truth["quarantined"])
        assert math.fsum(float(row["value"]) for _, row in accepted) == pytest.approx(truth["value_sum"], rel=1e-12)
        assert sum(datetime.fromisoformat(row["timestamp"]).timestamp() for _, row in accepted) == truth["second_sum"]
        assert sum(line for line, _ in accepted) == truth["line_sum"]


def test_metrics_are_those_of_a_plain_reading(workload: Workload) -> None:
    expected = {
        (row["file_name"], row["device_id"], row["sensor_type"]): row for row in workload.metrics.iter_rows(named=True)
    }
    values = defaultdict(list)
    for path in workload.good(FILES).paths:
        for _, row in accepted_rows(path)[0]:
            values[path.name, row["device_id"], row["sensor_type"]].append(float(row["value"]))
    assert expected.keys() == values.keys()
    for key, group in values.items():
        metrics = expected[key]
        assert (metrics["min"], metrics["max"], metrics["count"]) == (min(group), max(group), len(group))
        assert metrics["mean"] == pytest.approx(statistics.mean(group), rel=1e-12)
        stddev = statistics.stdev(group) if len(group) > 1 else None
        assert metrics["stddev"] == (stddev if stddev is None else pytest.approx(stddev, rel=1e-9, abs=1e-9))
