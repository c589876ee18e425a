"""Build the dashboard's JSON: the last snapshot, and the history of the counters by minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from ingest_project.attachments.capability import ATTACHMENTS, DOWNLOAD_FAILURES, DOWNLOADS
from ingest_project.core.logging import printable_json
from ingest_project.file_ingest.capability import FILES, QUARANTINED_FILES, QUARANTINED_ROWS, ROWS
from ingest_project.file_ingest.tables import asset_of
from ingest_project.file_ingest.warehouse.baselines import ROWS as ROWS_OF_FILE
from ingest_project.file_ingest.warehouse.baselines import Judgement, SourceReport, number, usual_range
from ingest_project.operations import MinuteValue, RunningTotals
from ingest_project.operations.dashboard.rendering import item_path
from ingest_project.operations.monitor import readiness
from ingest_project.operations.snapshot import DagsterState, SystemSnapshot, WarehouseState
from ingest_project.operations.topics import BrokerState
from ingest_project.platform.capability import EVENT_TO_STORED, LATENCY_BUCKETS, Failure
from ingest_project.platform.dagster.records import RunOnRecord
from ingest_project.platform.items import KINDS, ItemRef
from ingest_project.platform.work_queue.sensor import BATCH_SIZE_TAG, BATCH_TAG
from ingest_project.streams.capability import STREAM_MESSAGES, UNIDENTIFIED

MAX_SHOWN_REASON = 300
SHOWN_SOURCES, MAX_SHOWN_MEASURES = 12, 6
SHOWN = (
    FILES,
    ROWS,
    QUARANTINED_FILES,
    QUARANTINED_ROWS,
    ATTACHMENTS,
    DOWNLOADS,
    DOWNLOAD_FAILURES,
    STREAM_MESSAGES,
    EVENT_TO_STORED.bucket,
)
PERCENTILES = (0.5, 0.95, 0.99)


class Window(NamedTuple):
    """A time span of the page.

    Args:
        length: length in minutes.
        step: minutes per point of each chart.
        kept_seconds: how long a result is cached.
    """

    length: int
    step: int
    kept_seconds: float


WINDOWS: Mapping[str, Window] = {
    "1h": Window(60, 1, 1.0),
    "24h": Window(24 * 60, 15, 15.0),
    "7d": Window(7 * 24 * 60, 120, 60.0),
}


class Latency(msgspec.Struct, frozen=True):
    """Seconds from event to stored row, and their number; percentiles are estimates, None beyond the last bucket."""

    count: int
    percentiles: tuple[float | None, ...]


class History(msgspec.Struct, frozen=True):
    """The data of one window.

    Args:
        starts: start of each step, seconds since 1970.
        files, rows: numbers per step, by outcome.
        file_reasons: reasons for refusing whole files, with their numbers; the most frequent first.
        row_reasons: reasons for refusing rows of other files; one row may have several.
        downloads: numbers by attempt and status.
        failures: numbers of failed downloads by error class.
        messages: numbers of stream messages by topic and outcome.
        latency: latency by pipeline.
    """

    step_minutes: int
    starts: tuple[int, ...]
    files: Mapping[str, tuple[int, ...]]
    rows: Mapping[str, tuple[int, ...]]
    file_reasons: tuple[tuple[str, int], ...]
    row_reasons: tuple[tuple[str, int], ...]
    downloads: Mapping[str, Mapping[str, int]]
    failures: Mapping[str, int]
    messages: Mapping[str, Mapping[str, int]]
    latency: Mapping[str, Latency]


class Histories:
    """Reads the windows, each at a limited rate regardless of the number of clients."""

    def __init__(self, totals: Callable[[], RunningTotals]) -> None:
        self._totals = totals
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, History]] = {}

    def of(self, name: str) -> History:
        """Return one window.

        Raises:
            KeyError: no window has this name.
            DatabaseUnavailableError: the database does not answer.
        """
        window = WINDOWS[name]
        with self._lock:
            read_at, history = self._kept.get(name, (0.0, None))
            if history is None or time.monotonic() - read_at > window.kept_seconds:
                history = self._read(window)
                self._kept[name] = (time.monotonic(), history)
            return history

    def _read(self, window: Window) -> History:
        now = datetime.now(UTC)
        since = now - timedelta(minutes=window.length - window.step)
        return history_of(self._totals().history(since, window.step, SHOWN), window, now)


def history_of(values: Iterable[MinuteValue], window: Window, now: datetime) -> History:
    """Arrange the values of a window as series and tables."""
    last = int(now.timestamp() // 60) // window.step
    steps = range(last - window.length // window.step + 1, last + 1)
    by_name: dict[str, list[MinuteValue]] = {name: [] for name in SHOWN}
    for value in values:
        if value.step in steps:
            by_name[value.name].append(value)
    return History(
        step_minutes=window.step,
        starts=tuple(step * window.step * 60 for step in steps),
        files=_series(by_name[FILES], steps),
        rows=_series(by_name[ROWS], steps),
        file_reasons=tuple(_by_last(by_name[QUARANTINED_FILES]).items()),
        row_reasons=tuple(_by_last(by_name[QUARANTINED_ROWS]).items()),
        downloads=_by_two(by_name[DOWNLOADS], outer=1),
        failures=_by_last(by_name[DOWNLOAD_FAILURES]),
        messages=_by_two(by_name[STREAM_MESSAGES], outer=0),
        latency=_latencies(by_name[EVENT_TO_STORED.bucket]),
    )


def percentile(counts: Mapping[str, float], share: float) -> float | None:
    """Estimate a percentile in seconds, by linear interpolation within a bucket.

    Args:
        counts: numbers by the upper bound of their bucket, not cumulative.
        share: 0 to 1.

    Returns:
        seconds; None if nothing was counted, or the percentile lies beyond the last bucket.
    """
    wanted = share * sum(counts.values())
    so_far, start = 0.0, 0.0
    for end in LATENCY_BUCKETS:
        here = counts.get(f"{end:g}", 0.0)
        if here and so_far + here >= wanted:
            return start + (end - start) * (wanted - so_far) / here
        so_far, start = so_far + here, float(end)
    return None


def dashboard(snapshot: SystemSnapshot, history: History | None, window: str) -> bytes:
    """Return the JSON of the whole page; unknown values are null, and a line of `health` gives the reason.

    Args:
        snapshot: snapshot of the system.
        history: history of the window; None if the database does not answer.
        window: name of the window.
    """
    settings, site = snapshot.settings, snapshot.settings.dagster.webserver_url.rstrip("/")
    warehouse = snapshot.warehouse.value
    works = warehouse.work.values() if warehouse else ()
    content = msgspec.json.encode(
        {
            "at": snapshot.at,
            "environment": settings.environment,
            "dagster_url": site,
            "monitor_url": settings.monitor.url.rstrip("/"),
            "refresh_seconds": settings.monitor.refresh_seconds,
            "window": window,
            "health": readiness(snapshot),
            "topics": _topics(snapshot.broker.present),
            "unfinished": {queue.kind: queue.unfinished for queue in warehouse.queues} if warehouse else None,
            "retry_tiers": _retry_tiers(warehouse, settings.attachments.retry_delays_seconds, snapshot.at),
            "unidentified": warehouse.gauges[UNIDENTIFIED][()] if warehouse else None,
            "incidents": snapshot.alerts.present.incidents if snapshot.alerts.present else None,
            "problems": [*map(str, snapshot.paused), *(one for work in works for one in work.problems)],
            "paused": snapshot.paused,
            "failures": [_failure(failure, site) for failure in warehouse.failures] if warehouse else None,
            "runs": _runs(snapshot.dagster.present, site),
            "history": history,
            "tables": snapshot.tables.present,
            "sources": _sources(snapshot.sources.present, site),
        }
    )
    return printable_json(content.decode()).encode()


def _sources(sources: Sequence[SourceReport] | None, site: str) -> dict[str, object] | None:
    """Return the first sources, starting with those whose last file is unusual."""
    if sources is None:
        return None
    return {
        "known": len(sources),
        "outside": sum(one.outside for one in sources),
        "first": [
            {
                "dataset": one.dataset,
                "source": one.source,
                "file": one.file,
                "url": f"{site}/assets/{asset_of(one.dataset)}?view=partitions&partition={quote(one.file)}",
                "at": one.at,
                "outside": one.outside,
                "verdict": str(one.verdict),
                "judgements": _shown_first(one.verdict.judgements),
                "rows": one.rows,
            }
            for one in sources[:SHOWN_SOURCES]
        ],
    }


def _shown_first(judgements: Sequence[Judgement]) -> list[Mapping[str, object]]:
    """Return the number of rows, and the unusual measures."""
    shown = [one for one in judgements if one.outside or one.measure == ROWS_OF_FILE]
    return [
        {
            "measure": one.label,
            "value": number(one.value),
            "usual": usual_range(one.usual) if one.usual else None,
            "outside": one.outside,
        }
        for one in shown[:MAX_SHOWN_MEASURES]
    ]


def _topics(broker: BrokerState | None) -> dict[str, object] | None:
    if broker is None:
        return None
    lags = [
        {
            "topic": lag.topic,
            "sensor": lag.sensor,
            "waiting": lag.waiting,
            "exists": bool(lag.partitions),
            "partitions": {str(partition): waiting for partition, waiting in lag.partitions.items()},
            "measured_from": lag.measured_from,
            "problem": lag.problem if lag.waiting is None else None,
        }
        for lag in broker.topics
    ]
    return {"lags": lags, "dead_letters": broker.dead_letters}


def _retry_tiers(
    warehouse: WarehouseState | None, delays: Sequence[float], now: datetime
) -> list[dict[str, object]] | None:
    """Return every retry tier, including empty ones."""
    if warehouse is None:
        return None
    return [
        {
            "attempt": tier.attempt,
            "delay_seconds": delay,
            "waiting": tier.waiting,
            "next_due_seconds": max(0.0, (tier.next_due_at - now).total_seconds()) if tier.next_due_at else None,
        }
        for tier, delay in zip(warehouse.retry_tiers, delays, strict=False)
    ]


def _failure(failure: Failure, site: str) -> dict[str, object]:
    where = f"{site}/assets/{failure.asset}?view=partitions&partition={quote(failure.key)}" if failure.asset else None
    reason = (failure.reason or "")[:MAX_SHOWN_REASON]
    ref = ItemRef.of(failure.kind, failure.key)
    page = f"audit/{quote(failure.key, safe='')}" if failure.kind == "action" else None
    page = f"items/{item_path(ref)}" if ref.kind in KINDS else page
    return {
        "kind": failure.kind,
        "key": failure.key,
        "state": failure.state,
        "reason": reason,
        "at": failure.at,
        "url": where,
        "page": page,
        "run_url": f"{site}/runs/{quote(failure.run_id)}" if failure.run_id else None,
    }


def _runs(dagster: DagsterState | None, site: str) -> dict[str, object] | None:
    if dagster is None:
        return None
    running = [_run(run, site) for run in dagster.running]
    return {"queued": dagster.runs.queued, "started": dagster.runs.started, "running": running}


def _run(run: RunOnRecord, site: str) -> dict[str, object]:
    return {
        "run_id": run.run_id,
        "job": run.job,
        "status": run.status.lower(),
        "since": run.since,
        "what": " ".join(_work_of(run.tags)),
        "url": f"{site}/runs/{quote(run.run_id)}",
    }


def _work_of(tags: Mapping[str, str]) -> Iterator[str]:
    """Yield descriptions of a run's work, from its tags."""
    if partition := tags.get("dagster/partition"):
        yield partition
    elif batch := tags.get(BATCH_TAG):
        yield f"{tags.get(BATCH_SIZE_TAG, '')} {batch.replace('_', ' ')}".strip()


