"""Everything that was seen, as Prometheus reads it.

A part that does not answer now has no samples, rather than old ones; `ingest_part_up` says so. Counters come from
running totals in the database and from the broker, so that they go on over restarts of this process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from ingest_project.operations import counters as of
from ingest_project.operations.counts import LedgerSeen, TablesSeen
from ingest_project.operations.metric_rollup import Series
from ingest_project.operations.snapshot import DagsterSeen, SystemSnapshot
from ingest_project.operations.topics import BrokerSeen
from ingest_project.platform.work_queue.states import AttachmentState, FileState, JobState

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["CONTENT_TYPE_LATEST", "exposition"]

# Name, labels, meaning.
COUNTERS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (of.JOBS, ("status",), "Polling jobs that came to an end."),
    (of.FILES_PUBLISHED, ("source_type",), "Files that polling jobs found and announced."),
    (of.FILES, ("outcome",), "Files that came to an end."),
    (of.ROWS, ("outcome",), "Rows of ingested files, accepted or put aside."),
    (of.LANDED_BYTES, (), "Bytes of finished files in the landing store, each time they were ingested."),
    (of.QUARANTINED_FILES, ("reason",), "Files refused whole, by the rule they broke."),
    (
        of.QUARANTINED_ROWS,
        ("rule",),
        "Rows put aside out of ingested files, by broken rule; one row may break several.",
    ),
    (of.ATTACHMENT_EVENTS, ("outcome",), "Events whose addresses were taken out."),
    (of.ATTACHMENTS, ("outcome",), "Attachments that came to an end."),
    (of.DOWNLOADS, ("status", "attempt"), "Attempts at downloads, by how they ended and which attempt it was."),
    (of.DOWNLOAD_FAILURES, ("reason",), "Attempts at downloads that failed, by class of error."),
    (of.UPLOADED_BYTES, ("domain",), "Bytes of attachments stored."),
    (of.STREAM_MESSAGES, ("topic", "outcome"), "Messages of streams by outcome."),
)
# Series that are there from the beginning: what appears with its first value hides that value from a rate.
FROM_THE_BEGINNING: Mapping[str, tuple[tuple[str, ...], ...]] = {
    of.JOBS: tuple((state.value,) for state in JobState if state.finished),
    of.FILES: tuple((state.value,) for state in FileState if state.finished),
    of.ROWS: (("accepted",), ("quarantined",)),
    of.LANDED_BYTES: ((),),
    of.ATTACHMENTS: tuple((state.value,) for state in AttachmentState if state.finished),
}
IN_HAND_JOBS = ("requested", "running")


class SystemCollector(Collector):
    """Turns what was seen last into metrics."""

    def __init__(self, system: SystemSnapshot) -> None:
        self._system = system

    def collect(self) -> Iterator[Metric]:
        """Every metric there is a value for."""
        system = self._system
        yield from _parts(system)
        if ledger := system.ledger.seen.present:
            yield from _counters(ledger.totals)
            yield _latency(ledger.totals)
            yield from _unfinished(ledger)
        if broker := system.broker.seen.present:
            yield from _topics(broker)
        if dagster := system.dagster.seen.present:
            yield from _dagster(dagster)
        if tables := system.tables.seen.present:
            yield from _tables(tables)
        if disk := system.disk.seen.present:
            meaning = "Room on the fullest of the disks that this machine writes to."
            yield GaugeMetricFamily("ingest_disk_free_bytes", meaning, value=disk.free_bytes)


def exposition(system: SystemSnapshot) -> bytes:
    """The text of `/metrics`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SystemCollector(system))
    return generate_latest(registry)


def _parts(system: SystemSnapshot) -> Iterator[Metric]:
    up = GaugeMetricFamily("ingest_part_up", "Whether a part answered the last time.", labels=["part"])
    looks = GaugeMetricFamily(
        "ingest_part_look_seconds", "How long the last look at a part took that worked.", labels=["part"]
    )
    for part in system.parts:
        up.add_metric([part.name], float(part.seen.present is not None))
        looks.add_metric([part.name], part.seen.took_seconds)
    yield up
    yield looks


