"""Seconds that one small commit of user activity takes, from the first to the thousandth, with maintenance between.

A busy system commits once a second and looks after its table every ten minutes. Here commits follow one another at
once, so the maintenance comes after as many of them. The table is local; Kafka and the warehouse have no part in it.
"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

import pyarrow as pa

from benchmarks.activity import _messages
from benchmarks.measurement import Result, say
from ingest_project.platform.delta import delta_location
from ingest_project.platform.delta.maintenance import optimize_and_vacuum
from ingest_project.platform.delta.table import DeltaStore
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.delta.rows import with_few_days
from ingest_project.streams.user_activity.event_table import event_rows

COMMITS = 1_000
EVENTS = 100
COMMITS_BETWEEN_UPKEEPS = 600
SHOWN = 100
STREAM = "benchmark/0"


def measure_commits(options: argparse.Namespace, folder: Path) -> Result:
    """Measure many small commits of user activity events to one Delta table."""
    store = DeltaStore(delta_location(str(folder / "events"), None), ("event_day",))
    events, seconds, upkeeps = _events(), [], []
    for number in range(1, options.commits + 1):
        began = time.perf_counter()
        after = store.committed_version(STREAM)
        store.append(events, app_id=STREAM, version=number, after=after)
        seconds.append(time.perf_counter() - began)
        if number % COMMITS_BETWEEN_UPKEEPS == 0:
            began = time.perf_counter()
            optimize_and_vacuum(store)
            upkeeps.append(time.perf_counter() - began)
        if number % SHOWN == 0:
            say(f"{number} commits: {mean(seconds[-SHOWN:]) * 1e3:.1f} ms each")
    figures = store.figures()
    hundreds = [mean(seconds[start : start + SHOWN]) for start in range(0, len(seconds), SHOWN)]
    return {
        "first_100_ms": round(mean(seconds[:SHOWN]) * 1e3, 1),
        "last_100_ms": round(mean(seconds[-SHOWN:]) * 1e3, 1),
        "slowest_100_ms": round(max(hundreds) * 1e3, 1),
        "upkeep_s": [round(took, 2) for took in upkeeps],
        "exact": figures is not None and figures.rows == EVENTS * options.commits,
        "commits": options.commits,
        "files": figures.files if figures else 0,
    }


def _events() -> pa.Table:
    now_ms = int(datetime.now(UTC).timestamp() * 1_000)
    messages = [
        ConsumerRecord("events", 0, offset, now_ms, None, value, ()) for offset, value in enumerate(_messages(EVENTS))
    ]
    return with_few_days(event_rows(messages, "life").table)
