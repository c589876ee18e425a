"""Assess the conditions regularly, update the incidents, and send the messages, each channel in its own thread.

The monitor does this, so that it works even without Dagster's daemon; if no monitor runs, a sensor does. Of several
processes, one holds the lease; the others stand by.

Incidents are stored in the warehouse. While it does not answer, new ones are stored in a file in the state folder, so
that the outage is reported too; such an incident also ends there. Two monitors on different machines then report twice.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import sqlalchemy as sa

from ingest_project.core.errors import IngestError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings
from ingest_project.operations.alerts import Alert, AlertChannel, AlertDeliveryError, channels, channels_of, send
from ingest_project.operations.alerts.conditions import assess, gauges, history_seconds
from ingest_project.operations.alerts.incidents import (
    AlertStores,
    Claimed,
    IncidentBook,
    claim,
    drop_messages,
    lead,
    record_samples,
    release,
    unresolved,
)
from ingest_project.operations.snapshot import SystemSnapshot
from ingest_project.platform.database import writing

logger = get_logger(__name__)

# A delivery that takes longer is abandoned, and its messages are sent again.
DELIVERY_SECONDS = 30.0
# If all of a channel's threads hang, it gets no further message until one of them ends.
MAX_ABANDONED = 3
STOP_SECONDS = 3.0


class AlertWatch:
    """Updates incidents from snapshots, and sends the messages about them.

    Args:
        settings: settings of the system.
        stores: stores of the incidents.
    """

    def __init__(self, settings: Settings, stores: AlertStores | None = None) -> None:
        self.settings = settings
        self.stores = stores or AlertStores(settings)
        self._holder = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._channels = channels(settings)
        self._deliveries: dict[str, _Delivery] = {}
        self._abandoned: list[_Delivery] = []
        self._in_warehouse: frozenset[str] = frozenset()

    def leads(self) -> bool:
        """Acquire or renew the lease; return False while another process holds it. Without a warehouse, return True."""
        try:
            if (engine := self.stores.warehouse) is None:
                return True
            with writing(engine) as connection:
                return lead(connection, self._holder, datetime.now(UTC))
        except IngestError:
            return True

    def step(self, snapshot: SystemSnapshot) -> bool:
        """Assess the conditions and queue the messages; return False if another process does so."""
        local = self._local_names()
        try:
            engine = self.stores.warehouse
            if engine is not None:
                if not self._update(engine, snapshot, elsewhere=local):
                    return False
                if local:
                    self._update(self.stores.local, snapshot, only=local)
                return True
        except IngestError as error:
            logger.warning("incidents_kept_locally", reason=str(error))
        return self._update(self.stores.local, snapshot, elsewhere=self._in_warehouse)

    def start_deliveries(self) -> None:
        """Send due messages, each channel in a thread, except channels that are still sending."""
        for name, delivery in list(self._deliveries.items()):
            if not delivery.thread.is_alive():
                del self._deliveries[name]
            elif time.monotonic() - delivery.began > DELIVERY_SECONDS:
                delivery.abandon()
                self._abandoned.append(self._deliveries.pop(name))
        self._abandoned = [one for one in self._abandoned if one.thread.is_alive()]
        for name, channel in self._channels.items():
            hanging = sum(one.name == name for one in self._abandoned)
            if name not in self._deliveries and hanging < MAX_ABANDONED:
                self._deliveries[name] = _Delivery(self.settings, self.stores, name, channel)

    def deliver(self) -> None:
        """Send due messages and wait for the deliveries, for a bounded time.

        Raises:
            AlertDeliveryError: channels did not accept their messages, which will be sent again.
        """
        self.start_deliveries()
        give_up_at = time.monotonic() + DELIVERY_SECONDS
        for delivery in self._deliveries.values():
            delivery.thread.join(max(0.0, give_up_at - time.monotonic()))
        failed = {name: one.problem for name, one in self._deliveries.items() if one.problem}
        if failed:
            raise AlertDeliveryError("; ".join(failed.values()), " and ".join(failed))

    def close(self) -> None:
        """Release the lease and disconnect."""
        for engine in self.stores.each():
            try:
                release(engine, self._holder)
            except IngestError:
                continue
        self.stores.close()

    def _local_names(self) -> frozenset[str]:
        if not self.stores.has_local:
            return frozenset()
        with writing(self.stores.local) as connection:
            return frozenset(unresolved(connection))

    def _update(
        self,
        engine: sa.Engine,
        snapshot: SystemSnapshot,
        elsewhere: frozenset[str] = frozenset(),
        only: frozenset[str] | None = None,
    ) -> bool:
        settings = snapshot.settings
        with writing(engine) as connection:
            if not lead(connection, self._holder, snapshot.at):
                return False
            history = record_samples(connection, gauges(snapshot), snapshot.at, history_seconds(settings))
            findings, assessed = assess(snapshot, history, frozenset(unresolved(connection)))
            kept = [one for one in findings if only is None or one.name in only]
            drop_messages(connection, [*self._channels])
            book = IncidentBook(connection, snapshot.at, settings.alerts, partial(channels_of, settings))
            book.update(kept, assessed, elsewhere)
            if engine is not self.stores.__dict__.get("local"):
                self._in_warehouse = frozenset(unresolved(connection))
        return True


class _Delivery:
    """One channel's attempt to send its due messages, in a thread."""

    def __init__(self, settings: Settings, stores: AlertStores, name: str, channel: AlertChannel) -> None:
        self.name = name
        self.began = time.monotonic()
        self.problem: str | None = None
        self._settings, self._stores, self._channel = settings, stores, channel
        self._claimed: Claimed | None = None
        self._lock = threading.Lock()
        # A hanging channel must not keep the process alive.
        self.thread = threading.Thread(target=self._run, name=f"alerts-{name}", daemon=True)
        self.thread.start()

    def abandon(self) -> None:
        """Record that the channel did not answer in time, and ignore its later result."""
        self.problem = f"it did not finish within {DELIVERY_SECONDS:.0f} s"
        self._record()

    def _run(self) -> None:
        try:
            for engine in self._stores.each():
                self._send_due(engine)
        except IngestError as error:
            logger.warning("alerts_not_read", channel=self.name, reason=str(error))

    def _send_due(self, engine: sa.Engine) -> None:
        claimed = claim(engine, self.name, datetime.now(UTC))
        if not claimed.messages:
            return
        with self._lock:
            self._claimed = claimed
        try:
            send(self._settings, self.name, self._channel, [message.alert for message in claimed.messages])
        except AlertDeliveryError as error:
            self.problem = error.cause
            logger.warning("alerts_not_sent", channel=self.name, reason=error.cause)
        self._record()

    def _record(self) -> None:
        with self._lock:
            claimed, self._claimed = self._claimed, None
        if claimed is not None:
            claimed.record(datetime.now(UTC), self.problem, self._settings.retries.delay)


