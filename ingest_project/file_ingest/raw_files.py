"""Step 1, `raw_files`: copy a file's bytes, unchanged, from its source into the landing store.

Idempotent: the same content has the same address. Only the announced version is landed: a later version is a file of
its own. Once landed, a file no longer needs its source.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, NamedTuple

from msgspec.structs import replace as replaced

from ingest_project.contracts.files import FileEvent, version_of
from ingest_project.core.errors import (
    LimitExceededError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
    VersionSupersededError,
)
from ingest_project.core.local_files import PIECE_BYTES
from ingest_project.core.logging import get_logger
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.platform.http import without_query
from ingest_project.platform.object_store.content_store import Landed, LandingStore
from ingest_project.sources import Source, SourceFile

logger = get_logger(__name__)


class LandedFile(NamedTuple):
    """A file whose bytes are in the landing store.

    Args:
        record: record of the work queue, with the version that was read if its event named none.
    """

    record: FileRecord
    landed: Landed


def land(record: FileRecord, services: FileIngestResources) -> LandedFile:
    """Copy one file to the landing store. If the source no longer has it, reuse the copy landed earlier.

    The bytes that an operator uploaded are there already, and no source has them.

    Raises:
        VersionSupersededError: its source has another version than the announced one.
        SourceChangedError: it changed while it was read, or its source does not show the announced version yet.
        LimitExceededError: it is larger than INGEST_MAX_FILE_BYTES, as far as was read.
        SourceNotFoundError, SourceUnreachableError, ForbiddenPathError: raised by its source.
    """
    if record.uploaded_sha256 is not None:
        uploaded = services.landing.find(record.uploaded_sha256)
        if uploaded is None:
            raise SourceNotFoundError(f"The uploaded content {record.uploaded_sha256} in the landing store")
        return LandedFile(record, uploaded)
    try:
        return _copy(record, services)
    except (SourceNotFoundError, SourceUnreachableError, SourceChangedError, VersionSupersededError) as error:
        landed = _landed_before(record, services.landing)
        # A file that names no version means the present one: its source may have been corrected.
        may_have_another = isinstance(error, SourceUnreachableError) and not record.pinned
        if landed is None or may_have_another:
            raise
        logger.warning("source_gone", partition_key=record.file_key, reason=str(error), landed=landed.path)
        return LandedFile(record, landed)


def _copy(record: FileRecord, services: FileIngestResources) -> LandedFile:
    source = source_of(record.event, services)
    found = source.stat(record.event.file_path)
    if record.pinned:
        _require_announced_version(record, found)
    try:
        return LandedFile(_with_version(record, found), _copy_found(record, found, source, services))
    except SourceChangedError:
        if record.pinned:
            # If it was announced while it was written, no attempt will find that version again.
            _require_announced_version(record, source.stat(record.event.file_path))
        raise


def _copy_found(record: FileRecord, found: SourceFile, source: Source, services: FileIngestResources) -> Landed:
    path, limit = record.event.file_path, services.settings.file_ingest.max_file_bytes
    _require_within(limit, found.size_bytes or 0)
    with source.open(path) as stream:
        pieces = _pieces_up_to(stream, limit)
        landed = services.landing.land(pieces, expected_size=found.size_bytes, location=without_query(record.location))
    # A file that is overwritten during the read arrives as parts of two versions. One that is gone is accepted.
    with suppress(SourceNotFoundError):
        if source.stat(path) != found:
            raise SourceChangedError(without_query(record.location), "it was replaced while it was read")
    return landed


def _pieces_up_to(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """Yield a file whose source does not say how large it is, up to its limit."""
    size = 0
    while piece := stream.read(PIECE_BYTES):
        size += len(piece)
        _require_within(limit, size)
        yield piece


def _require_within(limit: int, size: int) -> None:
    if size > limit:
        raise LimitExceededError("INGEST_MAX_FILE_BYTES", f"It has {size} bytes or more; at most {limit} are read")


def _with_version(record: FileRecord, found: SourceFile) -> FileRecord:
    """Return the record with the version that was found, if its event named none."""
    if record.pinned:
        return record
    version = {"size_bytes": found.size_bytes, "modified_at": found.modified_at, "etag": found.etag}
    version_at = record.version_at
    if found.modified_at is not None:
        version_at = max(version_at, min(found.modified_at, datetime.now(UTC)))
    return replaced(record, event=replaced(record.event, **version), version_at=version_at)


def _landed_before(record: FileRecord, landing: LandingStore) -> Landed | None:
    """Return the bytes of this very version, if an earlier run landed them: the work queue has their digest."""
    landed = landing.find(record.sha256) if record.sha256 else None
    return None if landed is None or record.landed_bytes not in {None, landed.size_bytes} else landed


def source_of(event: FileEvent, services: FileIngestResources) -> Source:
    """Return the source that a file comes from."""
    return services.open_source({**event.source_config, "source_type": event.source_type})


def _require_announced_version(record: FileRecord, found: SourceFile) -> None:
    event = record.event
    # An event may omit facts about its file; only those that it states are compared.
    same = (
        event.etag in {None, found.etag}
        and event.size_bytes in {None, found.size_bytes}
        and (event.modified_at is None or found.modified_at is None or _same_time(event.modified_at, found.modified_at))
    )
    if same:
        return
    if event.modified_at is not None and found.modified_at is not None and _older(found.modified_at, event.modified_at):
        # A replica or a cache that lags: the announced version will appear later.
        raise SourceChangedError(without_query(record.location), f"its source shows the one of {found.modified_at}")
    announced, actual = versions_apart(event, found)
    raise VersionSupersededError(without_query(record.location), f"announced with {announced}, found with {actual}")


def versions_apart(event: FileEvent, found: SourceFile) -> tuple[str, str]:
    """Describe the version that was announced and the one that was found, so that the two differ."""
    versions = [version_of(one.etag, one.size_bytes, one.modified_at) for one in (event, found)]
    if versions[0] == versions[1]:
        # Some servers keep the ETag when the content changes.
        versions = [version_of(None, one.size_bytes, one.modified_at) for one in (event, found)]
    return versions[0], versions[1]


def _older(found: datetime, announced: datetime) -> bool:
    return found < announced and not _same_time(announced, found)


def _same_time(announced: datetime, found: datetime) -> bool:
    """Compare two times of change, to the precision of the announced one: producers round."""
    if announced.microsecond == 0:
        tolerance = timedelta(seconds=1)
    elif announced.microsecond % 1000 == 0:
        tolerance = timedelta(milliseconds=1)
    else:
        # A time that went through a floating-point number of seconds is off by less than this.
        tolerance = timedelta(microseconds=2)
    return abs(announced - found) < tolerance
