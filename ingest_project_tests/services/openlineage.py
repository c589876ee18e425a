"""An OpenLineage backend: stores events, and compares each with the classes of OpenLineage's own client."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from openlineage.client import event_v2, generated

from ingest_project.core.settings import current_settings
from ingest_project.platform.dagster import lineage_events
from ingest_project_tests.services.receiver import Receiver


@dataclass
class Backend(Receiver):
    """The server.

    Attributes:
        events: that were received, in order.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    status: int = 201

    def take(self, body: bytes) -> None:
        """Store an event."""
        self.events.append(json.loads(body))

    def ended(self, job: str) -> dict[str, Any]:
        """Return the event of the end of the only run of a job, after comparing it with that of the beginning."""
        events = [one for one in self.events if one["job"]["name"] == job]
        begun, ended = events
        assert begun["eventType"] == "START"
        assert begun["run"]["runId"] == ended["run"]["runId"]
        for one in events:
            require_valid(one)
        return ended


def datasets(event: Mapping[str, Any], direction: str) -> dict[str, dict[str, Any]]:
    """Return the inputs or outputs of an event by `namespace name`."""
    return {f"{one['namespace']} {one['name']}": one for one in event[direction]}


def require_valid(event: Mapping[str, Any]) -> None:
    """Require that an event and its facets match the client's classes exactly."""
    event_v2.RunEvent(
        eventType=event_v2.RunState[event["eventType"]],
        eventTime=event["eventTime"],
        run=event_v2.Run(event["run"]["runId"]),
        job=event_v2.Job(event["job"]["namespace"], event["job"]["name"]),
    )
    assert event["schemaURL"].endswith("RunEvent")
    assert event["producer"] == lineage_events.PRODUCER
    parts = [event["run"]["facets"], event["job"]["facets"]]
    for dataset in (*event["inputs"], *event["outputs"]):
        assert dataset["namespace"]
        assert dataset["name"]
        parts += [dataset.get(name, {}) for name in ("facets", "inputFacets", "outputFacets")]
    for facets in parts:
        for facet in facets.values():
            assert facet["_producer"] == lineage_events.PRODUCER
            own = {name: value for name, value in facet.items() if not name.startswith("_")}
            _classes()[facet["_schemaURL"]](**own)


@cache
def _classes() -> dict[str, Any]:
    """Return the client's classes of facets, by the address of their schema."""
    modules = [
        importlib.import_module(f"{generated.__name__}.{one.name}") for one in pkgutil.iter_modules(generated.__path__)
    ]
    found = [one for module in modules for one in vars(module).values() if hasattr(one, "_get_schema")]
    return {one._get_schema(): one for one in found}


def forget() -> None:
    """Make this process read its settings and set up the client again."""
    current_settings.cache_clear()
    lineage_events._sender.cache_clear()


@pytest.fixture
def lineage_to(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set the address of the backend, for this process."""

    def set_up(url: str) -> None:
        monkeypatch.setenv("INGEST_LINEAGE_URL", url)
        monkeypatch.setenv("INGEST_LINEAGE_API_KEY", "a-secret-key")
        forget()

    yield set_up
    monkeypatch.undo()
    forget()


@pytest.fixture
def backend(lineage_to: Callable[[str], None]) -> Iterator[Backend]:
    """A backend, to which this process reports."""
    with Backend() as server:
        lineage_to(server.url)
        yield server
