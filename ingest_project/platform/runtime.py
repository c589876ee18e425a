"""Settings, database and Kafka clients of this process: each is opened once, at its first use.

Importing this module or the definitions opens nothing, so the code location loads even if no service is available.

A sensor may start batches while fewer than the limit are in flight, the warehouse is not slow, and no disk is nearly
full. Other work waits on its topic or in the queue, and the next tick decides again.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy import Engine

from ingest_project.core.errors import BrokerUnavailableError, DatabaseUnavailableError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import BackpressureSettings, Settings
from ingest_project.core.yaml_models import yaml_content
from ingest_project.platform.azure import is_address
from ingest_project.platform.database import LOCK_TIMEOUT_SECONDS, migrate, open_engine, writing
from ingest_project.platform.kafka.dead_letters import SkippedOffsetStore
from ingest_project.platform.kafka.producer import TopicWriter
from ingest_project.platform.kafka.publisher import MessageOutbox
from ingest_project.platform.kafka.reader import RangeReader, TopicReader
from ingest_project.platform.object_store import open_configured_store
from ingest_project.platform.object_store.content_store import QuarantineStore
from ingest_project.platform.object_store.store import location_of

logger = get_logger(__name__)
# Largest normal difference between the clocks of two machines, which are corrected in small steps.
LARGEST_SKEW_SECONDS = 5.0
MEBIBYTE = 1024**2
# While the warehouse is slow, one batch may run, which shows when the warehouse has recovered.
BATCHES_WHILE_SLOW = 1
# Modules of launchers whose runs are processes on this machine.
LOCAL_LAUNCHERS = ("ingest_project.", "dagster.", "dagster._core.")
# An empty transaction, which PostgreSQL must write and flush like any other.
COMMITTED = "SELECT pg_logical_emit_message(true, 'ingest_project', '')"


# Quota and period, in microseconds, of the two versions of control groups.
CPU_LIMITS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))


class Runtime:
    """Settings, database and Kafka clients, shared by all capabilities.

    Each capability adds its own resources in a subclass.

    Args:
        settings: settings of all services.

    Attributes:
        lock_timeout_seconds: longest wait for a lock of the warehouse; set it before the engine is opened.
    """

    lock_timeout_seconds = LOCK_TIMEOUT_SECONDS

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def store_urls(self) -> tuple[str, ...]:
        """Return the folders and addresses of all stores. Each capability adds its own to those of its superclass."""
        return ()

    def missing_services(self) -> str | None:
        """Return the services to start or configure before anything can be ingested; None if none is missing."""
        missing = [
            name
            for name, value in (
                ("KAFKA_BOOTSTRAP_SERVERS", self.settings.kafka.bootstrap_servers),
                ("DATABASE_URL", self.settings.warehouse.database_url),
            )
            if not value
        ]
        return f"{' and '.join(missing)} not set. Start the services (ingest dev) or set them." if missing else None

    def fullest_disk(self) -> Disk:
        """Return the disk with the least free space among those of the local stores and the state folder."""
        return fullest_disk([str(self.settings.state_dir), *self.store_urls], self.settings.backpressure)

    @property
    def unshared_stores(self) -> str | None:
        """Return the stores that runs would lose because they have another state folder; None if there are none."""
        launcher = launcher_module()
        if launcher is None or launcher.startswith(LOCAL_LAUNCHERS) or not (stores := local_stores(self)):
            return None
        return (
            f"Runs are started elsewhere ({launcher}), and these stores are in its state folder, which no run shares: "
            f"{', '.join(stores)}. Give them addresses in a bucket, in OneLake or in a shared folder outside of it "
            "(INGEST_..._URL, and delta in declarations)."
        )

    def blocking_reason(self) -> str | None:
        """Return why no run can be requested: a missing service or a nearly full disk; None without a reason."""
        if missing := self.missing_services():
            return missing
        disk = self.fullest_disk()
        return str(disk) if disk.is_nearly_full else None

    def available_slots(self, in_flight: int, limit: int) -> Capacity:
        """Return the number of further batches that a sensor may request.

        Args:
            in_flight: number of its requested or running batches.
            limit: maximum number of such batches.

        Raises:
            DatabaseUnavailableError, TransactionConflictError: the warehouse does not answer.
        """
        slow = self.settings.backpressure.slow_warehouse_seconds
        took = commit_seconds(self.engine, slow)
        if took <= slow:
            return available_slots(in_flight, limit)
        slots = available_slots(in_flight, limit, took)
        logger.warning("intake_narrowed", reason=slots.reason)
        return slots

    @cached_property
    def engine(self) -> Engine:
        """Open the warehouse database and migrate its tables.

        Raises:
            DatabaseUnavailableError: DATABASE_URL is not set, or the database does not answer.
        """
        timeouts = (self.settings.warehouse.connect_timeout_seconds, self.lock_timeout_seconds)
        engine = open_engine(self.database_url, *timeouts)
        migrate(engine)
        return engine

    @cached_property
    def outbox(self) -> MessageOutbox:
        """The outbox of published messages."""
        return MessageOutbox(self.engine)

    @cached_property
    def skipped_offsets(self) -> SkippedOffsetStore:
        """Offsets that an operator has skipped."""
        return SkippedOffsetStore(self.engine)

    @cached_property
    def quarantine(self) -> QuarantineStore:
        """The bytes of quarantined files, with their reasons."""
        return QuarantineStore(open_configured_store(self.settings.quarantine_url, self.settings))

    @cached_property
    def reader(self) -> TopicReader:
        """Bounded reads from Kafka.

        Raises:
            BrokerUnavailableError: KAFKA_BOOTSTRAP_SERVERS is not set.
        """
        self._require_broker()
        return TopicReader(self.settings.kafka)

    @cached_property
    def range_reader(self) -> RangeReader:
        """Exact ranges of offsets from Kafka.

        Raises:
            BrokerUnavailableError: KAFKA_BOOTSTRAP_SERVERS is not set.
        """
        self._require_broker()
        return RangeReader(self.settings.kafka)

    @cached_property
    def writer(self) -> TopicWriter:
        """Confirmed writes to Kafka.

        Raises:
            BrokerUnavailableError: KAFKA_BOOTSTRAP_SERVERS is not set.
        """
        self._require_broker()
        return TopicWriter(self.settings.kafka)

    @property
    def database_url(self) -> SecretStr:
        """The address of the warehouse.

        Raises:
            DatabaseUnavailableError: DATABASE_URL is not set.
        """
        if not self.settings.warehouse.database_url:
            raise DatabaseUnavailableError("", "no address is set")
        return self.settings.warehouse.database_url

    def _require_broker(self) -> None:
        if not self.settings.kafka.bootstrap_servers:
            raise BrokerUnavailableError("", "no address is set")


class Disk(NamedTuple):
    """The disk that a folder is on.

    Args:
        free_bytes: space available to this process.
        needed_bytes: minimum free space for starting new work.
    """

    folder: Path
    free_bytes: int
    needed_bytes: int

    @property
    def is_nearly_full(self) -> bool:
        """Return True if less space is free than needed."""
        return self.free_bytes < self.needed_bytes

    def __str__(self) -> str:
        """Return one line, with the remedy if the disk is nearly full."""
        free = f"{self.free_bytes / MEBIBYTE:,.0f} MiB free at {self.folder}"
        if not self.is_nearly_full:
            return free
        needed = f"{self.needed_bytes / MEBIBYTE:,.0f} MiB (INGEST_MIN_FREE_DISK_BYTES)"
        return f"{free}, less than {needed}. No new work begins until there is space."


class Capacity(NamedTuple):
    """Number of further batches that may be requested, and the reason for a limit."""

    batches: int
    reason: str | None = None


def local_stores(services: Runtime) -> list[str]:
    """Return the store folders inside the state folder."""
    state = services.settings.state_dir.absolute()
    return sorted({str(folder) for folder in _local_folders(services.store_urls) if folder.is_relative_to(state)})


@cache
def launcher_module() -> str | None:
    """Return the module of the run launcher in this process's dagster.yaml; None without one."""
    path = Path(os.environ.get("DAGSTER_HOME") or os.devnull, "dagster.yaml")
    content = yaml_content(path, "configuration of Dagster") if path.is_file() else None
    launcher = content.get("run_launcher") if isinstance(content, dict) else None
    return str(launcher["module"]) if isinstance(launcher, dict) and "module" in launcher else None


