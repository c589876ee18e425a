"""The assets and partitions of file ingest: one partition for each version of each file; topics read, tables stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import dagster as dg

from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.tables import partitions_of
from ingest_project.platform.dagster.catalog import freshness_within, topic, topic_key
from ingest_project.readers.declaration import DatasetDeclaration

FILES = "files"
files_partitions = dg.DynamicPartitionsDefinition(name=partitions_of(SENSOR_READINGS))

RAW_FILES = dg.AssetKey("raw_files")
VALIDATED_SENSOR_DATA = dg.AssetKey("validated_sensor_data")
QUARANTINED_FILES = dg.AssetKey("quarantined_files")
AGGREGATED_METRICS = dg.AssetKey("aggregated_metrics")


GROUP = "file_ingest"


@dataclass(frozen=True)
class DatasetAssets:
    """The assets of one dataset, their partitions, and the job of a batch of its files."""

    dataset: str
    raw_files: dg.AssetKey
    validated: dg.AssetKey
    quarantined_files: dg.AssetKey
    metrics: dg.AssetKey
    partitions: dg.DynamicPartitionsDefinition
    job: str

    @property
    def columns_check(self) -> str:
        """The check that compares the columns of a file with those that are declared."""
        return "every_column_read" if self.dataset == SENSOR_READINGS else "schema_unchanged"

    @property
    def group(self) -> str:
        """The group of the assets in the UI."""
        return GROUP if self.dataset == SENSOR_READINGS else self.dataset


SENSOR_ASSETS = DatasetAssets(
    SENSOR_READINGS,
    RAW_FILES,
    VALIDATED_SENSOR_DATA,
    QUARANTINED_FILES,
    AGGREGATED_METRICS,
    files_partitions,
    "file_batch",
)


@cache
def assets_of(dataset: str) -> DatasetAssets:
    """Return the assets of a dataset: those of a declared one are named under it."""
    if dataset == SENSOR_READINGS:
        return SENSOR_ASSETS
    raw_files, validated, quarantined, metrics = (
        dg.AssetKey([dataset, name]) for name in ("raw_files", "validated", "quarantined_files", "metrics")
    )
    partitions = dg.DynamicPartitionsDefinition(name=partitions_of(dataset))
    return DatasetAssets(dataset, raw_files, validated, quarantined, metrics, partitions, f"{dataset}_batch")


DEVICE_METRICS = "device_metrics"


def specs_of(declaration: DatasetDeclaration) -> list[dg.AssetSpec]:
    """Describe the four assets of a dataset; each has a partition for every file."""
    assets = assets_of(declaration.name)
    measures = declaration.measures
    if declaration.name == SENSOR_READINGS:
        rows, metrics = "raw_sensor_data", "of the file's readings per device and sensor type"
    else:
        rows = declaration.table or f"the Delta table {declaration.target.delta}"
        groups = f" per {', '.join(measures.group_by)}" if measures and measures.group_by else ""
        metrics = f"of {', '.join(measures.columns)}{groups} in the file" if measures else ""
    what = declaration.description and f" {declaration.description}"
    summaries = f"Min, max, mean, count and standard deviation {metrics}." if measures else "Nothing is summarised."
    if declaration.metrics_table and declaration.name != SENSOR_READINGS:
        summaries += f" The view `{declaration.metrics_table}_merged` merges those of all files exactly."
    store = "table" if declaration.table else "delta"
    freshness = freshness_within(declaration.fresh_within_hours)

    def spec(
        key: dg.AssetKey, description: str, kinds: set[str], *deps: dg.AssetKey, fresh: bool = True
    ) -> dg.AssetSpec:
        return dg.AssetSpec(
            key,
            deps=deps,
            description=description,
            group_name=assets.group,
            kinds=kinds,
            partitions_def=assets.partitions,
            owners=declaration.owners or None,
            tags={"ingest/capability": GROUP},
            freshness_policy=freshness if fresh else None,
            skippable=True,
        )

    queues = (topic_key("file_event_queue"), topic_key("file_events"))
    rejected = "Rejected rows of the file, or the whole file, with reasons; 0 rows if nothing was rejected."
    return [
        spec(assets.raw_files, "The file's bytes, unchanged, in the landing store.", {"file"}, *queues),
        spec(
            assets.validated, f"The accepted rows of the file in `{rows}`.{what}", {store, "polars"}, assets.raw_files
        ),
        spec(assets.quarantined_files, rejected, {"file", "table"}, assets.raw_files, fresh=False),
        spec(assets.metrics, summaries, {"table", "polars"}, assets.validated),
    ]


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the topics of file events, their dead letters, and the view over the metrics of all files."""
    queues = [topic_key("file_event_queue"), topic_key("file_events")]
    return [
        topic(settings, "file_event_queue", group=GROUP, deps=[dg.AssetKey("discovered_files")]),
        topic(settings, "file_events", group=GROUP),
        topic(settings, "file_event_queue_dlq", group=GROUP, deps=queues),
        dg.AssetSpec(
            DEVICE_METRICS,
            deps=[AGGREGATED_METRICS],
            description="View: the metrics of all files merged exactly, per device and sensor type.",
            group_name=GROUP,
            kinds={"view"},
            metadata={"dagster/table_name": DEVICE_METRICS},
        ),
    ]
