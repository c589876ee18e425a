"""Prometheus metrics of a snapshot of the system, and the one list of all metrics.

A part that does not answer has no samples instead of old ones, and `ingest_part_up` is 0. Counters come from running
totals in the database and from the broker, so they continue after a restart of this process.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from ingest_project.core.settings.alerts import CONDITIONS
from ingest_project.operations import CAPABILITIES, Series
from ingest_project.operations.alerts.incidents import AlertState
from ingest_project.operations.snapshot import DagsterState, DeltaFigures, SystemSnapshot, WarehouseState
from ingest_project.operations.topics import BrokerState
from ingest_project.platform.capability import BEYOND, HISTOGRAMS, LATENCY_BUCKETS, Metric

__all__ = ["ALL_METRICS", "CONTENT_TYPE_LATEST", "exposition"]


def _gauge(name: str, labels: tuple[str, ...], unit: str, meaning: str) -> Metric:
    return Metric(name, labels, meaning, kind="gauge", unit=unit)


UNFINISHED = _gauge("ingest_unfinished_entries", ("kind", "state"), "entries", "Unfinished entries of the work queues.")
OLDEST = _gauge(
    "ingest_oldest_unfinished_seconds",
    ("kind",),
    "seconds",
    "Time since the last change of the unfinished entry that has been unchanged for longest.",
)
WAITING = _gauge("ingest_downloads_waiting", ("attempt",), "downloads", "Downloads that wait to be retried.")
LAG = _gauge(
    "ingest_consumer_lag_messages",
    ("topic", "partition"),
    "messages",
    "Messages not consumed yet, by the saved cursors, or by committed offsets if the cursors cannot be read.",
)
STALLED = _gauge(
    "ingest_topic_stalled_seconds",
    ("topic",),
    "seconds",
    "How long a partition with waiting messages has not been read; 0 while all partitions are read.",
)
DEAD_LETTERS = Metric("ingest_dead_letters", ("topic",), "Dead letters ever written to a topic.", unit="messages")
DEAD_LETTERS_KEPT = _gauge("ingest_dead_letters_kept", ("topic",), "messages", "Dead letters still on a topic.")
RUNS = _gauge("ingest_runs", ("state",), "runs", "Dagster runs that are not finished: queued or started.")
HEARTBEAT_AGE = _gauge(
    "ingest_daemon_heartbeat_age_seconds",
    ("daemon",),
    "seconds",
    "Time since a daemon's last heartbeat; negative if it lies in the future because a clock was set back.",
)
TICK_AGE = _gauge(
    "ingest_sensor_tick_age_seconds",
    ("sensor",),
    "seconds",
    "Time since a sensor's last tick; negative if it lies in the future because a clock was set back.",
)
FAILED_TICKS = _gauge(
    "ingest_sensor_failed_ticks", ("sensor",), "ticks", "Consecutive failed ticks of a sensor, up to the last tick."
)
DELTA_COMMITS = Metric("ingest_delta_commits", ("table",), "Commits of a Delta table.", unit="commits")
DELTA_ROWS = _gauge("ingest_delta_rows", ("table",), "rows", "Rows of a Delta table, read once a minute.")
DELTA_FILES = _gauge("ingest_delta_files", ("table",), "files", "Live files of a Delta table.")
DELTA_SIZE = _gauge("ingest_delta_size_bytes", ("table",), "bytes", "Bytes of the live files of a Delta table.")
DISK_FREE = _gauge(
    "ingest_disk_free_bytes", (), "bytes", "Free space on the fullest of the disks that this machine writes to."
)
OUTSIDE = _gauge(
    "ingest_sources_outside_baseline",
    ("dataset",),
    "sources",
    "Sources of files whose last file has a measure outside its usual range.",
)
OPEN_INCIDENTS = _gauge("ingest_open_incidents", ("condition",), "incidents", "Open incidents.")
FAILING_MESSAGES = _gauge(
    "ingest_alert_messages_failing",
    ("channel",),
    "messages",
    "Alerts that a channel did not accept and that will be sent again.",
)
PART_UP = _gauge(
    "ingest_part_up",
    ("part",),
    "1 or 0",
    "1 if the last poll of a part (warehouse, broker, dagster, tables, disk) succeeded; a failed part has no samples.",
)
PART_LOOK = _gauge("ingest_part_look_seconds", ("part",), "seconds", "Duration of the last successful poll of a part.")
OF_CAPABILITIES = tuple(metric for capability in CAPABILITIES for metric in capability.metrics)
ALL_METRICS: tuple[Metric, ...] = (
    *OF_CAPABILITIES,
    *HISTOGRAMS,
    *(UNFINISHED, OLDEST, WAITING, LAG, STALLED, DEAD_LETTERS, DEAD_LETTERS_KEPT),
    *(RUNS, HEARTBEAT_AGE, TICK_AGE, FAILED_TICKS, DELTA_ROWS, DELTA_COMMITS, DELTA_FILES, DELTA_SIZE),
    *(OUTSIDE, DISK_FREE, OPEN_INCIDENTS, FAILING_MESSAGES, PART_UP, PART_LOOK),
)


class SystemCollector(Collector):
    """Create the metrics of a snapshot."""

    def __init__(self, snapshot: SystemSnapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Family]:
        """Yield every metric that has a value."""
        snapshot = self._snapshot
        yield _family(PART_UP, {(name,): sample.present is not None for name, sample in snapshot.parts.items()})
        yield _family(PART_LOOK, {(name,): sample.took_seconds for name, sample in snapshot.parts.items()})
        if warehouse := snapshot.warehouse.present:
            yield from _counters(warehouse.totals)
            yield from (_histogram(metric, warehouse.totals) for metric in HISTOGRAMS)
            yield from _work(warehouse, snapshot.at)
        if broker := snapshot.broker.present:
            yield from _topics(broker)
        if dagster := snapshot.dagster.present:
            yield from _dagster(dagster, snapshot.at)
        if (tables := snapshot.tables.present) is not None:
            yield from _tables(tables)
        if (sources := snapshot.sources.present) is not None:
            datasets = sorted({one.dataset for one in sources})
            outside = Counter(one.dataset for one in sources if one.outside)
            yield _family(OUTSIDE, {(dataset,): outside[dataset] for dataset in datasets})
        if alerts := snapshot.alerts.present:
            yield from _alerts(alerts)
        if disk := snapshot.disk.present:
            yield _family(DISK_FREE, {(): disk.free_bytes})


def exposition(snapshot: SystemSnapshot) -> bytes:
    """Return the text of `/metrics`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SystemCollector(snapshot))
    return generate_latest(registry)


