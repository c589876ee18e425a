"""Start the whole product on a fresh state folder, and measure the time that it takes for attachments.

The clock covers the same as that of `benchmarks.system`: sensors are turned on with the events on the topic; it stops
once the work queue has every attachment as stored and reported, every result is in a Delta commit, and Dagster's
event log has a materialisation of each.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2
from confluent_kafka import Producer

from benchmarks.sensors import switch_sensor, wait_for_tick
from benchmarks.system import NOT_DAGSTER, NOT_OURS, connect, report_restarts
from ingest_project.core.settings import load_settings
from ingest_project.devstack.supervisor import Stack, running_stack
from ingest_project.operations import SystemResources
from ingest_project.platform.database import migrate, open_engine

SENSOR = "attachment_events_sensor"
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 600.0
CONFIRM_SECONDS = 60.0


class Timing(NamedTuple):
    """Durations of some attachments, in seconds.

    Args:
        total: from the sensor being on to everything stored and shown.
        to_first_download: of that, until a run began to download: the daemon's wait for its next tick, the
            start of the run, and the events' addresses.
    """

    total: float
    to_first_download: float


class AttachmentSystem:
    """The running product."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.settings = stack.settings
        self._producer = Producer({"bootstrap.servers": self.settings.kafka.bootstrap_servers, "linger.ms": 5})
        self._warehouse = connect(self.settings.warehouse.database_url.get_secret_value())
        self._dagster = connect(self.settings.dagster.postgres_url.get_secret_value())

    @property
    def processes(self) -> list[int]:
        """Process ids of Dagster's top-level processes, without database and broker."""
        return [child.guard.pid for child in self._stack.children if child.name not in NOT_DAGSTER]

    @property
    def servers(self) -> list[int]:
        """Process ids of the database and the broker."""
        return [child.guard.pid for child in self._stack.children if child.name in NOT_DAGSTER]

    def close(self) -> None:
        """Close the connections."""
        self._warehouse.close()
        self._dagster.close()

    def measure(self, addresses: Sequence[str], trace_prefix: str) -> Timing:
        """Send an event for each address, turn the sensor on, and wait until all are stored and shown."""
        switch_sensor(self._stack.webserver_url, SENSOR, on=False)
        wait_for_tick(self._dagster, SENSOR, CONFIRM_SECONDS)
        already = self._stored()
        self._send(addresses, trace_prefix)
        began_at, began = datetime.now(UTC), time.monotonic()
        switch_sensor(self._stack.webserver_url, SENSOR, on=True)
        while not self._are_done(already + len(addresses)):
            self._stack.require_running()
            if time.monotonic() > began + PATIENCE_SECONDS:
                states = self._ask(
                    self._warehouse, "SELECT state, count(*), min(reason) FROM attachments GROUP BY state"
                )
                raise TimeoutError(f"Not every attachment was stored: {states}. Logs: {self.settings.state_dir}/logs.")
            self._require_none_failed()
            self._require_space()
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
        query = "SELECT min(started_at) FROM attachments WHERE started_at >= %s"
        ((first,),) = self._ask(self._warehouse, query, began_at)
        return Timing(seconds, (first - began_at).total_seconds())

    def results(self, trace_prefix: str) -> list[tuple[str, str]]:
        """Return the destination and digest of every stored attachment."""
        query = "SELECT stored_path, sha256 FROM attachments WHERE state = 'stored' AND trace_id LIKE %s"
        return self._ask(self._warehouse, query, f"{trace_prefix}-%")

    def _are_done(self, count: int) -> bool:
        """Return True once so many attachments are stored, reported and shown, and none has work left.

        Queries that an index answers come first: counting thousands of rows ten times a second would distort the
        measurement.
        """
        return not self._leased() and self._stored() >= count and not self._unfinished() and self._shown() >= count

    def _require_none_failed(self) -> None:
        failed = self._ask(
            self._warehouse, "SELECT min(reason) FROM attachments WHERE state = 'failed' HAVING count(*) > 0"
        )
        if failed:
            raise RuntimeError(f"An attachment was not stored: {failed[0][0]}")

    def _require_space(self) -> None:
        """Fail now if the disk is nearly full: the sensors would request no runs."""
        disk = SystemResources(self.settings).fullest_disk()
        if disk.is_nearly_full:
            raise RuntimeError(str(disk))

    def _leased(self) -> bool:
        """Return True while a run leases attachments."""
        leased = "SELECT 1 FROM attachments WHERE reported_at IS NULL AND state <> 'pending' LIMIT 1"
        return bool(self._ask(self._warehouse, leased))

    def _stored(self) -> int:
        """Count the stored and reported attachments."""
        query = "SELECT count(*) FROM attachments WHERE state = 'stored' AND reported_at IS NOT NULL"
        ((stored,),) = self._ask(self._warehouse, query)
        return int(stored)

    def _shown(self) -> int:
        """Count the attachments that Dagster shows as materialised."""
        ((shown,),) = self._ask(
            self._dagster,
            "SELECT count(DISTINCT partition) FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'"
            " AND asset_key = '[\"onelake_attachments\"]'",
        )
        return int(shown)

    def _unfinished(self) -> bool:
        waiting = "SELECT 1 FROM attachment_events WHERE state <> 'done' OR reported_at IS NULL LIMIT 1"
        uncommitted = "SELECT 1 FROM download_outcomes WHERE committed_at IS NULL OR published_at IS NULL LIMIT 1"
        return bool(self._ask(self._warehouse, waiting) or self._ask(self._warehouse, uncommitted))

    def _send(self, addresses: Sequence[str], trace_prefix: str) -> None:
        for number, address in enumerate(addresses):
            event = {"trace_id": f"{trace_prefix}-{number}", "domain": "benchmark", "attachments": [address]}
            self._producer.produce(self.settings.topics.events_raw, json.dumps(event), key=str(number))
            self._producer.poll(0)
        if self._producer.flush(CONFIRM_SECONDS):
            raise TimeoutError("The broker did not confirm all events.")

    def _ask(
        self, connection: psycopg2.extensions.connection, query: str, *parameters: object
    ) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall()


@contextmanager
def running_attachments(folder: Path, more: Mapping[str, str]) -> Iterator[AttachmentSystem]:
    """Run the product on a fresh state folder.

    Args:
        folder: of all its state; created.
        more: further settings.
    """
    state_dir = folder / "state"
    state_dir.mkdir(parents=True)
    for name in NOT_OURS:
        os.environ.pop(name, None)
    os.environ |= {
        "INGEST_STATE_DIR": str(state_dir),
        # No config.yaml and no .env of the person who measures.
        "INGEST_CONFIG_DIR": str(state_dir),
        "INGEST_WEBSERVER_PORT": "0",
        "INGEST_ALLOWED_INTERNAL_HOSTS": "127.0.0.1",
        **more,
    }
    with running_stack(load_settings(), report_restarts) as stack, closing(AttachmentSystem(stack)) as system:
        # Otherwise the first tick creates the tables, and they are queried before.
        migrate(open_engine(stack.settings.warehouse.database_url.get_secret_value()))
        yield system
