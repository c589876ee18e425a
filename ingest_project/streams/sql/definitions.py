"""Dagster definitions of a stream with a table of the warehouse: assets, checks, job, schedule and sensor.

All assets of a stream are stored in one pass. A run that a tick requests stores each partition up to the offsets in its
configuration; one that a person starts without them stores all. Each check reads what is stored now.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from ingest_project.core.logging import bound
from ingest_project.platform.dagster.asset_events import keep_connections_open
from ingest_project.platform.runtime import Runtime
from ingest_project.platform.work_queue.sensor import BATCH_ID_TAG, DATABASE_POOL
from ingest_project.streams.engine import Sink, StreamRun, health_of, settle, store_stream
from ingest_project.streams.positions import LOST, StreamPositions
from ingest_project.streams.sensor import (
    StreamLimits,
    StreamRunConfig,
    StreamSensor,
    gap_check,
    raise_failure,
    scheduled_checks,
    stream_sensor,
)

# Fewer messages than this are stored sooner than a second run has started.
WORTH_SPLITTING = 10_000


@dataclass(frozen=True)
class SqlParts:
    """A stream as Dagster shows it.

    Args:
        name: name of the stream: its step, and its jobs and schedules begin with it.
        specs: specs of the assets.
        sensor: its name.
        checked: the asset with the checks of offsets.
        stored_outcomes: outcomes of messages that are stored or dead letters; each has exactly one.
        positions: returns the positions, given the resources of a run.
        sink: returns the sink, given the resources.
        limits: bounds of its runs, and thresholds of its checks.
        metadata: returns what Dagster shows of a run, by asset.
        checks: further ones.
        checks_cron: when the checks run.
    """

    name: str
    specs: Sequence[dg.AssetSpec]
    sensor: str
    checked: dg.AssetKey
    stored_outcomes: Sequence[str]
    positions: Callable[[Any], StreamPositions]
    sink: Callable[[Any], Sink[Any]]
    limits: StreamLimits
    metadata: Callable[[Any, StreamRun], Mapping[dg.AssetKey, Mapping[str, Any]]]
    checks: Sequence[dg.AssetChecksDefinition] = ()
    checks_cron: str = "*/15 * * * *"


def sql_definitions(parts: SqlParts) -> dg.Definitions:
    """Return the Dagster definitions of a stream."""
    checks = [no_gap_in_offsets(parts), no_duplicate_offsets(parts), *parts.checks]
    batch = dg.define_asset_job(
        f"{parts.name}_batch",
        selection=dg.AssetSelection.assets(*(spec.key for spec in parts.specs)).without_checks(),
        description="Stores messages of the topic up to the offsets in its configuration.",
    )

    sensor = StreamSensor(parts.sensor, batch.name, parts.name, parts.positions, parts.limits, WORTH_SPLITTING)
    own = dg.Definitions(assets=[_assets(parts)], jobs=[batch], sensors=[stream_sensor(sensor)])
    described = "Checks whether every offset is stored once, and values are possible."
    return dg.Definitions.merge(own, scheduled_checks(parts.name, checks, parts.checks_cron, described))


def _assets(parts: SqlParts) -> dg.AssetsDefinition:
    @dg.multi_asset(name=parts.name, specs=parts.specs, pool=DATABASE_POOL)
    def assets(
        context: dg.AssetExecutionContext, config: StreamRunConfig, services: dg.ResourceParam[Runtime]
    ) -> Iterator[dg.MaterializeResult[None]]:
        """Store each message in the table it belongs to."""
        keep_connections_open(context.instance)
        positions, run_id = parts.positions(services), context.run.run_id
        with bound(run_id=run_id, batch_id=context.run.tags.get(BATCH_ID_TAG)):
            run = store_stream(services, positions, parts.sink(services), run_id=run_id, ends=config.ends)
            if run.stored or not run.failure:
                for asset, metadata in parts.metadata(services, run).items():
                    yield dg.MaterializeResult(asset_key=asset, metadata=metadata)
            settle(services, positions, run)
        raise_failure(run)

    return assets


def no_gap_in_offsets(parts: SqlParts) -> dg.AssetChecksDefinition:
    """Return the check for partitions that do not progress, and offsets that were lost."""

    @dg.asset_check(
        asset=parts.checked,
        name="no_gap_in_offsets",
        description="No partition waits too long or keeps failing, and no offset got lost of late.",
    )
    def check(services: dg.ResourceParam[Runtime]) -> dg.AssetCheckResult:
        patience = parts.limits.max_unfinished_seconds
        return gap_check(health_of(services, parts.positions(services), patience))

    return check


def no_duplicate_offsets(parts: SqlParts) -> dg.AssetChecksDefinition:
    """Return the check for partitions that counted an offset twice."""

    @dg.asset_check(
        asset=parts.checked,
        name="no_duplicate_offsets",
        description="No partition has stored more messages than it has offsets.",
    )
    def check(services: dg.ResourceParam[Runtime]) -> dg.AssetCheckResult:
        twice = []
        for one in parts.positions(services).all():
            stored = sum(one.outcome.get(name, 0) for name in parts.stored_outcomes)
            passed = one.next_offset - one.first_offset
            if stored + one.outcome.get(LOST, 0) > passed:
                twice.append(f"{one}: {stored} messages of {passed} offsets")
        return dg.AssetCheckResult(passed=not twice, metadata={"partitions": twice})

    return check
