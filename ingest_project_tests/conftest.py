"""The servers that tests may ask for, each in its own module under `services`."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from ingest_project_tests.fuzz import PROFILE

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
    "ingest_project_tests.services.object_stores",
    "ingest_project_tests.services.dagster",
    "ingest_project_tests.services.http_server",
    "ingest_project_tests.journeys.system",
    "ingest_project_tests.attachments.system",
]

# These start the whole system. They begin first, and one after the other in one process: side by side they would take
# each other's time, and at the end they would keep the other processes waiting.
WHOLE_SYSTEMS = ("after_a_demo/test_", "cli/test_demo.py", "devstack/test_stack_dagster.py")


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
    """Put the longest files first; the others stay in their order."""
    items.sort(key=lambda item: not _whole_system(item.nodeid))


def _whole_system(nodeid: str) -> bool:
    return any(path in nodeid for path in WHOLE_SYSTEMS)