def fullest_disk(urls: Sequence[str], settings: BackpressureSettings) -> Disk:
    """Return the disk with the least free space among those of the local stores.

    Only disks of this machine count, not remote stores and the disks of runs on other machines.

    Args:
        urls: addresses of the stores, at least one of them a local folder.
        settings: settings with the minimum free space.
    """
    disks = [Disk(folder, _free_bytes(folder), settings.min_free_disk_bytes) for folder in _local_folders(urls)]
    return min(disks, key=lambda disk: disk.free_bytes)


def available_slots(in_flight: int, limit: int, slow_seconds: float | None = None) -> Capacity:
    """Return the number of further batches that may be requested.

    Args:
        in_flight: number of the sensor's requested or running batches.
        limit: maximum number of such batches.
        slow_seconds: duration of an empty transaction of the warehouse, if it is too slow.
    """
    if slow_seconds is not None:
        limit = min(limit, BATCHES_WHILE_SLOW)
        reason = f"The warehouse takes {slow_seconds:.1f} s for an empty transaction: {limit} batch at a time."
    else:
        reason = f"{in_flight} batches are in flight, the most allowed; the next starts when one has ended."
    free = max(0, limit - in_flight)
    return Capacity(free, None if free and slow_seconds is None else reason)


def commit_seconds(engine: sa.Engine, slow_seconds: float) -> float:
    """Measure an empty transaction in seconds; repeat a slow one, and return the shorter time.

    Args:
        engine: engine of the warehouse.
        slow_seconds: duration that counts as slow. The repetition excludes a new connection or a single hiccup.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: the warehouse does not answer, or answers with an error.
    """
    once = _commit(engine)
    return min(once, _commit(engine)) if once > slow_seconds else once


def _commit(engine: sa.Engine) -> float:
    began = time.monotonic()
    with writing(engine) as connection:
        connection.execute(sa.text(COMMITTED if connection.dialect.name == "postgresql" else "SELECT 1"))
    return time.monotonic() - began


def processors(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of processors this process may use: those it is bound to, within the quota of its container.

    Rounded down: whoever exceeds a quota is stopped for the rest of the period.

    Args:
        groups: folder of the container's control group.
    """
    found = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for names in CPU_LIMITS:
        # A file is missing, or says "max".
        with suppress(OSError, ValueError):
            quota, period = (int(one) for name in names for one in (groups / name).read_text().split())
            found = min(found, max(1, quota // period)) if quota > 0 else found
    return found


def _local_folders(urls: Sequence[str]) -> Iterator[Path]:
    for url in urls:
        is_local = "://" not in url or url.startswith("file://")
        if is_local and not is_address(url) and isinstance(location := location_of(url), Path):
            yield location.absolute()


def _free_bytes(folder: Path) -> int:
    """Return the free space of the disk of a folder, which need not exist yet."""
    # os.path.exists returns False below an unreadable folder, where Path.exists would raise an error.
    while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110
        folder = folder.parent
    return shutil.disk_usage(folder).free