def _alerts(alerts: AlertState) -> Iterator[Family]:
    numbers = Counter(incident.condition for incident in alerts.incidents)
    yield _family(OPEN_INCIDENTS, {(condition,): numbers[condition] for condition in CONDITIONS})
    yield _family(FAILING_MESSAGES, {(one.channel,): one.waiting for one in alerts.failing_channels})


def _family(metric: Metric, values: Mapping[Any, float]) -> Family:
    made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = made(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _counters(totals: Mapping[Series, float]) -> Iterator[Family]:
    by_name: defaultdict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for (name, labels), value in sorted(totals.items()):
        by_name[name][labels] = value
    for metric in OF_CAPABILITIES:
        if metric.kind == "counter":
            yield _family(metric, dict.fromkeys(metric.initial, 0.0) | by_name[metric.name])


def _histogram(metric: Metric, totals: Mapping[Series, float]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for pipeline in sorted({labels[0] for name, labels in totals if name == metric.bucket}):
        buckets, so_far = [], 0.0
        for end in (*(f"{end:g}" for end in LATENCY_BUCKETS), BEYOND):
            so_far += totals.get((metric.bucket, (pipeline, end)), 0.0)
            buckets.append((end, so_far))
        family.add_metric([pipeline], buckets, totals.get((metric.sum, (pipeline,)), 0.0))
    return family


def _work(state: WarehouseState, now: datetime) -> Iterator[Family]:
    yield _family(
        UNFINISHED,
        {(queue.kind, name): number for queue in state.queues for name, number in sorted(queue.unfinished.items())},
    )
    since = {(queue.kind,): queue.oldest_untouched for queue in state.queues}
    yield _family(OLDEST, {kind: max(0.0, (now - at).total_seconds()) for kind, at in since.items() if at})
    yield _family(WAITING, {(str(tier.attempt),): tier.waiting for tier in state.retry_tiers})
    for metric in OF_CAPABILITIES:
        if metric.kind == "gauge":
            yield _family(metric, dict(sorted(state.gauges[metric.name].items())))


def _topics(broker: BrokerState) -> Iterator[Family]:
    # If several streams read a topic, use the lag of the slowest.
    lags: dict[tuple[str, ...], float] = {}
    for one in broker.topics:
        for part, lag in sorted(one.partitions.items()):
            lags[one.topic, str(part)] = max(lag, lags.get((one.topic, str(part)), 0))
    yield _family(LAG, lags)
    seconds = {(one.topic,): 0.0 for one in broker.topics}
    for stalled in broker.stalled:
        seconds[(stalled.topic,)] = max(stalled.seconds, seconds[(stalled.topic,)])
    yield _family(STALLED, seconds)
    yield _family(DEAD_LETTERS, {(one.topic,): one.written for one in broker.dead_letters})
    yield _family(DEAD_LETTERS_KEPT, {(one.topic,): one.kept for one in broker.dead_letters})


def _dagster(dagster: DagsterState, now: datetime) -> Iterator[Family]:
    yield _family(RUNS, {("queued",): dagster.runs.queued, ("started",): dagster.runs.started})
    beats = {(kind.lower(),): (now - at).total_seconds() for kind, at in sorted(dagster.heartbeats.items())}
    yield _family(HEARTBEAT_AGE, beats)
    ticking = {
        (name,): sensor.ticked_at
        for name, sensor in sorted(dagster.sensors.items())
        if sensor.ticked_at and not sensor.stopped
    }
    yield _family(TICK_AGE, {name: (now - at).total_seconds() for name, at in ticking.items()})
    failing = {(name,): ticks.in_a_row for name, ticks in dagster.failing.items()}
    yield _family(FAILED_TICKS, {name: failing.get(name, 0) for name in ticking})


def _tables(tables: Sequence[DeltaFigures]) -> Iterator[Family]:
    yield _family(DELTA_COMMITS, {(one.table,): one.commits for one in tables})
    yield _family(DELTA_ROWS, {(one.table,): one.rows for one in tables if one.rows is not None})
    yield _family(DELTA_FILES, {(one.table,): one.files for one in tables})
    yield _family(DELTA_SIZE, {(one.table,): one.size_bytes for one in tables})
