"""Record the lineage of the current run: the datasets that it has read, written and checked.

A run reports itself when it begins and ends: it knows its assets, their rows and its checks without a query, and the
backend gets them immediately. `lineage_events` builds and sends the events; without a configured backend, neither it
nor OpenLineage's client is imported.
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
# Most sources named for one run: a batch of more files names the first ones.
MAX_INPUTS = 1_000
# Metadata entries of materializations that hold the number of rows; the first one found is used.
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
        dataset_of: returns the dataset of an asset; None for an asset without data of its own.
        parents_of: returns the assets from which an asset is derived.
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
    """The partitions, rows and bytes that a run has written to an asset."""

    partitions: int = 0
    rows: int | None = None
    size_bytes: int | None = None


@dataclass
class RunLineage:
    """The data that a run has read, written and checked.

    Args:
        written: written data by asset.
        sources: addresses of the files or sources that were read, by partition.
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
    """Note that the current run wrote to an asset.

    Args:
        asset: key of the asset.
        partition: partition of the asset.
        metadata: metadata that may hold numbers of rows and bytes, and the source that was read.
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
    """Note the result of a check in the current run."""
    if (run := _recording.get()) is not None:
        run.checks[asset, partition or ""].append(result)


@contextmanager
def recording() -> Iterator[RunLineage]:
    """Collect the reads and writes of the current run until the block ends."""
    run = RunLineage()
    token = _recording.set(run)
    try:
        yield run
    finally:
        _recording.reset(token)


def inputs_of(assets: Iterable[dg.AssetKey], catalog: Catalog) -> list[Dataset]:
    """Return the datasets from which assets are derived, without those that the same run writes."""
    chosen = set(assets)
    parents = [parent for asset in assets for parent in catalog.parents_of(asset) if parent not in chosen]
    return [found for parent in dict.fromkeys(parents) if (found := catalog.dataset_of(parent)) is not None]
