"""Alert rules of Prometheus, each with a unit test of `promtool`: series it fires on, and series it does not."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

MINUTE = "1m"


class Alert(NamedTuple):
    """One rule.

    Args:
        name: of the alert.
        expr: PromQL; fires for each series it returns.
        lasts: how long it must hold.
        severity: `critical` wakes a person, `warning` waits for the morning.
        summary: one sentence, with labels as `{{ $labels.topic }}`.
        page: of the documentation, with the remedy.
        fires: series by name on which it fires, in promtool's notation, a value a minute.
        quiet: series on which it does not.
        labels: of the alert that fires.
        after: when both are tested.
    """

    name: str
    expr: str
    lasts: str
    severity: str
    summary: str
    page: str
    fires: dict[str, str]
    quiet: dict[str, str]
    labels: Mapping[str, str] = MappingProxyType({})
    after: str = "40m"

    @property
    def rule(self) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.lasts} if self.lasts else {}),
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "runbook": f"docs/{self.page}"},
        }

    @property
    def unit_tests(self) -> list[dict[str, Any]]:
        """The tests as promtool reads them."""
        alert = {"exp_labels": {"severity": self.severity, **self.labels}, "exp_annotations": self._annotations}
        return [
            self._unit_test(f"{self.name} fires", self.fires, [alert]),
            self._unit_test(f"{self.name} is quiet", self.quiet, []),
        ]

    def _unit_test(self, name: str, series: dict[str, str], alerts: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "name": name,
            "interval": MINUTE,
            "input_series": [{"series": key, "values": values} for key, values in series.items()],
            "alert_rule_test": [{"eval_time": self.after, "alertname": self.name, "exp_alerts": alerts}],
        }

    @property
    def _annotations(self) -> dict[str, str]:
        summary = self.summary
        for label, value in self.labels.items():
            summary = summary.replace(f"{{{{ $labels.{label} }}}}", value)
        return {"summary": summary, "runbook": f"docs/{self.page}"}


def _buckets(name: str, pipeline: str, within: str) -> dict[str, str]:
    """Return a histogram to which six observations a minute are added, all in one bucket."""
    ends = ("30", "60", "120", "300", "+Inf")
    label = f'pipeline="{pipeline}"'
    return {
        f'{name}_bucket{{{label},le="{end}"}}': "0+6x60" if ends.index(end) >= ends.index(within) else "0x60"
        for end in ends
    }


LATENCY = "ingest_event_to_stored_seconds"
ALERTS = (
    Alert(
        "IngestMonitorAway",
        'up{job="ingest"} == 0 or absent(up{job="ingest"})',
        "2m",
        "critical",
        "Prometheus cannot read /metrics of the monitor.",
        "monitoring.md",
        {'up{job="ingest",instance="monitor:8080"}': "0x60"},
        {'up{job="ingest",instance="monitor:8080"}': "1x60"},
        {"job": "ingest", "instance": "monitor:8080"},
    ),
    Alert(
        "IngestPartAway",
        "ingest_part_up == 0",
        "2m",
        "critical",
        "{{ $labels.part }} does not answer the monitor.",
        "troubleshooting.md",
        {'ingest_part_up{part="broker"}': "1 1 0x60"},
        {'ingest_part_up{part="broker"}': "1x38 0 1"},
        {"part": "broker"},
    ),
    Alert(
        "IngestDaemonSilent",
        'ingest_daemon_heartbeat_age_seconds{daemon="sensor"} > 120',
        "1m",
        "critical",
        "The daemon that ticks sensors has been silent for more than two minutes: nothing is consumed.",
        "troubleshooting.md",
        {'ingest_daemon_heartbeat_age_seconds{daemon="sensor"}': "0+60x60"},
        {'ingest_daemon_heartbeat_age_seconds{daemon="sensor"}': "30x60"},
        {"daemon": "sensor"},
    ),
    Alert(
        "IngestSensorFails",
        "ingest_sensor_failed_ticks > 3",
        "1m",
        "critical",
        "The last ticks of {{ $labels.sensor }} failed.",
        "troubleshooting.md",
        {'ingest_sensor_failed_ticks{sensor="sales_events_sensor"}': "0+1x60"},
        {'ingest_sensor_failed_ticks{sensor="sales_events_sensor"}': "3x60"},
        {"sensor": "sales_events_sensor"},
    ),
    Alert(
        "IngestTopicStalled",
        "ingest_topic_stalled_seconds > 120",
        "",
        "critical",
        "A partition of {{ $labels.topic }} has messages and does not move.",
        "troubleshooting.md",
        {'ingest_topic_stalled_seconds{topic="sales_events"}': "0+60x60"},
        {'ingest_topic_stalled_seconds{topic="sales_events"}': "60x60"},
        {"topic": "sales_events"},
    ),
    Alert(
        "IngestClockSetBack",
        "ingest_sensor_tick_age_seconds < -5",
        "1m",
        "warning",
        "The last tick of {{ $labels.sensor }} lies in the future: a clock was set back.",
        "troubleshooting.md",
        {'ingest_sensor_tick_age_seconds{sensor="sales_events_sensor"}': "-300x60"},
        {'ingest_sensor_tick_age_seconds{sensor="sales_events_sensor"}': "-1x60"},
        {"sensor": "sales_events_sensor"},
    ),
    Alert(
        "IngestLagGrows",
        "sum by (topic) (ingest_consumer_lag_messages) > 10000"
        " and sum by (topic) (deriv(ingest_consumer_lag_messages[10m])) > 0",
        "15m",
        "warning",
        "More than 10,000 messages wait on {{ $labels.topic }}, and their number grows.",
        "operations.md",
        {'ingest_consumer_lag_messages{topic="sales_events",partition="0"}': "0+1000x60"},
        {
            'ingest_consumer_lag_messages{topic="sales_events",partition="0"}': "90000-1000x60",
            'ingest_consumer_lag_messages{topic="file-event-queue",partition="0"}': "0+100x60",
        },
        {"topic": "sales_events"},
    ),
    Alert(
        "IngestStreamFails",
        "max by (topic) (ingest_stream_failed_attempts) >= 3",
        "1m",
        "critical",
        "Three runs in a row did not move a partition of {{ $labels.topic }}.",
        "streams.md",
        {'ingest_stream_failed_attempts{topic="sales_events",partition="0"}': "0+1x60"},
        {'ingest_stream_failed_attempts{topic="sales_events",partition="0"}': "1 2 0x60"},
        {"topic": "sales_events"},
    ),
    Alert(
        "IngestQuarantineHigh",
        'sum(rate(ingest_files_total{outcome=~"quarantined|failed"}[30m])) / sum(rate(ingest_files_total[30m])) > 0.2',
        "15m",
        "warning",
        "More than a fifth of the files of the last half hour were quarantined or failed.",
        "operations.md",
        {'ingest_files_total{outcome="quarantined"}': "0+3x60", 'ingest_files_total{outcome="ingested"}': "0+7x60"},
        {'ingest_files_total{outcome="quarantined"}': "0+1x60", 'ingest_files_total{outcome="ingested"}': "0+9x60"},
        after="50m",
    ),
    Alert(
        "IngestUnusualFiles",
        "sum by (dataset) (ingest_sources_outside_baseline) > 0",
        "5m",
        "warning",
        "The last file of a source of {{ $labels.dataset }} is not usual: ingest baselines shows which, and why.",
        "monitoring.md#baselines",
        {'ingest_sources_outside_baseline{dataset="sensor_readings"}': "0 0 2x60"},
        {'ingest_sources_outside_baseline{dataset="sensor_readings"}': "0x60"},
        {"dataset": "sensor_readings"},
    ),
    Alert(
        "IngestSlow",
        f"histogram_quantile(0.95, sum by (le, pipeline) (rate({LATENCY}_bucket[15m]))) > 60",
        "15m",
        "warning",
        "One in twenty of {{ $labels.pipeline }} takes more than a minute from the Kafka message to stored.",
        "operations.md",
        _buckets(LATENCY, "files", "120"),
        _buckets(LATENCY, "files", "30"),
        {"pipeline": "files"},
    ),
    Alert(
        "IngestStuck",
        "ingest_oldest_unfinished_seconds > 1800",
        "5m",
        "warning",
        "A {{ $labels.kind }} has been unfinished and unchanged for more than half an hour.",
        "troubleshooting.md",
        {'ingest_oldest_unfinished_seconds{kind="file"}': "0+60x60"},
        {'ingest_oldest_unfinished_seconds{kind="file"}': "600x60"},
        {"kind": "file"},
    ),
    Alert(
        "IngestDownloadsFail",
        'sum(rate(ingest_downloads_total{status!="success"}[30m])) / sum(rate(ingest_downloads_total[30m])) > 0.5',
        "15m",
        "warning",
        "More than half of the download attempts of the last half hour failed.",
        "attachments.md",
        {
            'ingest_downloads_total{status="failed_transient",attempt="1"}': "0+6x60",
            'ingest_downloads_total{status="success",attempt="1"}': "0+4x60",
        },
        {
            'ingest_downloads_total{status="failed_transient",attempt="1"}': "0+1x60",
            'ingest_downloads_total{status="success",attempt="1"}': "0+9x60",
        },
        after="50m",
    ),
    Alert(
        "IngestDeadLetters",
        "increase(ingest_dead_letters_total[15m]) > 0",
        "",
        "warning",
        "Messages became dead letters on {{ $labels.topic }}.",
        "operations.md",
        {'ingest_dead_letters_total{topic="downloads.dlq"}': "0x30 1x30"},
        {'ingest_dead_letters_total{topic="downloads.dlq"}': "7x60"},
        {"topic": "downloads.dlq"},
    ),
    Alert(
        "IngestAlertsNotSent",
        "ingest_alert_messages_failing > 0",
        "10m",
        "critical",
        "The channel {{ $labels.channel }} does not accept alerts.",
        "monitoring.md",
        {'ingest_alert_messages_failing{channel="webhook"}': "0x10 2x50"},
        {'ingest_alert_messages_failing{channel="webhook"}': "2x5 0x55"},
        {"channel": "webhook"},
    ),
    Alert(
        "IngestDiskNearlyFull",
        "predict_linear(ingest_disk_free_bytes[1h], 6 * 3600) < 1e9",
        "10m",
        "critical",
        "Less than 1 GB will be free in six hours on a disk that files are written to.",
        "running-for-years.md",
        {"ingest_disk_free_bytes": "20000000000-200000000x90"},
        {"ingest_disk_free_bytes": "20000000000x90"},
    ),
)
