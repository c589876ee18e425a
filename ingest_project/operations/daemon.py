"""Dagster's daemon, whose sensors listen nearly all the time, and which outlives a clock that is set back.

    python -m ingest_project.operations.daemon run --workspace workspace.yaml

takes what `dagster-daemon` takes and is the same daemon. Only, it looks for sensors that are due every second and not
every five: a sensor listens to its topic inside its tick, and in between nobody does. And it looks at backfills every
five seconds and not every thirty, for a person waits for them. Without this module (`dagster dev`,
`dagster-daemon run`) everything works as well, each message seen up to four seconds later.

Where the clock is set back, Dagster's loops sleep until it is where it was. This daemon notices, repairs what is on
record (see `clock_repair`) and begins again in the same process; so it does with what an earlier one has left.

Written against and tested with dagster 1.13.27.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from dagster import DagsterInstance
from dagster._daemon import controller, sensor
from dagster._daemon.cli import create_dagster_daemon_cli

from ingest_project.core.logging import get_logger
from ingest_project.core.private_files import keep_files_private
from ingest_project.core.settings import current_settings
from ingest_project.operations.clock_repair import LARGEST_SKEW_SECONDS, repair
from ingest_project.operations.resources import SystemResources

logger = get_logger(__name__)

LOOK_EVERY_SECONDS = 1
BACKFILLS_EVERY_SECONDS = 5
# How often what is on record is looked at: another machine's clock, or a restored database, shows there alone.
REPAIR_EVERY_SECONDS = 10.0


def main() -> None:
    """Run one of the daemon's commands."""
    keep_files_private()
    # Not a setting of Dagster's, which says "checks every five seconds" whatever a sensor asks for.
    sensor.MIN_INTERVAL_LOOP_TIME = LOOK_EVERY_SECONDS
    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = BACKFILLS_EVERY_SECONDS
    if sys.argv[1:2] == ["run"] and "--help" not in sys.argv:
        repair_records()
        threading.Thread(target=watch_clock, args=(begin_anew,), name="clock", daemon=True).start()
    create_dagster_daemon_cli()(prog_name="ingest_project.operations.daemon", obj={})


def watch_clock(on_set_back: Callable[[], object]) -> None:
    """Repair what is on record as often as it is needed, and call when the clock of this machine is set back."""
    offset, repair_at = time.time() - time.monotonic(), time.monotonic() + REPAIR_EVERY_SECONDS
    while True:
        now = time.time() - time.monotonic()
        set_back = offset - now > LARGEST_SKEW_SECONDS
        offset = now
        if set_back or time.monotonic() >= repair_at:
            repaired = repair_records()
            repair_at = time.monotonic() + REPAIR_EVERY_SECONDS
            if set_back or repaired:
                # The loops of this process may be asleep until the time that was.
                on_set_back()
        time.sleep(LOOK_EVERY_SECONDS)


def repair_records() -> list[str]:
    """Repair what is on record, as far as it can be reached; what cannot be is tried again with the next look."""
    try:
        with DagsterInstance.get() as instance:
            return repair(instance, SystemResources(current_settings()), datetime.now(UTC))
    except Exception:  # the daemon goes on whatever this look meets
        logger.exception("clock_not_looked_at")
        return []


def begin_anew() -> None:
    """Start this program once more in the same process: what its loops had in mind is gone; what is on record stays."""
    logger.warning("daemon_begins_anew", reason="the clock was set back")
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - ourselves


if __name__ == "__main__":
    main()
