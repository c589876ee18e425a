"""Polling, as Dagster sees it: its asset, job and sensors, and the topic and sources that it reads."""

from __future__ import annotations

import re

import dagster as dg

from ingest_project.core.settings import ConfiguredSource, Settings
from ingest_project.platform.dagster.catalog import topic, topic_key
from ingest_project.platform.http.urls import printable_url
from ingest_project.polling.assets import DISCOVERED_FILES, FILE_SOURCES, discovered_files
from ingest_project.polling.sensors import polling_queue_sensor, standing_jobs_sensor

GROUP = "polling"
NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_]")
# Fields of a source's configuration that are safe to show: any other may be a secret.
ADDRESS_FIELDS = ("endpoint_url", "host", "port", "bucket", "path")

polling_batch = dg.define_asset_job(
    "polling_batch",
    selection=dg.AssetSelection.assets(DISCOVERED_FILES),
    description="Lists the source of each polling job and announces the files it finds.",
)

polling = dg.Definitions(
    assets=[discovered_files],
    jobs=[polling_batch],
    sensors=[polling_queue_sensor(polling_batch), standing_jobs_sensor(polling_batch)],
)


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the topic of polling jobs, its dead letters, and every configured source."""
    sources = [_source(name, source) for name, source in settings.sources.items()]
    return [
        topic(settings, "polling_queue", group=GROUP),
        topic(settings, "polling_queue_dlq", group=GROUP, deps=[topic_key("polling_queue")]),
        *sources,
        dg.AssetSpec(
            FILE_SOURCES,
            deps=[source.key for source in sources],
            description="The folders, buckets, servers and listings that polling jobs read.",
            group_name=GROUP,
            kinds={"file"},
            metadata={
                "local_roots": [str(root) for root in settings.polling.local_roots],
                "hosts": list(settings.polling.allowed_source_hosts),
            },
        ),
    ]


def _source(name: str, source: ConfiguredSource) -> dg.AssetSpec:
    config = source.source_config
    address = {field: printable_url(str(config[field])) for field in ADDRESS_FIELDS if config.get(field)}
    return dg.AssetSpec(
        dg.AssetKey(["source", NOT_IN_A_KEY.sub("_", name)]),
        description=f"The configured source {name}.",
        group_name=GROUP,
        kinds={str(config["source_type"])},
        metadata={**address, "pattern": source.file_pattern},
    )
