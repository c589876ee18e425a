"""The capabilities and their resources, merged: what Dagster loads. Importing this module opens nothing."""

from __future__ import annotations

from functools import cache

import dagster as dg

from ingest_project.attachments import catalog as attachments_catalog
from ingest_project.attachments import definitions as attachments_definitions
from ingest_project.core.logging import configure_logging
from ingest_project.core.private_files import keep_files_private
from ingest_project.core.settings import Settings, current_settings
from ingest_project.file_ingest import catalog as file_ingest_catalog
from ingest_project.file_ingest import definitions as file_ingest_definitions
from ingest_project.operations import alerts as alerts_definitions
from ingest_project.operations import retention as retention_definitions
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.dagster.external_assets import broker
from ingest_project.platform.dagster.stored_tables import IO_MANAGER_KEY, StoredRowsIOManager, StoredTable
from ingest_project.polling import definitions as polling_definitions
from ingest_project.streams.crm import definitions as crm_definitions
from ingest_project.streams.user_activity import definitions as user_activity_definitions

# What each name of INGEST_DISABLED_CAPABILITIES stands for, and what it reads, writes and stores.
CAPABILITIES = {
    "polling": (polling_definitions.polling, polling_definitions.external_assets),
    "file_ingest": (file_ingest_definitions.file_ingest, file_ingest_catalog.external_assets),
    "user_activity": (user_activity_definitions.user_activity, user_activity_definitions.external_assets),
    "crm": (crm_definitions.crm, crm_definitions.external_assets),
    "attachments": (attachments_definitions.attachments, attachments_catalog.external_assets),
    "alerts": (alerts_definitions.alerts, None),
    "retention": (retention_definitions.retention, None),
}
STORED: dict[dg.AssetKey, StoredTable] = {
    **file_ingest_catalog.STORED,
    **user_activity_definitions.STORED,
    **crm_definitions.STORED,
    **attachments_catalog.STORED,
}

stored_rows = StoredRowsIOManager(STORED, cache(lambda: SystemResources(current_settings())))


def definitions(settings: Settings) -> dg.Definitions:
    """Merge the capabilities that this host is to load."""
    enabled = [parts for name, parts in CAPABILITIES.items() if name not in settings.dagster.disabled_capabilities]
    own = dg.Definitions.merge(*(capability for capability, _ in enabled))
    assets = [asset for asset in own.assets or () if isinstance(asset, dg.AssetsDefinition)]
    outside = [spec for _, external in enabled if external for spec in external(settings)]
    return dg.Definitions(
        assets=dg.map_asset_specs(lambda spec: _described(spec, settings), [*assets, broker(settings), *outside]),
        asset_checks=own.asset_checks,
        jobs=own.jobs,
        schedules=own.schedules,
        sensors=own.sensors,
        resources={"services": SystemResources(settings), IO_MANAGER_KEY: stored_rows},
        # One run is one process: a batch shares its memory and its connections between all steps.
        executor=dg.in_process_executor,
    )


def _described(spec: dg.AssetSpec, settings: Settings) -> dg.AssetSpec:
    """Add the owners, the capability, and the name, columns and reader of the asset's table."""
    spec = spec.merge_attributes(
        owners=settings.dagster.asset_owners, tags={"ingest/capability": spec.group_name or ""}
    )
    if spec.key not in STORED:
        return spec
    return spec.merge_attributes(metadata=STORED[spec.key].metadata()).with_io_manager_key(IO_MANAGER_KEY)


def stored_assets(*keys: dg.AssetKey) -> list[dg.AssetSpec]:
    """Return assets whose rows can be loaded, to be named in the definitions of another code location.

    Args:
        keys: of the assets; their partitions and the I/O manager that reads them come along.
    """
    graph = defs.resolve_asset_graph()
    return [
        dg.AssetSpec(key, partitions_def=graph.get(key).partitions_def).with_io_manager_key(IO_MANAGER_KEY)
        for key in keys
    ]


keep_files_private()
configure_logging(current_settings().logging)

defs = definitions(current_settings())
