"""The servers that tests may ask for, each in its own module under `services`, and the order of the tests."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

from ingest_project_tests.fuzz import PROFILE

# Tests that state their own number of examples keep it: new seeds, round after round, are what finds more.
settings.register_profile(PROFILE, max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Dagster's modules are a million objects, and all tests are imported before the first begins.
gc.set_threshold(50_000, 10, 10)

pytest_plugins = [
    "ingest_project_tests.browser.fixtures",
    "ingest_project_tests.services.alert_receivers",
    "ingest_project_tests.services.kafka",
    "ingest_project_tests.services.identity",
    "ingest_project_tests.services.kusto_server",
    "ingest_project_tests.services.postgres",
    "ingest_project_tests.services.s3",
    "ingest_project_tests.services.dfs_server",
    "ingest_project_tests.services.object_stores",
    "ingest_project_tests.services.dagster",
    "ingest_project_tests.services.http_server",
    "ingest_project_tests.services.openlineage",
    "ingest_project_tests.services.otlp",
    "ingest_project_tests.journeys.system",
    "ingest_project_tests.attachments.system",
]

# These start the whole system. They come first, and so one after the other in one process: side by side they would take
# each other's time.
WHOLE_SYSTEMS = (
    "after_a_demo/test_",
    "devstack/test_stack_dagster.py",
    "devstack/test_dagster_dev.py",
    "devstack/test_first_dataset.py",
)


def pytest_xdist_auto_num_workers() -> int:
    """Return three processes on two cores, four on more: tests wait for servers a good part of their time."""
    return max(3, min(4, os.cpu_count() or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of whole systems first; the others stay in their order."""
    items.sort(key=lambda item: not any(path in item.nodeid for path in WHOLE_SYSTEMS))


def pytest_collection_finish() -> None:
    """Look no more through what the imports left."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let all objects be deleted at the end, as some libraries want it."""
    gc.unfreeze()
