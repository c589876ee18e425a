"""Operate Dagster from outside its processes: stop and start sensors, launch a backfill.

Operators' actions use these instead of Dagster's UI, so that a record shows who did it and why.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import dagster as dg
from dagster import AssetKey, DagsterInstance
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.definitions.sensor_definition import SensorType
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import RemoteInstigatorOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, SensorInstigatorData

from ingest_project.core.errors import SettingsError
from ingest_project.core.secrets import SecretReference
from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.records import DagsterRecordsUnavailableError, require_records

UNFINISHED = (BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING)
MAX_BACKFILLS = 100


@contextmanager
def open_instance(settings: Settings) -> Iterator[DagsterInstance]:
    """Open Dagster's instance: that of DAGSTER_HOME, or of `ingest dev` on this machine.

    Raises:
        SettingsError: there is no dagster.yaml.
        DagsterRecordsUnavailableError: their database does not answer.
    """
    home = settings.dagster.home or settings.state_dir.absolute() / "dagster_home"
    if not (home / "dagster.yaml").is_file():
        raise SettingsError(f"There is no dagster.yaml in {home}. Start it (ingest dev) or set DAGSTER_HOME.")
    url = settings.dagster.postgres_url
    # A reference to a secret is already in the environment, or in a file that this process reads too.
    if not isinstance(url, SecretReference):
        os.environ.setdefault("DAGSTER_POSTGRES_URL", url.get_secret_value())
    require_records(settings)
    with DagsterInstance.from_config(str(home)) as instance:
        yield instance


def running_sensors(instance: DagsterInstance, names: Collection[str]) -> list[str]:
    """Return the sensors that are not stopped; one that has never ticked starts with its code location."""
    stopped = {state.instigator_name for state in _states(instance) if state.status is InstigatorStatus.STOPPED}
    return sorted(set(names) - stopped)


def stop_sensors(instance: DagsterInstance, names: Collection[str]) -> None:
    """Stop sensors, including those that have never ticked. Idempotent; a tick in progress ends normally.

    Raises:
        DagsterRecordsUnavailableError: no sensor has ever ticked, so the code location of these is unknown.
    """
    states = _states(instance)
    for state in states:
        if state.instigator_name in names and state.status is not InstigatorStatus.STOPPED:
            instance.stop_sensor(state.instigator_origin_id, state.selector_id, None)
    missing = sorted(set(names) - {state.instigator_name for state in states})
    if missing and not states:
        raise DagsterRecordsUnavailableError("DAGSTER_HOME", "no sensor has ticked yet")
    for name in missing:
        # All sensors belong to the same code location.
        origin = RemoteInstigatorOrigin(states[-1].origin.repository_origin, name)
        data = SensorInstigatorData(sensor_type=SensorType.STANDARD)
        state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.STOPPED, data)
        instance.add_instigator_state(state)


def start_sensors(instance: DagsterInstance, names: Collection[str]) -> None:
    """Give stopped sensors the status that their code declares. Idempotent."""
    for state in _states(instance):
        if state.instigator_name in names and state.status is InstigatorStatus.STOPPED:
            instance.update_instigator_state(state.with_status(InstigatorStatus.DECLARED_IN_CODE))


def unfinished_runs(instance: DagsterInstance, run_ids: Collection[str]) -> set[str]:
    """Return the ids of the runs that have not ended."""
    found = instance.get_runs(filters=dg.RunsFilter(run_ids=sorted(run_ids))) if run_ids else []
    return {run.run_id for run in found if not run.is_finished}


def launch_backfill(  # noqa: PLR0913 - what and of what, and what people read about it
    instance: DagsterInstance,
    backfill_id: str,
    definitions: dg.Definitions,
    partitions: Mapping[AssetKey, Iterable[str]],
    *,
    title: str,
    description: str,
    tags: Mapping[str, str],
) -> None:
    """Request one backfill of these partitions, as the UI does; the daemon launches its runs.

    Idempotent by the backfill's id.
    """
    if instance.get_backfill(backfill_id) is not None:
        return
    wanted = {AssetKeyPartitionKey(asset, key) for asset, keys in partitions.items() for key in keys}
    backfill = PartitionBackfill.from_asset_graph_subset(
        backfill_id=backfill_id,
        backfill_timestamp=time.time(),
        tags=dict(tags),
        dynamic_partitions_store=instance,
        asset_graph_subset=AssetGraphSubset.from_asset_partition_set(wanted, definitions.resolve_asset_graph()),
        title=title,
        description=description,
        run_config=None,
    )
    instance.add_backfill(backfill)


def partitions_in_backfills(instance: DagsterInstance, definitions: dg.Definitions) -> set[str]:
    """Return the partitions of these assets that unfinished backfills have not processed yet."""
    keys: set[str] = set()
    graph = definitions.resolve_asset_graph()
    assets = set(graph.get_all_asset_keys())
    for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=UNFINISHED), limit=MAX_BACKFILLS):
        if backfill.is_asset_backfill and assets.intersection(backfill.asset_selection or ()):
            data = backfill.get_asset_backfill_data(graph)
            left = data.get_targeted_partitions_without_materialization_status()
            keys.update(key for _, key in left.iterate_asset_partitions() if key is not None)
    return keys


def is_backfilling(instance: DagsterInstance) -> bool:
    """Return True while a backfill is unfinished: Dagster fails all of it if one of its partitions is removed."""
    return bool(instance.get_backfills(filters=BulkActionsFilter(statuses=UNFINISHED), limit=1))


def _states(instance: DagsterInstance) -> Sequence[InstigatorState]:
    return instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