class Watcher:
    """A thread that assesses the snapshots of a monitor.

    Args:
        watch: updates the incidents.
        snapshot: returns the last sample of every part.
    """

    def __init__(self, watch: AlertWatch, snapshot: Callable[[], SystemSnapshot]) -> None:
        self._watch, self._snapshot = watch, snapshot
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and release the lease."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
            if not self._thread.is_alive():
                self._watch.close()

    def _run(self) -> None:
        while not self._stop.wait(self._watch.settings.alerts.every_seconds):
            try:
                if self._watch.step(self._snapshot()):
                    self._watch.start_deliveries()
            except Exception:  # the next step may succeed, and no other process sends alerts
                logger.exception("alerts_not_assessed")


def send_test(settings: Settings, owner: str | None = None) -> dict[str, str | None]:
    """Send a test message through all channels concurrently; return each channel's problem, or None.

    Args:
        settings: settings of the system.
        owner: owner of the channels; all channels by default.
    """
    now = datetime.now(UTC)
    link = (settings.monitor.url or settings.dagster.webserver_url).rstrip("/") + "/"
    alert = Alert("test", "test", "This is a test: alerts of ingest_project arrive here.", link, now, owner=owner)
    outcomes: dict[str, str | None] = {}

    def attempt(name: str, channel: AlertChannel) -> None:
        try:
            send(settings, name, channel, [alert])
        except AlertDeliveryError as error:
            outcomes[name] = error.cause
        else:
            outcomes[name] = None

    found = channels(settings, owner)
    threads = [threading.Thread(target=attempt, args=one, daemon=True) for one in found.items()]
    for thread in threads:
        thread.start()
    give_up_at = time.monotonic() + DELIVERY_SECONDS
    for thread in threads:
        thread.join(max(0.0, give_up_at - time.monotonic()))
    return {name: outcomes.get(name, f"it did not finish within {DELIVERY_SECONDS:.0f} s") for name in found}
