"""Entry point of Dagster's daemon with more frequent sensors, which handles a clock that is set back.

    python -m ingest_project.operations.daemon run --workspace workspace.yaml

takes the arguments of `dagster-daemon`; `platform/dagster/daemon.py` lists the differences. This module repairs stored
times that lie in the future because a clock was ahead and has been set back. Dagster runs no tick of a sensor or
schedule whose last tick lies in the future; the work queues start no entries that are due in the future, and requeue
none that were changed there. All of these would wait for as long as the clock had been ahead, even after restarts. The
repair sets such times to now, through the interfaces of Dagster and of the work queues.
"""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from datetime import UTC, datetime
from functools import partial

import sqlalchemy as sa
from dagster import DagsterInstance

from ingest_project.core.errors import IngestError
from ingest_project.core.local_files import keep_files_private
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import KafkaSettings, current_settings
from ingest_project.operations import CAPABILITIES, SystemResources
from ingest_project.operations.pausing import read_pauses
from ingest_project.operations.snapshot import consumed_topics
from ingest_project.operations.topics import cluster_of
from ingest_project.platform.dagster.daemon import HeldRuns, bring_back, instigators_ahead, run_daemon
from ingest_project.platform.dagster.quiet_sensors import QuietSensors, watch_topics
from ingest_project.platform.database import reading
from ingest_project.platform.runtime import LARGEST_SKEW_SECONDS
from ingest_project.platform.work_queue.queue import PENDING

logger = get_logger(__name__)


def main() -> None:
    """Run one of the daemon's commands."""
    keep_files_private()
    services = SystemResources(current_settings())
    quiet = held = None
    if services.missing_services() is None:
        without_topic = {name: set[str]() for one in CAPABILITIES for name in one.sensors_without_topic(services)}
        quiet = QuietSensors(without_topic | topics_of_sensors(services))
        watch(quiet, services)
        held = HeldRuns(PausedCapabilities(services))
    run_daemon("ingest_project.operations.daemon", sys.argv[1:], repair_records, quiet, held)


class PausedCapabilities:
    """Reads the names of the paused capabilities; returns the last ones while the database does not answer.

    Args:
        services: resources with the database.
    """

    def __init__(self, services: SystemResources) -> None:
        self._services = services
        self._names: frozenset[str] = frozenset()

    def __call__(self) -> frozenset[str]:
        """Read the names."""
        try:
            with reading(self._services.engine) as connection:
                self._names = frozenset(pause.capability for pause in read_pauses(connection))
        except IngestError as error:
            logger.warning("pauses_not_read", reason=str(error))
        return self._names


def topics_of_sensors(services: SystemResources) -> dict[str, set[str]]:
    """Return the topics that each sensor reads, by its name."""
    topics: defaultdict[str, set[str]] = defaultdict(set)
    for one in consumed_topics(services):
        topics[one.sensor].add(one.topic)
    return topics


def watch(quiet: QuietSensors, services: SystemResources) -> None:
    """Start one thread per cluster that wakes sensors as messages arrive or work is due."""
    clusters: list[tuple[KafkaSettings, set[str]]] = []
    for topic, _, kafka in (cluster_of(one, services) for one in consumed_topics(services)):
        known = next((topics for settings, topics in clusters if settings == kafka), None)
        if known is None:
            clusters.append((kafka, {topic}))
        else:
            known.add(topic)
    for kafka, topics in clusters:
        arguments = (quiet, kafka, topics, partial(sensors_with_work, services))
        threading.Thread(target=watch_topics, args=arguments, name="topics", daemon=True).start()


def sensors_with_work(services: SystemResources) -> set[str]:
    """Return the sensors of capabilities with due queue entries, and other sensors that have work.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: the database does not answer.
    """
    now, found = datetime.now(UTC), set[str]()
    with reading(services.engine) as connection:
        for capability in CAPABILITIES:
            due = [
                sa.exists().where(queue.table.c.state == PENDING, queue.table.c.next_attempt_at <= now)
                for queue in capability.queues
            ]
            if due and connection.execute(sa.select(sa.or_(*due))).scalar():
                found.update(topic.sensor for topic in capability.topics(services))
    for capability in CAPABILITIES:
        found.update(name for name, has_work in capability.sensors_without_topic(services).items() if has_work(now))
    return found


def repair_records() -> list[str]:
    """Repair Dagster's records and the work queues as far as they are reachable; the next call repairs the rest."""
    try:
        with DagsterInstance.get() as instance:
            return repair(instance, SystemResources(current_settings()), datetime.now(UTC))
    except Exception:  # a failure must not end the daemon
        logger.exception("clock_not_checked")
        return []


def repair(instance: DagsterInstance, services: SystemResources, now: datetime) -> list[str]:
    """Set every time in the future to now. Idempotent.

    Args:
        instance: Dagster's records.
        services: the work queues.
        now: the correct time.

    Returns:
        the names of the sensors and schedules that waited.

    Raises:
        DatabaseUnavailableError: the work queues cannot be reached; call again.
    """
    ahead = instigators_ahead(instance, now.timestamp())
    if not ahead:
        return []
    # Repair the work queues first: once the sensors' times are correct, nothing triggers another repair.
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
