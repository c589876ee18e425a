"""A table of events in a cluster, and the client under test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ingest_project.attachments.eventhouse.client import EventhouseClient
from ingest_project_tests.attachments.eventhouse.samples import TABLE, access_to
from ingest_project_tests.services.kusto_server import KustoServer
from ingest_project_tests.services.kusto_tables import Database


@pytest.fixture
def database(kusto_server: KustoServer) -> Database:
    """A database with an empty table of events."""
    columns = {"EventId": "string", "trace_id": "string", "event_type": "string", "occurred_at": "datetime"}
    kusto_server.database.create_table(TABLE, columns | {"attachments": "dynamic", "payload": "dynamic"})
    return kusto_server.database


@pytest.fixture
def client(kusto_server: KustoServer) -> Iterator[EventhouseClient]:
    with EventhouseClient(access_to(kusto_server)) as client:
        yield client
