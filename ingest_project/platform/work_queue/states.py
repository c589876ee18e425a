"""The lives of what the ledgers keep.

    file               pending -> requested -> ingesting   -> ingested | quarantined | duplicate | failed
                                                              | superseded; each but the last may end as replaced
    polling job        pending -> requested -> running     -> done | failed
    attachment event   pending -> requested -> running     -> done | failed
    attachment         pending -> requested -> downloading -> stored | failed

A transient failure or a dead run leads back to pending, with a time before which it is not asked for again; a person
may lead any finished one back.
"""

from __future__ import annotations

from enum import StrEnum


class FileState(StrEnum):
    """Where a file is in its life."""

    PENDING = "pending"
    REQUESTED = "requested"
    INGESTING = "ingesting"
    INGESTED = "ingested"
    QUARANTINED = "quarantined"
    DUPLICATE = "duplicate"
    FAILED = "failed"
    # Its source had another version by the time it was read.
    SUPERSEDED = "superseded"
    # A newer version of the same location, or the same one read by another profile, counts in its place.
    REPLACED = "replaced"

    @property
    def finished(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self in FINISHED_FILE_STATES


class JobState(StrEnum):
    """Where a polling job is in its life."""

    PENDING = "pending"
    REQUESTED = "requested"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def finished(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self in {JobState.DONE, JobState.FAILED}


class AttachmentState(StrEnum):
    """Where an attachment is in its life. One in a retry topic is pending, with a time before which it waits."""

    PENDING = "pending"
    REQUESTED = "requested"
    DOWNLOADING = "downloading"
    STORED = "stored"
    FAILED = "failed"

    @property
    def finished(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self in {AttachmentState.STORED, AttachmentState.FAILED}


PENDING = "pending"
REQUESTED = "requested"
FINISHED_FILE_STATES = frozenset(
    {
        FileState.INGESTED,
        FileState.QUARANTINED,
        FileState.DUPLICATE,
        FileState.FAILED,
        FileState.SUPERSEDED,
        FileState.REPLACED,
    }
)
