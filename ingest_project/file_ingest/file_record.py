"""One file's entry in the ledger, as the rest of the project sees it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import RowMapping

from ingest_project.contracts.file_event import FileEvent
from ingest_project.core.keys import digest_of
from ingest_project.file_ingest.fair_scheduling import origin_of
from ingest_project.platform.work_queue.states import FileState
from ingest_project.platform.work_queue.types import KafkaPosition


class FileArrival(NamedTuple):
    """A file event as it was read from Kafka.

    Args:
        file_key: partition key, see `messages.file_event.file_key`.
        location: canonical address of the file, unique over all sources.
        profile: name of the reader profile.
        pinned: whether the event says which version it means; else it means the one that is there.
    """

    file_key: str
    location: str
    event: FileEvent
    profile: str
    intake: KafkaPosition
    pinned: bool = True


class VersionOrder(NamedTuple):
    """The place of one version among those of its location: the greater one is the newer.

    When it was changed decides; where that is the same, or unknown, when it was announced, and then where its message
    stood.
    """

    version_at: datetime
    announced_at: datetime
    topic: str
    partition: int
    offset: int
    file_key: str


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one file; `messages.encode` makes JSON of it.

    Args:
        event: the file event it came with.
        location_key: hash of the location.
        version_at: when this version was made, as far as its event tells; orders the versions of a location.
        announced_at: when it was found; orders versions that were made at the same time.
        pinned: whether this version is meant, and not the one that is there.
        stands: whether this is the version of its location that counts.
        attempts: how often a batch asked for it, since it arrived or was reopened.
        next_attempt_at: not asked for before then.
        reason: why it is quarantined, failed or waits again.
        duplicate_of: key of the file whose rows stand for the same content.
        replaced_by: key of the newer version, or the one read by another profile, that counts in its place.
        rule_counts: broken rule to number of rows.
    """

    file_key: str
    location: str
    location_key: str
    event: FileEvent
    profile: str
    intake: KafkaPosition
    version_at: datetime
    announced_at: datetime
    pinned: bool
    stands: bool
    state: FileState
    attempts: int
    reason: str | None
    error_class: str | None
    batch_id: str | None
    run_id: str | None
    next_attempt_at: datetime
    sha256: str | None
    landed_bytes: int | None
    duplicate_of: str | None
    replaced_by: str | None
    rows_read: int | None
    rows_accepted: int | None
    rows_quarantined: int | None
    rule_counts: dict[str, int] | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def order(self) -> VersionOrder:
        """Its place among the versions of its location."""
        position = (self.intake.topic, self.intake.partition, self.intake.offset)
        return VersionOrder(self.version_at, self.announced_at, *position, self.file_key)

    @classmethod
    def of(cls, row: RowMapping) -> FileRecord:
        """Of a row of the table `files`."""
        own = {name: row[name] for name in _OWN_COLUMNS}
        event = FileEvent(**{name: row[name] for name in _EVENT_COLUMNS}, event_id=row["event_id"])
        return cls(**own, state=FileState(row["state"]), event=event, intake=KafkaPosition.of(row))


_EVENT_COLUMNS = (
    "file_path",
    "file_name",
    "job_id",
    "source_type",
    "file_type",
    "size_bytes",
    "modified_at",
    "etag",
    "discovered_at",
    "trace_id",
    "metadata",
    "source_config",
)
_OWN_COLUMNS = tuple(name for name in FileRecord.__struct_fields__ if name not in {"event", "intake", "state"})


def order_of(arrival: FileArrival, now: datetime) -> VersionOrder:
    """Place an arrival among the versions of its location.

    A clock that is ahead must not make a version the newest for years: nothing was announced after it arrived, nor made
    after it was announced.
    """
    event, intake = arrival.event, arrival.intake
    announced_at = min(_aware(event.discovered_at or intake.at or now), now)
    version_at = min(_aware(event.modified_at or announced_at), announced_at)
    return VersionOrder(
        version_at, announced_at, intake.topic, intake.partition, intake.offset, file_key=arrival.file_key
    )


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def file_row(arrival: FileArrival, now: datetime) -> dict[str, Any]:
    """The row of a file that has just arrived."""
    event = arrival.event
    order = order_of(arrival, now)
    return {
        "file_key": arrival.file_key,
        "location": arrival.location,
        "location_key": digest_of(arrival.location),
        "version_at": order.version_at,
        "announced_at": order.announced_at,
        "pinned": arrival.pinned,
        "stands": False,
        **{name: getattr(event, name) for name in _EVENT_COLUMNS},
        "file_type": event.file_type or event.kind,
        "event_id": event.event_id,
        "profile": arrival.profile,
        "origin": origin_of(event, arrival.location),
        **arrival.intake.columns(),
        "state": FileState.PENDING,
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
        "updated_at": now,
    }
