"""Merge the capabilities and their resources into Dagster's definitions. Importing this module opens no connection."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import dagster as dg

from ingest_project.core.local_files import keep_files_private
from ingest_project.core.logging import configure_logging, get_logger, log_ignored
from ingest_project.core.settings import Settings, current_settings, load_settings
from ingest_project.operations import SystemResources
from ingest_project.operations import definitions as of_operations
from ingest_project.platform.dagster.catalog import (
    IO_MANAGER_KEY,
    DagsterParts,
    StoredRowsIOManager,
    StoredTable,
    broker,
)
from ingest_project.platform.dagster.executor import lost_run_sensors, run_executor
from ingest_project.platform.dagster.lineage import Catalog


def parts_of(settings: Settings) -> dict[str, DagsterParts]:
    """Return all Dagster parts, by the names that INGEST_DISABLED_CAPABILITIES accepts."""
    return {
        **of_operations.parts_of_capabilities(settings),
        "alerts": DagsterParts(of_operations.alerts),
        "retention": DagsterParts(of_operations.retention),
    }


def stored_in(parts: Mapping[str, DagsterParts]) -> dict[dg.AssetKey, StoredTable]:
    """Return the tables whose rows other assets can load."""
    return {key: table for one in parts.values() for key, table in one.stored.items()}


def definitions(settings: Settings, parts_by_name: Mapping[str, DagsterParts] | None = None) -> dg.Definitions:
    """Merge the capabilities that are not disabled.

    Args:
        settings: settings of this process.
        parts_by_name: result of `parts_of` for these settings, if known.
    """
    parts_by_name = parts_by_name or parts_of(settings)
    stored = stored_in(parts_by_name)
    enabled = [parts for name, parts in parts_by_name.items() if name not in settings.dagster.disabled_capabilities]
    own = dg.Definitions.merge(*(parts.definitions for parts in enabled))
    locations = {key: address for parts in parts_by_name.values() for key, address in parts.locations.items()}
    assets = [asset for asset in own.assets or () if isinstance(asset, dg.AssetsDefinition)]
    outside = [spec for parts in enabled if parts.external_assets for spec in parts.external_assets(settings)]
    described = list(
        dg.map_asset_specs(
            lambda spec: _with_details(spec, settings, stored, locations), [*assets, broker(settings), *outside]
        )
    )
    specs = [spec for one in described for spec in (one.specs if isinstance(one, dg.AssetsDefinition) else [one])]
    services = cache(lambda: SystemResources(settings))

    @cache
    def catalog() -> Catalog:
        from ingest_project.platform.dagster.lineage_events import catalog_of  # loads OpenLineage's client

        return catalog_of(specs, stored, services)

    return dg.Definitions(
        assets=described,
        asset_checks=own.asset_checks,
        jobs=own.jobs,
        schedules=own.schedules,
        sensors=[*(own.sensors or ()), *lost_run_sensors()],
        resources={"services": SystemResources(settings), IO_MANAGER_KEY: _reader_of(stored, settings)},
        executor=run_executor(catalog),
    )


def _reader_of(stored: Mapping[dg.AssetKey, StoredTable], settings: Settings) -> StoredRowsIOManager:
    return StoredRowsIOManager(stored, cache(lambda: SystemResources(settings)))


def _with_details(
    spec: dg.AssetSpec,
    settings: Settings,
    stored: Mapping[dg.AssetKey, StoredTable],
    locations: Mapping[dg.AssetKey, str],
) -> dg.AssetSpec:
    """Add the owners, the capability, the address, and the name, columns and reader of the asset's table."""
    owners = [] if spec.owners else settings.dagster.asset_owners
    address = {"dagster/uri": locations[spec.key]} if locations.get(spec.key) else {}
    tags = {"ingest/capability": spec.group_name or "", **spec.tags}
    spec = spec.merge_attributes(owners=owners, tags=tags, metadata=address)
    if spec.key not in stored:
        return spec
    return spec.merge_attributes(metadata=stored[spec.key].metadata()).with_io_manager_key(IO_MANAGER_KEY)


def stored_assets(*keys: dg.AssetKey) -> list[dg.AssetSpec]:
    """Return assets whose rows can be loaded, for the definitions of another code location.

    Args:
        keys: keys of the assets; the specs include their partitions and the I/O manager that reads them.
    """
    graph = defs.resolve_asset_graph()
    return [
        dg.AssetSpec(key, partitions_def=graph.get(key).partitions_def).with_io_manager_key(IO_MANAGER_KEY)
        for key in keys
    ]


keep_files_private()
configure_logging(current_settings().logging)
log_ignored(load_settings().ignored)
if unshared := SystemResources(current_settings()).unshared_stores:
    get_logger(__name__).warning("stores_not_shared", reason=unshared)

PARTS = parts_of(current_settings())
STORED = stored_in(PARTS)
stored_rows = _reader_of(STORED, current_settings())

defs = definitions(current_settings(), PARTS)