def _counters(totals: Mapping[Series, float]) -> Iterator[Metric]:
    by_name: defaultdict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for name, known in FROM_THE_BEGINNING.items():
        by_name[name].update(dict.fromkeys(known, 0.0))
    for (name, labels), value in sorted(totals.items()):
        by_name[name][labels] = value
    for name, labels, meaning in COUNTERS:
        family = CounterMetricFamily(name, meaning, labels=labels)
        for values, total in by_name[name].items():
            family.add_metric(values, total)
        yield family


def _latency(totals: Mapping[Series, float]) -> Metric:
    family = HistogramMetricFamily(
        of.LATENCY, "From the Kafka message to the end of what it asked for, in seconds.", labels=["pipeline"]
    )
    for pipeline in sorted({labels[0] for name, labels in totals if name == of.LATENCY_BUCKET}):
        buckets, so_far = [], 0.0
        for end in (*(f"{end:g}" for end in of.LATENCY_BUCKETS), of.BEYOND):
            so_far += totals.get((of.LATENCY_BUCKET, (pipeline, end)), 0.0)
            buckets.append((end, so_far))
        family.add_metric([pipeline], buckets, totals.get((of.LATENCY_SUM, (pipeline,)), 0.0))
    return family


def _unfinished(ledger: LedgerSeen) -> Iterator[Metric]:
    now = datetime.now(UTC)
    jobs = ledger.unfinished["polling_job"]
    active = sum(jobs.get(state, 0) for state in IN_HAND_JOBS)
    yield GaugeMetricFamily("poller_active_jobs", "Polling jobs that a run has or was asked to take.", value=active)
    entries = GaugeMetricFamily("ingest_unfinished_entries", "Entries of the ledger.", labels=["kind", "state"])
    for kind, states in ledger.unfinished.items():
        for state, number in sorted(states.items()):
            entries.add_metric([kind, state], number)
    yield entries
    oldest = GaugeMetricFamily(
        "ingest_oldest_unfinished_seconds",
        "How long nothing has happened to the unfinished entry that has waited longest.",
        labels=["kind"],
    )
    for kind, since in sorted(ledger.oldest_untouched.items()):
        oldest.add_metric([kind], max(0.0, (now - since).total_seconds()))
    yield oldest
    attempts = GaugeMetricFamily(
        "ingest_stream_failed_attempts",
        "Runs in a row that did not move a partition of a stream, one that is under way included.",
        labels=["topic", "partition"],
    )
    for (topic, partition), number in sorted(ledger.stream_attempts.items()):
        attempts.add_metric([topic, str(partition)], number)
    yield attempts
    retry_tiers = GaugeMetricFamily(
        "ingest_downloads_waiting", "Downloads that wait to be retried.", labels=["attempt"]
    )
    for tier in ledger.retry_tiers:
        retry_tiers.add_metric([str(tier.attempt)], tier.waiting)
    yield retry_tiers
    yield GaugeMetricFamily(
        "ingest_unidentified_messages", "CRM messages kept apart and not identified.", value=ledger.unidentified
    )


def _topics(broker: BrokerSeen) -> Iterator[Metric]:
    lag = GaugeMetricFamily(
        "ingest_consumer_lag_messages", "Messages that are not taken yet.", labels=["topic", "partition"]
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


def _dagster(dagster: DagsterSeen) -> Iterator[Metric]:
    now = datetime.now(UTC)
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


def _tables(tables: TablesSeen) -> Iterator[Metric]:
    commits = CounterMetricFamily("ingest_delta_commits", "Commits of a Delta table.", labels=["table"])
    rows = GaugeMetricFamily("ingest_delta_rows", "Rows of a Delta table.", labels=["table"])
    files = GaugeMetricFamily("ingest_delta_files", "Live files of a Delta table.", labels=["table"])
    size = GaugeMetricFamily("ingest_delta_size_bytes", "Bytes of the live files of a Delta table.", labels=["table"])
    for figures in tables.figures:
        commits.add_metric([figures.table], figures.commits)
        if figures.rows is not None:
            rows.add_metric([figures.table], figures.rows)
        files.add_metric([figures.table], figures.files)
        size.add_metric([figures.table], figures.size_bytes)
    yield from (commits, rows, files, size)
