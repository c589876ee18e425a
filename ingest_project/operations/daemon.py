"""Entry point of Dagster's daemon with more frequent sensors, which survives a clock that is set back.

    python -m ingest_project.operations.daemon run --workspace workspace.yaml

takes what `dagster-daemon` takes. `platform/dagster/daemon.py` says what differs; here is the repair that it calls for:
of Dagster's records and of the work queues (see `clock_repair`).
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from dagster import DagsterInstance

from ingest_project.core.logging import get_logger
from ingest_project.core.private_files import keep_files_private
from ingest_project.core.settings import current_settings
from ingest_project.operations.clock_repair import repair
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.dagster.daemon import run_daemon

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
    except Exception:  # the daemon goes on whatever this call meets
        logger.exception("clock_not_looked_at")
        return []


if __name__ == "__main__":
    main()
