"""`ingest retention`: what is long done goes, and what would go is said first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingest_project.operations.resources import SystemResources
from ingest_project.streams.range_record import cut
from ingest_project_tests.cli.conftest import Ingest

DAGSTER_YAML = Path(__file__).parents[2] / "dagster.yaml"
TOPIC = "user-activity-events"


@pytest.fixture
def dagster_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Dagster's records of this test alone, in files."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text(DAGSTER_YAML.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.delenv("DAGSTER_POSTGRES_URL", raising=False)
    return home


@pytest.fixture
def done_long_ago(services: SystemResources) -> int:
    """Ten ranges one after the other, all done and reported a year ago."""
    moment, ranges = datetime.now(UTC) - timedelta(days=365), services.stream_ranges
    planned = cut(TOPIC, "life", 0, 0, 1_000, 100)
    ranges.plan(planned, [], moment)
    keys = [one.key for one in planned]
    ranges.begin(keys, "run", moment)
    for key in keys:
        ranges.finish(key, 100, 0, {"events": 100}, moment)
    ranges.mark_reported(keys, moment)
    return len(planned)


@pytest.mark.usefixtures("dagster_home")
def test_what_would_go_is_said_and_stays_and_goes_when_it_is_meant(
    ingest: Ingest, services: SystemResources, done_long_ago: int
) -> None:
    def number(*options: str) -> int:
        told = ingest("retention", "--json", *options)
        assert told.exit_code == 0, told.err
        (ranges,) = (one for one in told.json["removals"] if one["what"] == "offset ranges")
        return int(ranges["number"])

    # The newest of a partition says where planning goes on.
    assert number("--dry-run") == done_long_ago - 1
    assert len(services.stream_ranges.list(TOPIC)) == done_long_ago
    assert number() == done_long_ago - 1
    assert len(services.stream_ranges.list(TOPIC)) == 1
    assert number() == 0


@pytest.mark.usefixtures("dagster_home", "done_long_ago")
def test_it_is_a_table_for_people(ingest: Ingest) -> None:
    said = ingest("retention", "--dry-run")
    assert said.exit_code == 0, said.err
    assert "Would be removed" in said.out
    assert "offset ranges" in said.out


def test_without_dagsters_folder_it_says_what_to_do(ingest: Ingest, services: SystemResources) -> None:
    del services
    refused = ingest("retention")
    assert refused.exit_code != 0
    assert "ingest dev" in refused.err
    assert "Traceback" not in refused.err
