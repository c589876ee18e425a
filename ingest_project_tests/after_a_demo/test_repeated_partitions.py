"""Backfills, launched as the UI launches them, with the real webserver, daemon and code server.

All of them are launched at once: Dagster looks at its backfills only now and then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from ingest_project_tests.after_a_demo.backfills import EndedBackfill, launch, partitions_of, wait_for
from ingest_project_tests.after_a_demo.finished_demo import Demo

pytestmark = pytest.mark.timeout(900)

FILE_ASSETS = ("raw_files", "validated_sensor_data", "quarantined_files", "aggregated_metrics")
ATTACHMENT_HOURS = ("attachment_events", "attachment_results")
ACTIVITY_ASSETS = ("user_activity_events", "user_activity_hourly")
CLEAN, SOME_BAD_ROWS, REFUSED = "sample_data_2.csv", "some_bad_rows.csv", "missing_column.csv"
HOURS = ["2026-01-15-10:00", "2026-01-15-11:00", "2026-02-01-03:00"]

Asked = tuple["Sequence[str]", "Sequence[str]"]


def selections(demo: Demo) -> dict[str, Asked]:
    """Return assets and partitions of each backfill. No file is in two of them: they would wait for each other."""
    mixed = [demo.file(name).file_key for name in (CLEAN, SOME_BAD_ROWS, REFUSED)]
    others = [key for key in partitions_of(demo.site, "raw_files") if key not in mixed]
    return {
        "files of every kind": (FILE_ASSETS, mixed),
        **{asset: ([asset], others[place : place + 1]) for place, asset in enumerate(FILE_ASSETS)},
        "stored attachments": (["onelake_attachments"], [one.attachment_key for one in demo.report.attachments]),
        # What is next to each other is one run.
        **{asset: ([asset], HOURS[:2]) for asset in ATTACHMENT_HOURS},
        "user activity": (ACTIVITY_ASSETS, HOURS),
        "polling jobs": (["discovered_files"], partitions_of(demo.site, "discovered_files")),
    }


@pytest.fixture(scope="module")
def ended(request: pytest.FixtureRequest, demo: Demo) -> Mapping[str, tuple[Asked, EndedBackfill]]:
    """How each backfill ended, and what it was asked for."""
    tests = (item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path)
    wanted = {item.callspec.params["name"] for item in tests}
    asked = {name: selection for name, selection in selections(demo).items() if name in wanted}
    ids = {name: launch(demo.site, *selection) for name, selection in asked.items()}
    return {name: (asked[name], wait_for(demo.site, one)) for name, one in ids.items()}


@pytest.mark.parametrize(
    "name",
    [
        "files of every kind",
        # One of them alone is held by `journeys/test_again.py`, hours by user activity.
        *(pytest.param(name, marks=pytest.mark.long) for name in (*FILE_ASSETS, *ATTACHMENT_HOURS)),
        "stored attachments",
        "user activity",
        "polling jobs",
    ],
)
def test_a_backfill_reports_every_asset_for_every_partition(
    name: str, ended: Mapping[str, tuple[Asked, EndedBackfill]]
) -> None:
    (assets, partitions), end = ended[name]
    count = len(partitions)
    assert end == EndedBackfill("COMPLETED_SUCCESS", dict.fromkeys(assets, (count, count, 0)))
