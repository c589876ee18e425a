"""Dagster definitions of a declared stream; a shipped stream replaces some of them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from zlib import crc32

import dagster as dg

from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.asset_events import WholeAssetResult
from ingest_project.platform.dagster.catalog import (
    KAFKA,
    DagsterParts,
    HourlyDeltaTable,
    SqlTable,
    StoredTable,
    freshness_within,
    topic_uri,
)
from ingest_project.platform.kafka.dead_letters import message_id_prefix
from ingest_project.streams.crm import definitions as crm
from ingest_project.streams.crm.sink import crm_stream
from ingest_project.streams.declaration import StreamDeclaration, load_streams
from ingest_project.streams.delta.declared import schema_of
from ingest_project.streams.delta.definitions import DeltaParts, delta_definitions
from ingest_project.streams.engine import StreamRun
from ingest_project.streams.hours import DAY
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.sensor import StreamLimits
from ingest_project.streams.sql.declared import DEAD_LETTERS, ROWS, ROWS_CHANGED, TOMBSTONES, table_of
from ingest_project.streams.sql.definitions import SqlParts, sql_definitions
from ingest_project.streams.user_activity import definitions as user_activity
from ingest_project.streams.user_activity.event_table import user_activity_stream

# Offsets to check: checking all would take longer each time, and hide current faults.
LAST_OFFSETS = 100_000


def dagster_parts(settings: Settings) -> dict[str, DagsterParts]:
    """Return the Dagster definitions of each stream; a broken declared one is left out."""
    activity, sales = user_activity_stream(settings), crm_stream(settings)
    hourly = user_activity.STORED
    return {
        activity.name: DagsterParts(
            user_activity.definitions_of(delta_parts(activity)),
            partial(topics_of, activity),
            stored_of(activity) | hourly,
        ),
        sales.name: DagsterParts(crm.definitions_of(sql_parts(sales)), partial(topics_of, sales), crm.STORED),
        **{one.name: parts_of_stream(one) for one in load_streams(settings).usable},
    }


def parts_of_stream(declaration: StreamDeclaration) -> DagsterParts:
    """Return the Dagster definitions of a stream."""
    return DagsterParts(
        definitions_of_stream(declaration), lambda settings: topics_of(declaration, settings), stored_of(declaration)
    )


def asset_key(declaration: StreamDeclaration) -> dg.AssetKey:
    """Return the key of the asset of a stream."""
    return dg.AssetKey(declaration.source)


def topics_of(declaration: StreamDeclaration, settings: Settings) -> list[dg.AssetSpec]:
    """Describe the topic of a stream and its dead letters."""
    stream, letters = _topic_key(declaration), dg.AssetKey(["kafka", f"{declaration.source}_dlq"])
    return [
        dg.AssetSpec(
            key,
            deps=deps,
            description=f"Topic {topic}: {what}.",
            group_name=declaration.name,
            kinds={"kafka"},
            metadata={"topic": topic, **({"dagster/uri": uri} if (uri := topic_uri(settings, topic)) else {})},
        )
        for key, deps, topic, what in (
            (stream, [KAFKA], declaration.topic, f"messages of {declaration.name}"),
            (letters, [KAFKA, stream], declaration.dlq, "messages that break the contract or cannot be read"),
        )
        if topic
    ]


def definitions_of_stream(declaration: StreamDeclaration) -> dg.Definitions:
    """Return asset, checks, jobs, schedules and sensor of a stream."""
    # Schedules of many streams must not all be due in the same minute.
    minute = crc32(declaration.name.encode()) % 60
    if declaration.is_delta:
        checks, maintenance = f"{minute} * * * *", f"{(minute + 30) % 60} * * * *"
        return delta_definitions(replace(delta_parts(declaration), checks_cron=checks, maintenance_cron=maintenance))
    return sql_definitions(replace(sql_parts(declaration), checks_cron=f"{minute} * * * *"))


def delta_parts(declaration: StreamDeclaration) -> DeltaParts:
    """Return a stream whose sink is a Delta table as Dagster shows it."""
    return DeltaParts(
        name=declaration.name,
        spec=_spec(declaration, "deltalake"),
        open=lambda services: services.delta_stream(declaration),
        limits=StreamLimits.of(declaration),
        checks=(contract_holds(declaration),),
    )


def sql_parts(declaration: StreamDeclaration) -> SqlParts:
    """Return a stream whose rows are stored by key as Dagster shows it."""
    spec = _spec(declaration, "table")
    return SqlParts(
        name=declaration.name,
        specs=[spec],
        sensor=f"{declaration.source}_sensor",
        checked=spec.key,
        stored_outcomes=(ROWS, TOMBSTONES, DEAD_LETTERS),
        positions=lambda services: services.positions_of(declaration),
        sink=lambda services: services.sql_sink(declaration),
        limits=StreamLimits.of(declaration),
        metadata=lambda _services, run: {spec.key: _metadata(run)},
        checks=(contract_holds(declaration),),
    )


def _spec(declaration: StreamDeclaration, kind: str) -> dg.AssetSpec:
    """Describe the asset of a stream; `kind` is that of its sink."""
    return dg.AssetSpec(
        asset_key(declaration),
        deps=[_topic_key(declaration)],
        description=declaration.description or f"Messages of the topic {declaration.topic}.",
        group_name=declaration.name,
        owners=list(declaration.owners),
        kinds={"kafka", kind},
        skippable=True,
        freshness_policy=freshness_within(declaration.fresh_within_hours, declaration.warn_after_hours),
    )


def contract_holds(declaration: StreamDeclaration) -> dg.AssetChecksDefinition:
    """Return the check for messages that became dead letters."""

    @dg.asset_check(
        asset=asset_key(declaration),
        name="contract_holds",
        description="Hardly any recent message could not be read, or broke the contract.",
    )
    def check(services: dg.ResourceParam[StreamResources]) -> dg.AssetCheckResult:
        offsets = letters = 0
        for one in services.positions_of(declaration).current().values():
            first = max(one.first_offset, one.next_offset - LAST_OFFSETS)
            prefix = message_id_prefix(*one.topic_partition)
            ids = services.outbox.ids(declaration.dlq, prefix)
            offsets += one.next_offset - first
            letters += sum(int(message_id.removeprefix(prefix)) >= first for message_id in ids)
        return WholeAssetResult(
            passed=letters <= offsets * declaration.max_rejected_share,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"offsets": offsets, "dead_letters": letters},
        )

    return check


def _metadata(run: StreamRun) -> Mapping[str, Any]:
    outcome = run.outcome
    counts = {name: outcome[name] for name in (ROWS, ROWS_CHANGED, TOMBSTONES, DEAD_LETTERS)}
    return {**counts, **({"offsets_lost": outcome["lost"]} if outcome["lost"] else {}), **run.metadata()}


def stored_of(declaration: StreamDeclaration) -> dict[dg.AssetKey, StoredTable]:
    """Return the table of the asset of a stream."""
    return {asset_key(declaration): _table_of_asset(declaration)}


def _table_of_asset(declaration: StreamDeclaration) -> StoredTable:
    if declaration.is_delta:
        return HourlyDeltaTable(
            declaration.source,
            lambda services: services.delta_stream(declaration).store,
            lambda: schema_of(declaration),
            declaration.time_column,
            DAY,
            {column.name: column.description for column in declaration.typed_columns},
        )
    return SqlTable(table_of(declaration))


def _topic_key(declaration: StreamDeclaration) -> dg.AssetKey:
    return dg.AssetKey(["kafka", declaration.source])
