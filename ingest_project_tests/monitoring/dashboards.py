"""Dashboards of Grafana over the metrics of the monitor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
LATENCY, PROCESSING = "ingest_event_to_stored_seconds", "ingest_processing_seconds"


class Panel(NamedTuple):
    """One panel.

    Args:
        title: above it.
        queries: PromQL, and the legend of its series.
        unit: as Grafana names it.
        kind: `timeseries` or `stat`.
        width: of 24.
        stacked: series on top of each other.
        red: values from here on are red.
    """

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    stacked: bool = False
    red: float | None = None

    @property
    def height(self) -> int:
        """In units of Grafana's grid."""
        return 4 if self.kind == "stat" else 8

    def model(self, number: int, x: int, y: int) -> dict[str, Any]:
        """Return the panel as Grafana reads it."""
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        if self.red is not None:
            steps.append({"color": "red", "value": self.red})
        custom = {"fillOpacity": 10, "stacking": {"mode": "normal" if self.stacked else "none"}, "showPoints": "never"}
        defaults = {"unit": self.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
        if self.kind == "timeseries":
            defaults["custom"] = custom
            options: dict[str, Any] = {
                "legend": {"displayMode": "list", "placement": "bottom"},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        else:
            options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": options,
            "targets": [
                {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
                for index, (expr, legend) in enumerate(self.queries)
            ],
        }


def stat(title: str, expr: str, unit: str = "short", *, red: float | None = None) -> Panel:
    """Return a panel with one number."""
    return Panel(title, [(expr, "")], unit, kind="stat", width=4, red=red)


def rates(title: str, metric: str, *labels: str, unit: str = "short", chosen: str = "") -> Panel:
    """Return a panel with the increase of a counter per minute, by labels."""
    expr = f"sum by ({', '.join(labels)}) (rate({metric}{chosen}[$__rate_interval])) * 60"
    return Panel(f"{title} per minute", [(expr, " ".join(f"{{{{{label}}}}}" for label in labels))], unit, stacked=True)


def gauges(title: str, metric: str, *labels: str, unit: str = "short", how: str = "sum") -> Panel:
    """Return a panel with a gauge, by labels."""
    expr = f"{how} by ({', '.join(labels)}) ({metric})" if labels else metric
    return Panel(title, [(expr, " ".join(f"{{{{{label}}}}}" for label in labels))], unit)


def quantiles(title: str, metric: str, chosen: str) -> Panel:
    """Return a panel with percentiles of a histogram, for pipelines that match."""
    rate = f"sum by (le, pipeline) (rate({metric}_bucket{{{chosen}}}[$__rate_interval]))"
    shares = ((0.5, "half"), (0.95, "95 %"), (0.99, "99 %"))
    return Panel(title, [(f"histogram_quantile({q}, {rate})", f"{{{{pipeline}}}} {name}") for q, name in shares], "s")


def means(title: str, metric: str, chosen: str) -> Panel:
    """Return a panel with the mean of a histogram, by pipeline."""
    total, number = (
        f"sum by (pipeline) (rate({metric}_{end}{{{chosen}}}[$__rate_interval]))" for end in ("sum", "count")
    )
    return Panel(title, [(f"{total} / {number}", "{{pipeline}}")], "s")


FILES, ATTACHMENTS, STREAMS = 'pipeline="files"', 'pipeline="attachments"', 'pipeline!~"files|attachments"'
OVERVIEW = (
    stat("Parts away", "count(ingest_part_up == 0) or vector(0)", red=1),
    stat("Open incidents", "sum(ingest_open_incidents)", red=1),
    stat("Entries unfinished", "sum(ingest_unfinished_entries)"),
    stat("Dead letters kept", "sum(ingest_dead_letters_kept)", red=1),
    stat("Sources not usual", "sum(ingest_sources_outside_baseline)", red=1),
    stat("Free disk", "min(ingest_disk_free_bytes)", "bytes"),
    rates("Files", "ingest_files_total", "outcome"),
    rates("Rows", "ingest_rows_total", "outcome"),
    rates("Stream messages", "ingest_stream_messages_total", "topic"),
    rates("Attachments", "ingest_attachments_total", "outcome"),
    gauges("Messages waiting", "ingest_consumer_lag_messages", "topic"),
    quantiles("From the Kafka message to stored", LATENCY, ""),
)
OF_FILES = (
    rates("Files by dataset", "ingest_dataset_files_total", "dataset", "outcome"),
    rates("Rows by dataset", "ingest_dataset_rows_total", "dataset", "outcome"),
    rates("Files quarantined whole", "ingest_quarantined_files_total", "reason"),
    rates("Rows in quarantine", "ingest_quarantined_rows_total", "rule"),
    rates("Files whose columns differ", "ingest_drifted_files_total", "dataset"),
    gauges("Sources whose last file is not usual", "ingest_sources_outside_baseline", "dataset"),
    quantiles("From the Kafka message to stored", LATENCY, FILES),
    means("Processing time, mean", PROCESSING, FILES),
    rates("Bytes landed", "ingest_landed_bytes_total", unit="bytes"),
    gauges("Unfinished", 'ingest_unfinished_entries{kind=~"file|polling_job"}', "kind", "state"),
    rates("Polling jobs", "poller_jobs_total", "status"),
    rates("Files found", "poller_files_published_total", "source_type"),
    rates("Notifications that announce no file", "ingest_ignored_notifications_total", "reason"),
    gauges("Polling jobs in progress", "poller_active_jobs"),
    gauges(
        "Longest without a change",
        'ingest_oldest_unfinished_seconds{kind=~"file|polling_job"}',
        "kind",
        unit="s",
        how="max",
    ),
)
OF_ATTACHMENTS = (
    rates("Events", "ingest_attachment_events_total", "outcome"),
    rates("Attachments", "ingest_attachments_total", "outcome"),
    rates("Download attempts", "ingest_downloads_total", "status", "attempt"),
    rates("Failed attempts", "ingest_download_failures_total", "reason"),
    gauges("Waiting to be retried", "ingest_downloads_waiting", "attempt"),
    rates("Bytes stored", "ingest_uploaded_bytes_total", "domain", unit="bytes"),
    quantiles("From the Kafka message to stored", LATENCY, ATTACHMENTS),
    quantiles("Processing time of the last attempt", PROCESSING, ATTACHMENTS),
    gauges("Unfinished", 'ingest_unfinished_entries{kind=~"attachment.*"}', "kind", "state"),
    gauges(
        "Longest without a change",
        'ingest_oldest_unfinished_seconds{kind=~"attachment.*"}',
        "kind",
        unit="s",
        how="max",
    ),
)
OF_STREAMS = (
    rates("Messages", "ingest_stream_messages_total", "topic", "outcome"),
    gauges("Runs in a row that failed", "ingest_stream_failed_attempts", "topic", how="max"),
    quantiles("From the Kafka message to stored", LATENCY, STREAMS),
    quantiles("Processing time of a batch", PROCESSING, STREAMS),
    gauges("Unidentified CRM messages", "ingest_unidentified_messages"),
    gauges("Rows of Delta tables", "ingest_delta_rows", "table"),
    rates("Commits to Delta tables", "ingest_delta_commits_total", "table"),
    gauges("Live files of Delta tables", "ingest_delta_files", "table"),
    gauges("Size of Delta tables", "ingest_delta_size_bytes", "table", unit="bytes"),
)
OF_THE_SYSTEM = (
    gauges("Parts that answer", "ingest_part_up", "part", how="min"),
    gauges("Time to answer", "ingest_part_look_seconds", "part", unit="s", how="max"),
    gauges("Messages waiting", "ingest_consumer_lag_messages", "topic", "partition"),
    gauges("Topics that do not move", "ingest_topic_stalled_seconds", "topic", unit="s", how="max"),
    rates("Dead letters", "ingest_dead_letters_total", "topic"),
    gauges("Dead letters kept", "ingest_dead_letters_kept", "topic"),
    gauges("Runs", "ingest_runs", "state"),
    gauges("Since the last heartbeat", "ingest_daemon_heartbeat_age_seconds", "daemon", unit="s", how="max"),
    gauges("Since the last tick", "ingest_sensor_tick_age_seconds", "sensor", unit="s", how="max"),
    gauges("Failed ticks in a row", "ingest_sensor_failed_ticks", "sensor", how="max"),
    gauges("Free disk", "ingest_disk_free_bytes", unit="bytes"),
    gauges("Open incidents", "ingest_open_incidents", "condition"),
    gauges("Alerts that a channel does not accept", "ingest_alert_messages_failing", "channel"),
)
DASHBOARDS = {
    "overview": ("Ingest: overview", OVERVIEW),
    "files": ("Ingest: files", OF_FILES),
    "attachments": ("Ingest: attachments", OF_ATTACHMENTS),
    "streams": ("Ingest: streams", OF_STREAMS),
    "system": ("Ingest: system", OF_THE_SYSTEM),
}


def dashboard(name: str) -> dict[str, Any]:
    """Return a dashboard as Grafana imports it; its data source is chosen on the page."""
    title, panels = DASHBOARDS[name]
    models, x, y, tallest = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        models.append(panel.model(number, x, y))
        x, tallest = x + panel.width, max(tallest, panel.height)
    return {
        "uid": f"ingest-{name}",
        "title": title,
        "tags": ["ingest"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["ingest"], "title": "Ingest", "keepTime": True, "asDropdown": True}],
        "templating": {
            "list": [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}]
        },
        "annotations": {"list": []},
        "panels": models,
    }
