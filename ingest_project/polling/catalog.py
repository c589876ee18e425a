"""What polling reads: the topic of jobs, and the configured sources."""

from __future__ import annotations

import re

import dagster as dg

from ingest_project.core.settings import ConfiguredSource, Settings
from ingest_project.platform.dagster.external_assets import topic, topic_key
from ingest_project.platform.http.urls import printable_url
from ingest_project.polling.assets import FILE_SOURCES

GROUP = "polling"
NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_]")
# Of a source's configuration, what says where it is. Whatever else stands there may be a secret.
ADDRESS_FIELDS = ("endpoint_url", "host", "port", "bucket", "path")


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
            description="The folders, buckets, servers and listings that polling jobs look at.",
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
