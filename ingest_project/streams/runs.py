"""A run over offset ranges: which ranges, how it is asked for, and what it is told.

A run is told its ranges in its configuration, and not by a partition: it reads just these, however often.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from pydantic import Field

from ingest_project.core.errors import IngestError, UnexpectedError
from ingest_project.core.keys import digest_of
from ingest_project.core.logging import get_logger
from ingest_project.platform.dagster.asset_events import Context
from ingest_project.platform.work_queue.batches import BATCH_ID_TAG, BATCH_SIZE_TAG, BATCH_TAG
from ingest_project.streams.range_record import OffsetRange, RangeRecord
from ingest_project.streams.resources import StreamResources

logger = get_logger(__name__)


@dataclass(frozen=True)
class Batch:
    """Ranges for one run, all of one life of the topic."""

    records: tuple[RangeRecord, ...]

    @property
    def keys(self) -> list[str]:
        """Of the ranges."""
        return [record.range_key for record in self.records]

    @property
    def offsets(self) -> int:
        """In all ranges."""
        return sum(len(record.offsets) for record in self.records)

    @property
    def batch_id(self) -> str:
        """The same for the same attempt at the same ranges: asked for twice it is one run."""
        return digest_of(*((record.range_key, record.attempts) for record in self.records))


class RangeConfig(dg.Config):
    """Offsets of one partition: from the first up to, not including, the end."""

    partition: int
    first_offset: int
    end_offset: int


class RangesConfig(dg.Config):
    """What a run is to read; nothing named means everything that is due."""

    topic: str = ""
    topic_id: str = ""
    ranges: list[RangeConfig] = Field(default_factory=list)

    def offsets(self) -> list[OffsetRange]:
        """The ranges, as the ledger names them."""
        return [
            OffsetRange(self.topic, self.topic_id, one.partition, one.first_offset, one.end_offset)
            for one in self.ranges
        ]


def claim(context: Context, services: StreamResources, keys: Sequence[str]) -> tuple[RangeRecord, ...]:
    """Ranges into a run's hands, ordered by partition and offset; those that were let go are left out, and said."""
    records = services.stream_ranges.begin(keys, context.run.run_id, datetime.now(UTC))
    if len(records) < len(keys):
        missing = len(keys) - len(records)
        context.log.warning("%d of %d ranges were stored long ago and are not on record any more.", missing, len(keys))
    return records


def trouble_of(error: Exception, doing: str) -> IngestError:
    """Name a failure as the ledger keeps it; one that nobody foresaw is logged with its traceback."""
    if isinstance(error, IngestError):
        return error
    logger.error("run_failed_unforeseen", doing=doing, exc_info=error)
    return UnexpectedError(doing, error)


def run_request(what: str, op: str, batch: Batch) -> dg.RunRequest:
    """Ask for the run of a batch.

    Args:
        what: the batch is of, for people who look at runs.
        op: that takes a `RangesConfig`.
        batch: its ranges.
    """
    tags = {BATCH_TAG: what, BATCH_ID_TAG: batch.batch_id, BATCH_SIZE_TAG: str(batch.offsets)}
    config = {"ops": {op: {"config": _told([record.offsets for record in batch.records])}}}
    return dg.RunRequest(run_key=batch.batch_id, run_config=config, tags=tags)


def _told(ranges: Sequence[OffsetRange]) -> dict[str, Any]:
    first = ranges[0]
    told = [{"partition": one.partition, "first_offset": one.first, "end_offset": one.end} for one in ranges]
    return {"topic": first.topic, "topic_id": first.topic_id, "ranges": told}
