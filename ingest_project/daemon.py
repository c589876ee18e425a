"""Dagster's daemon, whose sensors listen nearly all the time.

    python -m ingest_project.daemon run --workspace workspace.yaml

takes what `dagster-daemon` takes and is the same daemon. Only, it looks for sensors that are due every second and not
every five: a sensor listens to its topic inside its tick, and in between nobody does. Without this module
(`dagster dev`, `dagster-daemon run`) everything works as well, each message seen up to four seconds later.

Written against and tested with dagster 1.13.27.
"""

from __future__ import annotations

from dagster._daemon import sensor
from dagster._daemon.cli import create_dagster_daemon_cli

LOOK_EVERY_SECONDS = 1


def main() -> None:
    """Run one of the daemon's commands."""
    # Not a setting of Dagster's, which says "checks every five seconds" whatever a sensor asks for.
    sensor.MIN_INTERVAL_LOOP_TIME = LOOK_EVERY_SECONDS
    create_dagster_daemon_cli()(prog_name="ingest_project.daemon", obj={})


if __name__ == "__main__":
    main()
