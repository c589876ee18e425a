"""Prometheus metrics of a snapshot of the system.

A part that does not answer now has no samples, rather than old ones; `ingest_part_up` says so. Counters come from
running totals in the database and from the broker, so they continue after a restart of this process.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from ingest_project.core.settings.alerts import CONDITIONS
from ingest_project.operations import CAPABILITIES, Series, SystemResources
from ingest_project.operations.alerts.incidents import AlertState
from ingest_project.operations.snapshot import DagsterState, DeltaFigures, SystemSnapshot, WarehouseState
from ingest_project.operations.topics import BrokerState
from ingest_project.platform.capability import BEYOND, LATENCY, LATENCY_BUCKET, LATENCY_BUCKETS, LATENCY_SUM, Capability
from ingest_project.platform.capability import Metric as MetricSpec

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["CONTENT_TYPE_LATEST", "exposition"]


class SystemCollector(Collector):
    """Create the metrics of a snapshot."""

    def __init__(self, snapshot: SystemSnapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield every metric that has a value."""
        snapshot = self._snapshot
        yield from _parts(snapshot)
        if warehouse := snapshot.warehouse.present:
            yield from _counters(warehouse.totals)
            yield _latency(warehouse.totals)
            yield from _work(warehouse, snapshot.at)
        if broker := snapshot.broker.present:
            yield from _topics(broker)
        if dagster := snapshot.dagster.present:
            yield from _dagster(dagster, snapshot.at)
        if (tables := snapshot.tables.present) is not None:
            yield from _tables(tables)
        if alerts := snapshot.alerts.present:
            yield from _alerts(alerts)
        if disk := snapshot.disk.present:
            meaning = "Free space on the fullest of the disks that this machine writes to."
            yield GaugeMetricFamily("ingest_disk_free_bytes", meaning, value=disk.free_bytes)


