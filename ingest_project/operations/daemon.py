"""Entry point of Dagster's daemon with more frequent sensors, which survives a clock that is set back.

    python -m ingest_project.operations.daemon run --workspace workspace.yaml

takes the arguments of `dagster-daemon`; `platform/dagster/daemon.py` lists the differences. This module repairs times
that lie in the future because a clock was ahead and has been set back. Dagster runs no tick of a sensor or schedule
whose last one lies in the future; the work queues start nothing that is due in the future and requeue nothing that was
changed there. All of it would wait for as long as the clock had been ahead, restarts included. The repair sets such
times to now, through Dagster's own interface and the work queues'.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from dagster import DagsterInstance

from ingest_project.core.local_files import keep_files_private
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import current_settings
from ingest_project.operations import CAPABILITIES, SystemResources
from ingest_project.platform.dagster.daemon import bring_back, instigators_ahead, run_daemon
from ingest_project.platform.runtime import LARGEST_SKEW_SECONDS

logger = get_logger(__name__)


def main() -> None:
    """Run one of the daemon's commands."""
    keep_files_private()
    run_daemon("ingest_project.operations.daemon", sys.argv[1:], repair_records)


def repair_records() -> list[str]:
    """Repair Dagster's records and the work queues, as far as they can be reached; the next call tries the rest."""
    try:
        with DagsterInstance.get() as instance:
            return repair(instance, SystemResources(current_settings()), datetime.now(UTC))
    except Exception:  # the daemon must not end over this
        logger.exception("clock_not_checked")
        return []


def repair(instance: DagsterInstance, services: SystemResources, now: datetime) -> list[str]:
    """Set every time in the future to now. Idempotent.

    Args:
        instance: Dagster's records.
        services: the work queues.
        now: the right time.

    Returns:
        the names of the sensors and schedules that waited.

    Raises:
        DatabaseUnavailableError: the work queues cannot be reached; call again.
    """
    ahead = instigators_ahead(instance, now.timestamp())
    if not ahead:
        return []
    # The work queues first: once the sensors' times are right, nothing shows that there was something to repair.
    entries = 0
    if services.missing_services() is None:
        entries = sum(
            capability.correct_future_times(services, now, LARGEST_SKEW_SECONDS) for capability in CAPABILITIES
        )
    for state in ahead:
        bring_back(instance, state, now.timestamp())
    names = sorted(state.instigator_name for state in ahead)
    logger.warning("clock_was_set_back", repaired=names, queue_entries=entries)
    return names


if __name__ == "__main__":
    main()
