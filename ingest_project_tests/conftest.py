"""The servers that tests may ask for, each in its own module under `services`."""

from __future__ import annotations

import pytest

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

# Files that take minutes begin first: at the end one of them alone would keep the other processes waiting.
LONGEST_FIRST = ("test_demo.py", "test_between_attachment_steps.py")
# These files share a system that is up, and so a process.
TOGETHER = "after_a_demo"
# What waits for brokers to come back, for servers to be installed, or starts the whole system once more.
LONG = (
    "benchmarks/test_results.py",
    "kafka/test_faults.py",
    "crm/test_retrying.py",
    "attachments/test_intake.py",
    "monitor/test_page.py",
    "deploy/test_processes.py",
    "stores/test_delta_upkeep.py",
    "stores/test_delta_places.py",
    "user_activity/test_side_by_side.py",
)


# Before pytest-xdist looks for the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is left for the long run, give each file a process, and put the longest in front, in their order."""
    for item in items:
        if item.path.as_posix().endswith(LONG):
            item.add_marker("long")
        shared = item.path.parent.name == TOGETHER
        item.add_marker(pytest.mark.xdist_group(TOGETHER if shared else item.path.as_posix()))
    place = {name: number for number, name in enumerate((TOGETHER, *LONGEST_FIRST))}
    last = len(place)
    items.sort(key=lambda item: min(place.get(item.path.parent.name, last), place.get(item.path.name, last)))
