"""External assets: what lies outside this project's own tables and stores, as nodes of Dagster's lineage graph.

Nothing here is materialised. Each capability lists its topics, sources and views, so that the graph shows the whole way
of the data: from a topic to an asset, from an asset to the next topic, from there to a table.
"""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from ingest_project.core.settings import Settings, TopicSettings

KAFKA = dg.AssetKey("kafka")


def broker(settings: Settings) -> dg.AssetSpec:
    """Describe the Kafka cluster that keeps the topics."""
    servers = settings.kafka.bootstrap_servers
    return dg.AssetSpec(
        KAFKA,
        description="The Kafka cluster that keeps the topics.",
        group_name="kafka",
        kinds={"kafka"},
        metadata={"dagster/uri": f"kafka://{servers}"} if servers else {},
    )


def topic_key(setting: str) -> dg.AssetKey:
    """Return the asset key of a topic, which stays the same whatever the topic is called.

    Args:
        setting: field of the topic settings, e.g. `polling_queue`.
    """
    return dg.AssetKey(["kafka", setting])


def topic(
    settings: Settings, setting: str, *, group: str, deps: Iterable[dg.AssetKey] = (), cluster: dg.AssetKey = KAFKA
) -> dg.AssetSpec:
    """Describe one topic.

    Args:
        settings: hold its name and where the cluster is.
        setting: field of the topic settings.
        group: of the capability that reads or writes it.
        deps: what writes to it.
        cluster: that keeps it.
    """
    name = getattr(settings.topics, setting)
    servers = settings.kafka.bootstrap_servers
    uri = {"dagster/uri": f"kafka://{servers}/{name}"} if servers and cluster == KAFKA else {}
    return dg.AssetSpec(
        topic_key(setting),
        deps=[cluster, *deps],
        description=f"Topic {name}: {TopicSettings.model_fields[setting].description}.",
        group_name=group,
        kinds={"kafka"},
        metadata={"topic": name, **uri},
    )
