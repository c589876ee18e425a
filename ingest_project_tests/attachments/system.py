"""The attachments capability in one test process, on real servers, driven as the daemon would drive it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterInstance, ExecuteInProcessResult

import ingest_project.attachments.definitions
from ingest_project.attachments.queue import AttachmentRecord
from ingest_project.attachments.tables import AttachmentState
from ingest_project.core.settings import load_settings
from ingest_project.platform.work_queue.queue import JobState
from ingest_project_tests.journeys.system import System, environment
from ingest_project_tests.platform.delta.delta_log_reader import rows_of
from ingest_project_tests.services.http_server import HttpServer
from ingest_project_tests.services.kafka import Server

EVENTS, PENDING, RETRY = "attachment_events_sensor", "downloads_pending_sensor", "downloads_retry_sensor"
JOBS = {EVENTS: "attachment_events_batch", PENDING: "attachments_batch", RETRY: "attachments_batch"}
STORED = dg.AssetKey("onelake_attachments")
RESULTS = dg.AssetKey("attachment_results")
HOURS = dg.AssetKey("attachment_events")
STORED_CHECK = dg.AssetCheckKey(STORED, "attachment_stored")
MAX_ROUNDS = 40

_traces = itertools.count(1)


class AttachmentSystem(System):
    """Sensors, runs and stores of one test."""

    def _definitions(self) -> dg.Definitions:
        return ingest_project.attachments.definitions.attachments

    def send_event(self, *attachments: str | Mapping[str, Any], domain: str = "claims", **more: Any) -> str:  # noqa: ANN401 - JSON
        """Put an event on `events.raw`; returns its trace id."""
        trace_id = str(more.pop("trace_id", f"trace-{next(_traces)}"))
        event = {"trace_id": trace_id, "domain": domain, "event_type": "documents.received", **more}
        self.send(self.settings.topics.events_raw, event | {"attachments": list(attachments)})
        return trace_id

    def drive_attachments(self, *, until_retries_are_over: bool = False) -> list[ExecuteInProcessResult]:
        """Tick every sensor and execute what it requests, until nothing is due any more.

        Args:
            until_retries_are_over: wait for what is not due yet as well.
        """
        done: list[ExecuteInProcessResult] = []
        for _ in range(MAX_ROUNDS):
            before = len(done)
            for sensor, job in JOBS.items():
                if sensor == RETRY and not self._may_be_due_again():
                    continue
                done += [self.execute(job, request) for request in self.requests(sensor)]
            if len(done) == before and self._is_over(until_retries_are_over):
                return done
        raise AssertionError(f"Still busy: {self.services.attachments.counts_by_state()}")

    def drive_events_once(self) -> None:
        """Do what the events that have arrived ask for, and nothing that follows from it."""
        for request in self.requests(EVENTS):
            self.execute(JOBS[EVENTS], request)

    def drive_to_the_end(self) -> list[ExecuteInProcessResult]:
        """Until nothing is left to be done, now or later."""
        return self.drive_attachments(until_retries_are_over=True)

    def materialize_selected(self, asset: dg.AssetKey, *keys: str) -> ExecuteInProcessResult:
        """Execute what a person requests in the UI: one partition of an asset, or from one to another, in one run."""
        if len(keys) > 1:
            tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
        else:
            tags = {"dagster/partition": keys[0]}
        job = dg.define_asset_job("by_hand", selection=dg.AssetSelection.assets(asset).without_checks())
        definitions = dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job]))
        return definitions.resolve_job_def("by_hand").execute_in_process(
            instance=self.instance, tags=tags, raise_on_error=False
        )

    def look_at_eventhouse(self) -> None:
        """One tick of the sensor that polls Eventhouse."""
        self.tick("eventhouse_sensor")

    def shown_checks(self) -> dict[str, str]:
        """What Dagster shows of the check of each attachment; what stands for a whole selection is left out."""
        infos = self.instance.event_log_storage.get_asset_check_partition_info([STORED_CHECK])
        return {info.partition_key: info.latest_execution_status.value for info in infos if info.partition_key}

    def _may_be_due_again(self) -> bool:
        # After a kill one may wait whose message is not on a topic yet.
        waiting = self.services.attachments.counts_by_state()[AttachmentState.PENDING]
        return bool(waiting) or any(map(self.has_messages, self.settings.topics.downloads_retry))

    def _is_over(self, until_retries_are_over: bool) -> bool:  # noqa: FBT001 - one caller
        events = self.services.attachment_events.counts_by_state()
        states = self.services.attachments.counts_by_state()
        waiting = states[AttachmentState.PENDING] if until_retries_are_over else 0
        working = states[AttachmentState.REQUESTED] + states[AttachmentState.DOWNLOADING]
        return not (waiting or working or events[JobState.PENDING] or events[JobState.REQUESTED])

    def attachment(self, name: str) -> AttachmentRecord:
        """The work queue's record of the one attachment whose key begins with this name."""
        (record,) = [r for r in self.services.attachments.list(limit=10_000) if r.attachment_key.startswith(name)]
        return record

    def stored_bytes(self, name: str) -> bytes:
        """The stored file of an attachment."""
        record = self.attachment(name)
        with self.services.attachment_store(record.domain).local_path(record.destination_path) as path:
            return path.read_bytes()

    def results(self) -> list[dict[str, Any]]:
        """Every row of the Delta table, the first attempt first."""
        rows: list[dict[str, Any]] = rows_of(Path(self.services.attachment_results.url)).to_pylist()
        return sorted(rows, key=lambda row: (row["attachment_key"], row["replays"], row["attempt"]))


def attachment_environment(bootstrap_servers: str, database_url: str, folder: Path) -> dict[str, str]:
    """The settings of a test's own system: topics of its own, retry tiers of a tenth of a second in all."""
    base = environment(bootstrap_servers, database_url, folder)
    name = base["KAFKA_GROUP_ID"]
    topics = ("EVENTS_RAW", "EVENTS_RAW_DLQ", "DOWNLOADS_PENDING", "DOWNLOADS_CACHED", "DOWNLOADS_RESULTS")
    retries = ("DOWNLOADS_RETRY_5M", "DOWNLOADS_RETRY_10M", "DOWNLOADS_RETRY_20M", "DOWNLOADS_RETRY_40M")
    return {
        **base,
        **{f"KAFKA_TOPIC_{topic}": f"{name}.{topic.lower()}" for topic in (*topics, *retries, "DOWNLOADS_DLQ")},
        "INGEST_ALLOWED_INTERNAL_HOSTS": "127.0.0.1",
        "INGEST_DOWNLOAD_RETRY_DELAYS_SECONDS": "0.01,0.02,0.03,0.04",
        "INGEST_HOST_FAILURES_TO_PAUSE": "1000",
    }


@pytest.fixture
def attachment_system(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, http_server: HttpServer, tmp_path: Path
) -> Iterator[AttachmentSystem]:
    """The product with topics, a database and stores of its own."""
    del http_server
    (tmp_path / "in").mkdir()
    environ = attachment_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path)
    system = AttachmentSystem(load_settings(environ, tmp_path).settings, instance, tmp_path / "in")
    yield system
    system.close()