def exposition(snapshot: SystemSnapshot) -> bytes:
    """Return the text of `/metrics`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SystemCollector(snapshot))
    return generate_latest(registry)


def _parts(snapshot: SystemSnapshot) -> Iterator[Metric]:
    up = GaugeMetricFamily("ingest_part_up", "Whether a part answered the last time.", labels=["part"])
    polls = GaugeMetricFamily(
        "ingest_part_look_seconds", "How long the last successful poll of a part took.", labels=["part"]
    )
    for name, sample in snapshot.parts.items():
        up.add_metric([name], float(sample.present is not None))
        polls.add_metric([name], sample.took_seconds)
    yield up
    yield polls


def _alerts(alerts: AlertState) -> Iterator[Metric]:
    opened = GaugeMetricFamily("ingest_open_incidents", "Incidents that are open.", labels=["condition"])
    numbers = Counter(incident.condition for incident in alerts.incidents)
    for condition in CONDITIONS:
        opened.add_metric([condition], numbers[condition])
    yield opened
    waiting = GaugeMetricFamily(
        "ingest_alert_messages_failing",
        "Alerts that a channel did not accept, and that are sent again.",
        labels=["channel"],
    )
    for one in alerts.failing_channels:
        waiting.add_metric([one.channel], one.waiting)
    yield waiting


def _counters(totals: Mapping[Series, float]) -> Iterator[Metric]:
    by_name: defaultdict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for (name, labels), value in sorted(totals.items()):
        by_name[name][labels] = value
    for spec in _specs(lambda capability: capability.metrics):
        values = dict.fromkeys(spec.initial, 0.0) | by_name[spec.name]
        family = CounterMetricFamily(spec.name, spec.meaning, labels=spec.labels)
        for labels, total in values.items():
            family.add_metric(labels, total)
        yield family


def _latency(totals: Mapping[Series, float]) -> Metric:
    family = HistogramMetricFamily(
        LATENCY, "From the Kafka message to the end of what it requests, in seconds.", labels=["pipeline"]
    )
    for pipeline in sorted({labels[0] for name, labels in totals if name == LATENCY_BUCKET}):
        buckets, so_far = [], 0.0
        for end in (*(f"{end:g}" for end in LATENCY_BUCKETS), BEYOND):
            so_far += totals.get((LATENCY_BUCKET, (pipeline, end)), 0.0)
            buckets.append((end, so_far))
        family.add_metric([pipeline], buckets, totals.get((LATENCY_SUM, (pipeline,)), 0.0))
    return family


def _work(state: WarehouseState, now: datetime) -> Iterator[Metric]:
    entries = GaugeMetricFamily(
        "ingest_unfinished_entries", "Unfinished entries of the work queues.", labels=["kind", "state"]
    )
    oldest = GaugeMetricFamily(
        "ingest_oldest_unfinished_seconds",
        "Time since the last change of the unfinished entry that has not changed for longest.",
        labels=["kind"],
    )
    for queue in state.queues:
        for name, number in sorted(queue.unfinished.items()):
            entries.add_metric([queue.kind, name], number)
        if queue.oldest_untouched:
            oldest.add_metric([queue.kind], max(0.0, (now - queue.oldest_untouched).total_seconds()))
    yield entries
    yield oldest
    tiers = GaugeMetricFamily("ingest_downloads_waiting", "Downloads that wait to be retried.", labels=["attempt"])
    for tier in state.retry_tiers:
        tiers.add_metric([str(tier.attempt)], tier.waiting)
    yield tiers
    for spec in _specs(lambda capability: capability.gauges):
        gauge = GaugeMetricFamily(spec.name, spec.meaning, labels=spec.labels)
        for labels, value in sorted(state.gauges[spec.name].items()):
            gauge.add_metric(labels, value)
        yield gauge


def _specs(
    of: Callable[[Capability[SystemResources]], Sequence[MetricSpec]],
) -> Iterator[MetricSpec]:
    return (spec for capability in CAPABILITIES for spec in of(capability))


def _topics(broker: BrokerState) -> Iterator[Metric]:
    lag = GaugeMetricFamily(
        "ingest_consumer_lag_messages", "Messages that are not consumed yet.", labels=["topic", "partition"]
    )
    for topic in broker.topics:
        for partition, waiting in sorted(topic.partitions.items()):
            lag.add_metric([topic.topic, str(partition)], waiting)
    yield lag
    stalled = GaugeMetricFamily(
        "ingest_topic_stalled_seconds",
        "How long a partition with messages has not moved; 0 while all of the topic move.",
        labels=["topic"],
    )
    seconds = {one.topic: one.seconds for one in broker.stalled}
    for topic in broker.topics:
        stalled.add_metric([topic.topic], seconds.get(topic.topic, 0.0))
    yield stalled
    written = CounterMetricFamily("ingest_dead_letters", "Dead letters ever written to a topic.", labels=["topic"])
    kept = GaugeMetricFamily("ingest_dead_letters_kept", "Dead letters that a topic still has.", labels=["topic"])
    for letters in broker.dead_letters:
        written.add_metric([letters.topic], letters.written)
        kept.add_metric([letters.topic], letters.kept)
    yield written
    yield kept


def _dagster(dagster: DagsterState, now: datetime) -> Iterator[Metric]:
    runs = GaugeMetricFamily("ingest_runs", "Dagster runs that are not finished.", labels=["state"])
    runs.add_metric(["queued"], dagster.runs.queued)
    runs.add_metric(["started"], dagster.runs.started)
    yield runs
    beats = GaugeMetricFamily(
        "ingest_daemon_heartbeat_age_seconds", "Since a daemon was last alive.", labels=["daemon"]
    )
    for kind, at in sorted(dagster.heartbeats.items()):
        beats.add_metric([kind.lower()], (now - at).total_seconds())
    yield beats
    ticks = GaugeMetricFamily(
        "ingest_sensor_tick_age_seconds",
        "Since a sensor last ticked; negative where that lies in the future, as a clock was set back.",
        labels=["sensor"],
    )
    failures = GaugeMetricFamily(
        "ingest_sensor_failed_ticks", "Ticks of a sensor that failed in a row, up to the last one.", labels=["sensor"]
    )
    for name, sensor in sorted(dagster.sensors.items()):
        if sensor.ticked_at and not sensor.stopped:
            ticks.add_metric([name], (now - sensor.ticked_at).total_seconds())
            failing = dagster.failing.get(name)
            failures.add_metric([name], failing.in_a_row if failing else 0)
    yield ticks
    yield failures


def _tables(tables: Sequence[DeltaFigures]) -> Iterator[Metric]:
    commits = CounterMetricFamily("ingest_delta_commits", "Commits of a Delta table.", labels=["table"])
    rows = GaugeMetricFamily("ingest_delta_rows", "Rows of a Delta table.", labels=["table"])
    files = GaugeMetricFamily("ingest_delta_files", "Live files of a Delta table.", labels=["table"])
    size = GaugeMetricFamily("ingest_delta_size_bytes", "Bytes of the live files of a Delta table.", labels=["table"])
    for figures in tables:
        commits.add_metric([figures.table], figures.commits)
        if figures.rows is not None:
            rows.add_metric([figures.table], figures.rows)
        files.add_metric([figures.table], figures.files)
        size.add_metric([figures.table], figures.size_bytes)
    yield from (commits, rows, files, size)
