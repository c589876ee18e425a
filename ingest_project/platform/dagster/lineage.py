"""Lineage of every run: whether it is exported, and what the present run has read, written and checked.

A run reports itself, at its own beginning and end: there its assets, their rows and its checks are known without a
query, and the backend hears of them at once. `lineage_events` builds and sends the events; where no backend is set, it
is not imported, nor is OpenLineage's client.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import dagster as dg

from ingest_project.core.logging import get_logger
from ingest_project.core.settings import current_settings

logger = get_logger(__name__)

# Marks a run that has reported its own failure.
REPORTED_TAG = "ingest/lineage_reported"
# Of one run: a batch of more files names the first ones.
MAX_INPUTS = 1_000
# Metadata of materializations that count rows, the first one found counts.
ROW_COUNTS = ("dagster/row_count", "rows_added", "rows_changed", "messages")
SIZES = ("size_bytes",)

Columns = tuple[tuple[str, str], ...]

_recording: ContextVar[RunLineage | None] = ContextVar("recording", default=None)


@dataclass(frozen=True)
class Dataset:
    """A dataset as OpenLineage names it, and its columns: name and type."""

    namespace: str
    name: str
    columns: Columns = ()


@dataclass(frozen=True)
class Catalog:
    """The datasets behind assets.

    Args:
        dataset_of: returns the dataset of an asset; None for one that is no data by itself.
        parents_of: returns the assets that an asset is made of.
    """

    dataset_of: Callable[[dg.AssetKey], Dataset | None]
    parents_of: Callable[[dg.AssetKey], Iterable[dg.AssetKey]]


class Checked(NamedTuple):
    """The result of a check."""

    check: str
    passed: bool
    severity: dg.AssetCheckSeverity
    description: str | None


@dataclass
class Written:
    """What a run has written to an asset."""

    partitions: int = 0
    rows: int | None = None
    size_bytes: int | None = None


@dataclass
class RunLineage:
    """What a run has read, written and checked.

    Args:
        written: by asset.
        sources: addresses of files or sources that were read, by partition.
        checks: results by asset, partition and check.
    """

    written: dict[dg.AssetKey, Written] = field(default_factory=lambda: defaultdict(Written))
    sources: dict[str, str] = field(default_factory=dict)
    checks: dict[tuple[dg.AssetKey, str], list[Checked]] = field(default_factory=lambda: defaultdict(list))


def is_on() -> bool:
    """Return whether lineage is exported."""
    environ = os.environ
    if environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    standard = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT", "OPENLINEAGE__TRANSPORT__TYPE")
    return bool(current_settings().lineage.url) or any(environ.get(name) for name in standard)


def materialized(asset: dg.AssetKey, partition: str | None, metadata: Mapping[str, Any]) -> None:
    """Note that the present run wrote to an asset.

    Args:
        asset: its key.
        partition: of the asset.
        metadata: may count rows and bytes, and name the source that was read.
    """
    if (run := _recording.get()) is None:
        return
    values = {name: getattr(value, "value", value) for name, value in metadata.items()}
    written = run.written[asset]
    written.partitions += 1
    for names, attribute in ((ROW_COUNTS, "rows"), (SIZES, "size_bytes")):
        found = next((values[name] for name in names if isinstance(values.get(name), int)), None)
        if found is not None:
            setattr(written, attribute, (getattr(written, attribute) or 0) + found)
    source = values.get("source_uri") or values.get("source")
    if partition and isinstance(source, str) and len(run.sources) < MAX_INPUTS:
        run.sources.setdefault(partition, source)


def checked(asset: dg.AssetKey, partition: str | None, result: Checked) -> None:
    """Note the result of a check in the present run."""
    if (run := _recording.get()) is not None:
        run.checks[asset, partition or ""].append(result)


@contextmanager
def recording() -> Iterator[RunLineage]:
    """Note what the present run reads and writes."""
    run = RunLineage()
    token = _recording.set(run)
    try:
        yield run
    finally:
        _recording.reset(token)


def inputs_of(assets: Iterable[dg.AssetKey], catalog: Catalog) -> list[Dataset]:
    """Return the datasets that assets are made of, without those that are written together with them."""
    chosen = set(assets)
    parents = [parent for asset in assets for parent in catalog.parents_of(asset) if parent not in chosen]
    return [found for parent in dict.fromkeys(parents) if (found := catalog.dataset_of(parent)) is not None]
