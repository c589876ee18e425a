"""Repair of the times in the future that a clock leaves behind which went ahead and was set back.

Dagster runs no tick of a sensor or schedule whose last one lies in the future; the work queues start nothing that is
due in the future and take back nothing that was touched there. All of it would wait for as long as the clock had been
ahead, restarts included. The repair sets such times to now, through Dagster's own interface and the work queues'.
"""

from __future__ import annotations

from datetime import datetime

from dagster import DagsterInstance

from ingest_project.core.logging import get_logger
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.dagster.instigators import LARGEST_SKEW_SECONDS, bring_back, instigators_ahead

logger = get_logger(__name__)


def repair(instance: DagsterInstance, services: SystemResources, now: datetime) -> list[str]:
    """Bring every time in the future back to now. Repeated, it changes nothing.

    Args:
        instance: Dagster's records.
        services: the ledgers.
        now: the clock, as it is right.

    Returns:
        the names of the sensors and schedules that waited.

    Raises:
        DatabaseUnavailableError: the ledgers cannot be reached; call again.
    """
    ahead = instigators_ahead(instance, now.timestamp())
    if not ahead:
        return []
    # First the ledgers: a sensor whose time is right tells nobody any more that there was something to repair.
    entries = _repair_ledgers(services, now) if services.what_is_missing() is None else 0
    for state in ahead:
        bring_back(instance, state, now.timestamp())
    names = sorted(state.instigator_name for state in ahead)
    logger.warning("clock_was_set_back", repaired=names, ledger_entries=entries)
    return names


def _repair_ledgers(services: SystemResources, now: datetime) -> int:
    ledgers = (
        services.files,
        services.polling_jobs,
        services.attachment_events,
        services.attachments,
        services.activity_positions,
        services.crm_positions,
    )
    return sum(ledger.correct_future_times(now, LARGEST_SKEW_SECONDS) for ledger in ledgers)
