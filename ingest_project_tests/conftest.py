"""The servers that tests may ask for, each in its own module under `services`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

pytest_plugins = [
    "ingest_project_tests.services.kafka",
    "ingest_project_tests.services.identity",
    "ingest_project_tests.services.kusto_server",
    "ingest_project_tests.services.postgres",
    "ingest_project_tests.services.s3",
    "ingest_project_tests.services.dfs_server",
    "ingest_project_tests.services.dagster",
    "ingest_project_tests.services.demo",
    "ingest_project_tests.services.http_server",
    "ingest_project_tests.journeys.system",
    "ingest_project_tests.attachments.system",
]

# Files that take minutes begin first: at the end one of them alone would keep the other processes waiting.
LONGEST_FIRST = ("test_documentation.py", "test_demo.py", "test_dagster_ui.py", "test_between_attachment_steps.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files in front; the others stay in their order."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
