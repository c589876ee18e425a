"""The servers that tests may ask for, each in its own module under `services`."""

from __future__ import annotations

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
