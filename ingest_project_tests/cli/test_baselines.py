"""`ingest baselines`: what is usual for each source, and which last file is not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from ingest_project.file_ingest.tables import file_statistics
from ingest_project.operations import SystemResources
from ingest_project.operations.dashboard.data import dashboard
from ingest_project.operations.metrics import exposition
from ingest_project.operations.monitor import Monitor
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.file_ingest.test_baselines import row_of, seen
from ingest_project_tests.operations.seeding import put


def fill(services: SystemResources) -> None:
    """A source whose last file is odd, and one that is new."""
    now = datetime.now(UTC)
    files = [seen(f"a{n}", 100, at=now - timedelta(hours=n)) for n in range(1, 15)]
    put(services.engine, file_statistics, [row_of(file) for file in [*files, seen("odd.csv~x", 3, bad=1, at=now)]])
    put(services.engine, file_statistics, [row_of(seen("new.csv~x", 3, at=now)) | {"source": "sftp://example.com/new"}])


def test_without_any_file_it_says_so(ingest: Ingest, services: SystemResources) -> None:
    del services
    assert "no file was ingested in recent weeks" in ingest("baselines").out
    assert ingest("baselines", "--json").json == {"sources": []}
    assert ingest("baselines", "nowhere").out.strip() == "No source has 'nowhere' in its name."


def test_value_usual_range_and_number_of_files_are_shown(ingest: Ingest, services: SystemResources) -> None:
    fill(services)
    shown = ingest("baselines")
    assert shown.exit_code == 0
    first = next(line for line in shown.out.splitlines() if "local:/data" in line)
    assert "odd.csv~x" in first
    assert "90 to 110 (median 100)" in shown.out
    assert "not usual" in shown.out
    assert "no baseline yet" in shown.out

    odd, new = ingest("baselines", "--json").json["sources"]
    assert (odd["source"], odd["last_file"], odd["outside"]) == ("local:/data", "odd.csv~x", True)
    rows = odd["measures"]["rows"]
    assert rows == {"value": 3.0, "outside": True, "median": 100.0, "low": 90.0, "high": 110.0, "files": 14}
    assert (new["outside"], new["measures"]["rows"]["median"]) == (False, None)
    assert new["verdict"] == "No baseline yet: 0 of 10 files of sftp://example.com/new are known."
    assert [one["source"] for one in ingest("baselines", "EXAMPLE", "--json").json["sources"]] == [new["source"]]


def test_the_monitor_knows_the_sources_that_are_not_usual(services: SystemResources) -> None:
    fill(services)
    monitor = Monitor(services.settings)
    monitor.sources.poll_now()
    snapshot = monitor.snapshot()
    monitor.stop()
    assert [(one.source, one.outside) for one in snapshot.sources.present or ()] == [
        ("local:/data", True),
        ("sftp://example.com/new", False),
    ]
    shown = json.loads(dashboard(snapshot, None, "1h"))["sources"]
    assert (shown["known"], shown["outside"]) == (2, 1)
    odd, new = shown["first"]
    assert [one["measure"] for one in odd["judgements"]] == ["rows", "rejected share"]
    assert odd["judgements"][0]["usual"] == "90 to 110 (median 100)"
    assert odd["rows"][-2:] == [100, 3]
    assert (new["outside"], new["judgements"][0]["usual"]) == (False, None)
    assert 'ingest_sources_outside_baseline{dataset="sensor_readings"} 1.0' in exposition(snapshot).decode()
