"""Dagster's daemon, which looks for due sensors every second and restarts when the clock is set back.

It is Dagster's own and takes its commands. Only, it looks for sensors that are due every second and not every five: a
sensor listens to its topic inside its tick, and in between nobody does. And it looks at backfills every five seconds
and not every thirty, because a person waits for them. Without this module (`dagster dev`, `dagster-daemon run`)
everything works as well, each message seen up to four seconds later.

Where the clock is set back, Dagster's loops sleep until it is where it was. This daemon notices, has the records
repaired and restarts in the same process; so it does with what an earlier one has left.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

from dagster._daemon import controller, sensor
from dagster._daemon.cli import create_dagster_daemon_cli

from ingest_project.core.logging import get_logger
from ingest_project.platform.dagster.instigators import LARGEST_SKEW_SECONDS

logger = get_logger(__name__)

LOOK_EVERY_SECONDS = 1
BACKFILLS_EVERY_SECONDS = 5
# How often the records are checked: another machine's clock, or a restored database, shows there alone.
REPAIR_EVERY_SECONDS = 10.0

Repair = Callable[[], Sequence[str]]


def run_daemon(program: str, arguments: Sequence[str], repair: Repair) -> None:
    """Run one of the daemon's commands.

    Args:
        program: its name in messages.
        arguments: the command line.
        repair: brings times in the future on record back to now, and returns the names of what waited for them.
    """
    # Not a setting of Dagster's, which says "checks every five seconds" whatever interval a sensor has.
    sensor.MIN_INTERVAL_LOOP_TIME = LOOK_EVERY_SECONDS
    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = BACKFILLS_EVERY_SECONDS
    if arguments[:1] == ["run"] and "--help" not in arguments:
        repair()
        threading.Thread(target=watch_clock, args=(repair, restart), name="clock", daemon=True).start()
    create_dagster_daemon_cli()(args=list(arguments), prog_name=program, obj={})


def watch_clock(repair: Repair, on_set_back: Callable[[], object]) -> None:
    """Repair the records at intervals, and call `on_set_back` when the clock of this machine was set back."""
    offset, repair_at = time.time() - time.monotonic(), time.monotonic() + REPAIR_EVERY_SECONDS
    while True:
        now = time.time() - time.monotonic()
        set_back = offset - now > LARGEST_SKEW_SECONDS
        offset = now
        if set_back or time.monotonic() >= repair_at:
            repaired = repair()
            repair_at = time.monotonic() + REPAIR_EVERY_SECONDS
            if set_back or repaired:
                # The loops of this process may be asleep until the time that was.
                on_set_back()
        time.sleep(LOOK_EVERY_SECONDS)


def restart() -> None:
    """Start this program once more in the same process: the state of its loops is gone, the records stay."""
    logger.warning("daemon_begins_anew", reason="the clock was set back")
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - ourselves