def _series(values: Sequence[MinuteValue], steps: range) -> dict[str, tuple[int, ...]]:
    made: dict[str, list[int]] = {}
    for value in values:
        made.setdefault(value.labels[-1], [0] * len(steps))[value.step - steps[0]] += round(value.value)
    return {label: tuple(numbers) for label, numbers in sorted(made.items())}


def _by_last(values: Sequence[MinuteValue]) -> dict[str, int]:
    made: dict[str, int] = {}
    for value in values:
        made[value.labels[-1]] = made.get(value.labels[-1], 0) + round(value.value)
    return dict(sorted(made.items(), key=lambda item: (-item[1], item[0])))


def _by_two(values: Sequence[MinuteValue], outer: int) -> dict[str, dict[str, int]]:
    made: dict[str, dict[str, int]] = {}
    for value in values:
        inner = made.setdefault(value.labels[outer], {})
        label = value.labels[1 - outer]
        inner[label] = inner.get(label, 0) + round(value.value)
    return dict(sorted(made.items()))


def _latencies(values: Sequence[MinuteValue]) -> dict[str, Latency]:
    by_pipeline: dict[str, dict[str, float]] = {}
    for value in values:
        pipeline, end = value.labels
        counts = by_pipeline.setdefault(pipeline, {})
        counts[end] = counts.get(end, 0.0) + value.value
    return {
        pipeline: Latency(round(sum(counts.values())), tuple(percentile(counts, share) for share in PERCENTILES))
        for pipeline, counts in sorted(by_pipeline.items())
    }
