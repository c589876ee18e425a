"""Merge the capabilities and their resources into what Dagster loads. Importing this module opens nothing."""

from __future__ import annotations

from functools import cache

import dagster as dg

from ingest_project.core.local_files import keep_files_private
from ingest_project.core.logging import configure_logging
from ingest_project.core.settings import Settings, current_settings
from ingest_project.operations import CAPABILITIES, SystemResources
from ingest_project.operations import definitions as of_operations
from ingest_project.platform.capability import DagsterParts
from ingest_project.platform.dagster.catalog import IO_MANAGER_KEY, StoredRowsIOManager, StoredTable, broker

# By the names that INGEST_DISABLED_CAPABILITIES takes.
PARTS: dict[str, DagsterParts] = {
    **{name: parts for capability in CAPABILITIES for name, parts in capability.dagster_parts().items()},
    "alerts": DagsterParts(of_operations.alerts),
    "retention": DagsterParts(of_operations.retention),
}
STORED: dict[dg.AssetKey, StoredTable] = {key: table for parts in PARTS.values() for key, table in parts.stored.items()}

stored_rows = StoredRowsIOManager(STORED, cache(lambda: SystemResources(current_settings())))


def definitions(settings: Settings) -> dg.Definitions:
    """Merge the capabilities that are not disabled."""
    enabled = [parts for name, parts in PARTS.items() if name not in settings.dagster.disabled_capabilities]
    own = dg.Definitions.merge(*(parts.definitions for parts in enabled))
    assets = [asset for asset in own.assets or () if isinstance(asset, dg.AssetsDefinition)]
    outside = [spec for parts in enabled if parts.external_assets for spec in parts.external_assets(settings)]
    return dg.Definitions(
        assets=dg.map_asset_specs(lambda spec: _with_details(spec, settings), [*assets, broker(settings), *outside]),
        asset_checks=own.asset_checks,
        jobs=own.jobs,
        schedules=own.schedules,
        sensors=own.sensors,
        resources={"services": SystemResources(settings), IO_MANAGER_KEY: stored_rows},
        # One run is one process: a batch shares its memory and its connections between all steps.
        executor=dg.in_process_executor,
    )


def _with_details(spec: dg.AssetSpec, settings: Settings) -> dg.AssetSpec:
    """Add the owners, the capability, and the name, columns and reader of the asset's table."""
    spec = spec.merge_attributes(
        owners=settings.dagster.asset_owners, tags={"ingest/capability": spec.group_name or ""}
    )
    if spec.key not in STORED:
        return spec
    return spec.merge_attributes(metadata=STORED[spec.key].metadata()).with_io_manager_key(IO_MANAGER_KEY)


def stored_assets(*keys: dg.AssetKey) -> list[dg.AssetSpec]:
    """Return assets whose rows can be loaded, for the definitions of another code location.

    Args:
        keys: of the assets; the specs include their partitions and the I/O manager that reads them.
    """
    graph = defs.resolve_asset_graph()
    return [
        dg.AssetSpec(key, partitions_def=graph.get(key).partitions_def).with_io_manager_key(IO_MANAGER_KEY)
        for key in keys
    ]


keep_files_private()
configure_logging(current_settings().logging)

defs = definitions(current_settings())
