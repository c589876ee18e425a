"""Dagster-orchestrated ingestion: files, attachments and events from Kafka into tables, OneLake and Delta."""

from __future__ import annotations

import gc
import importlib

# Dagster components: they import Dagster, which commands must not.
_COMPONENTS = ("FileDataset", "Maintenance", "TopicStream")

# What Dagster and Polars import are a million objects that stay: to search them for garbage after each 700 takes a
# tenth of the time of a start.
gc.set_threshold(50_000, 10, 10)


def __getattr__(name: str) -> object:
    """Import a component when it is first used."""
    if name not in _COMPONENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("ingest_project.operations.components"), name)


def __dir__() -> list[str]:
    """List the components too: Dagster's registry finds them by this."""
    return [*globals(), *_COMPONENTS]
