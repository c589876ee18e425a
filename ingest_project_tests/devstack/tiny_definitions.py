"""Definitions with one sensor and one run that does not end without a signal, to be interrupted."""

import os
import time
from pathlib import Path

import dagster as dg


@dg.asset
def endless(context: dg.AssetExecutionContext) -> None:
    """Say that it runs, and go on for longer than any test."""
    context.log.info("running")
    Path(os.environ["TINY_STARTED"]).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)


@dg.sensor(
    asset_selection=["endless"], minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING, name="once"
)
def once(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ask for one run."""
    if context.cursor:
        return dg.SkipReason("Asked already.")
    context.update_cursor("asked")
    return dg.RunRequest()


defs = dg.Definitions(assets=[endless], sensors=[once], executor=dg.in_process_executor)
