"""What happened over time, of the counters' minutes, for the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from ingest_project.operations import counters as of
from ingest_project.operations.metric_rollup import MinuteValue, RunningTotals

SHOWN = (
    of.FILES,
    of.ROWS,
    of.QUARANTINED_FILES,
    of.QUARANTINED_ROWS,
    of.ATTACHMENTS,
    of.DOWNLOADS,
    of.DOWNLOAD_FAILURES,
    of.STREAM_MESSAGES,
    of.LATENCY_BUCKET,
    of.LATENCY_SUM,
)
PERCENTILES = (0.5, 0.95, 0.99)


class Window(NamedTuple):
    """How far the page looks back.

    Args:
        length: in minutes.
        step: in minutes; a point of each chart.
        kept_seconds: how long an answer is good.
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
    """Seconds from event to stored, of so many; percentiles are estimates within a bucket, None beyond the last."""

    count: int
    percentiles: tuple[float | None, ...]


class History(msgspec.Struct, frozen=True):
    """One window.

    Args:
        starts: of each step, seconds since 1970.
        files, rows: by outcome, one number a step.
        reasons: why files and rows were refused: reason, files, rows; the most frequent first.
        downloads: by attempt and status.
        failures: of downloads, by class of error.
        messages: of streams, by topic and outcome.
        latency: by pipeline.
    """

    step_minutes: int
    starts: tuple[int, ...]
    files: Mapping[str, tuple[int, ...]]
    rows: Mapping[str, tuple[int, ...]]
    reasons: tuple[tuple[str, int, int], ...]
    downloads: Mapping[str, Mapping[str, int]]
    failures: Mapping[str, int]
    messages: Mapping[str, Mapping[str, int]]
    latency: Mapping[str, Latency]


class Histories:
    """The windows, each asked for at most so often however many look at it."""

    def __init__(self, totals: Callable[[], RunningTotals]) -> None:
        self._totals = totals
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, History]] = {}

    def of(self, name: str) -> History:
        """One window.

        Raises:
            KeyError: there is none of that name.
            DatabaseUnavailableError: the database does not answer.
        """
        window = WINDOWS[name]
        with self._lock:
            asked_at, history = self._kept.get(name, (0.0, None))
            if history is None or time.monotonic() - asked_at > window.kept_seconds:
                history = self._ask(window)
                self._kept[name] = (time.monotonic(), history)
            return history

    def _ask(self, window: Window) -> History:
        now = datetime.now(UTC)
        since = now - timedelta(minutes=window.length - window.step)
        return history_of(self._totals().history(since, window.step, SHOWN), window, now)


def history_of(values: Iterable[MinuteValue], window: Window, now: datetime) -> History:
    """Put the values of a window in order."""
    last = int(now.timestamp() // 60) // window.step
    steps = range(last - window.length // window.step + 1, last + 1)
    by_name: dict[str, list[MinuteValue]] = {name: [] for name in SHOWN}
    for value in values:
        if value.step in steps:
            by_name[value.name].append(value)
    return History(
        step_minutes=window.step,
        starts=tuple(step * window.step * 60 for step in steps),
        files=_series(by_name[of.FILES], steps),
        rows=_series(by_name[of.ROWS], steps),
        reasons=_reasons(by_name[of.QUARANTINED_FILES], by_name[of.QUARANTINED_ROWS]),
        downloads=_by_two(by_name[of.DOWNLOADS], outer=1),
        failures=_by_last(by_name[of.DOWNLOAD_FAILURES]),
        messages=_by_two(by_name[of.STREAM_MESSAGES], outer=0),
        latency=_latencies(by_name[of.LATENCY_BUCKET]),
    )


def percentile(counts: Mapping[str, float], share: float) -> float | None:
    """Below how many seconds that share lies, linear within a bucket.

    Args:
        counts: by the upper end of the bucket, not cumulative.
        share: 0 to 1.

    Returns:
        seconds; None where nothing was counted, or where it lies beyond the last bucket.
    """
    wanted = share * sum(counts.values())
    so_far, start = 0.0, 0.0
    for end in of.LATENCY_BUCKETS:
        here = counts.get(f"{end:g}", 0.0)
        if here and so_far + here >= wanted:
            return start + (end - start) * (wanted - so_far) / here
        so_far, start = so_far + here, float(end)
    return None


def _series(values: Sequence[MinuteValue], steps: range) -> dict[str, tuple[int, ...]]:
    made: dict[str, list[int]] = {}
    for value in values:
        made.setdefault(value.labels[-1], [0] * len(steps))[value.step - steps[0]] += round(value.value)
    return {label: tuple(numbers) for label, numbers in sorted(made.items())}


def _by_last(values: Sequence[MinuteValue]) -> dict[str, int]:
    made: dict[str, int] = {}
    for value in values:
        made[value.labels[-1]] = made.get(value.labels[-1], 0) + round(value.value)
    return dict(sorted(made.items(), key=lambda item: -item[1]))


def _by_two(values: Sequence[MinuteValue], outer: int) -> dict[str, dict[str, int]]:
    made: dict[str, dict[str, int]] = {}
    for value in values:
        inner = made.setdefault(value.labels[outer], {})
        label = value.labels[1 - outer]
        inner[label] = inner.get(label, 0) + round(value.value)
    return dict(sorted(made.items()))


def _reasons(files: Sequence[MinuteValue], rows: Sequence[MinuteValue]) -> tuple[tuple[str, int, int], ...]:
    of_files, of_rows = _by_last(files), _by_last(rows)
    each = [(reason, of_files.get(reason, 0), of_rows.get(reason, 0)) for reason in {**of_files, **of_rows}]
    return tuple(sorted(each, key=lambda entry: (-entry[1], -entry[2], entry[0])))


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
