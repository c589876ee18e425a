"""The servers that tests may ask for, each in its own module under `services`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from ingest_project_tests.fuzz import PROFILE

if TYPE_CHECKING:
    import pytest

# Tests that state their own number of examples keep it: new seeds, round after round, are what finds more.
settings.register_profile(PROFILE, max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])

pytest_plugins = [
    "ingest_project_tests.browser.fixtures",
    "ingest_project_tests.services.kafka",
    "ingest_project_tests.services.identity",
    "ingest_project_tests.services.kusto_server",
    "ingest_project_tests.services.postgres",
    "ingest_project_tests.services.s3",
    "ingest_project_tests.services.dfs_server",
    "ingest_project_tests.services.dagster",
    "ingest_project_tests.services.http_server",
    "ingest_project_tests.journeys.system",
    "ingest_project_tests.attachments.system",
]

# These start the whole system. They begin first, and one after the other in one process: side by side they would take
# each other's time, and at the end they would keep the other processes waiting.
WHOLE_SYSTEMS = ("after_a_demo/test_", "cli/test_demo.py", "cli/test_stack_dagster.py")
# What waits for brokers to come back, for servers to be installed, or starts the whole system once more.
LONG = (
    "crashes/test_killed_daemon.py",
    "crashes/test_killed_listing.py",
    "crashes/test_worker_limits.py",
    "journeys/test_resource_faults.py",
    "attachments/test_committing.py",
    "benchmarks/test_results.py",
    "kafka/test_faults.py",
    "crm/test_retrying.py",
    "attachments/test_intake.py",
    "attachments/test_onelake.py",
    "monitor/test_page.py",
    "deploy/test_processes.py",
    "stores/test_delta_upkeep.py",
    "stores/test_delta_places.py",
    "user_activity/test_side_by_side.py",
)


class OneProcessForEachFile(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist is not typed
    """Tests of one file in one process, and so with one set of servers; all that start the whole system in one too."""

    def _split_scope(self, nodeid: str) -> str:
        return "whole systems" if _whole_system(nodeid) else str(super()._split_scope(nodeid))


def pytest_xdist_auto_num_workers() -> int:
    """Return three processes on two cores, four on more: tests wait for servers a good part of their time."""
    return max(3, min(4, os.cpu_count() or 1))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneProcessForEachFile:  # noqa: ANN401 - its own
    """Asked for by pytest-xdist."""
    return OneProcessForEachFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is left for the long run, and put the longest files in front; the others stay in their order."""
    for item in items:
        if item.path.as_posix().endswith(LONG):
            item.add_marker("long")
    items.sort(key=lambda item: not _whole_system(item.nodeid))


def _whole_system(nodeid: str) -> bool:
    return any(path in nodeid for path in WHOLE_SYSTEMS)
