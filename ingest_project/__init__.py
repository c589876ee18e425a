"""Dagster-orchestrated ingestion: files, attachments and events from Kafka into tables, OneLake and Delta."""

from __future__ import annotations

import importlib

# Dagster components: they import Dagster, which commands must not.
_COMPONENTS = ("FileDataset", "Maintenance", "TopicStream")


def __getattr__(name: str) -> object:
    """Import a component when it is first used."""
    if name not in _COMPONENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("ingest_project.operations.components"), name)


def __dir__() -> list[str]:
    """List the components too: Dagster's registry finds them by this."""
    return [*globals(), *_COMPONENTS]
