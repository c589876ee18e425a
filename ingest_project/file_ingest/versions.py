"""Resolve the version that an event means, and hash what the rows of a version mean.

An event that carries no version means the one that is present when the event is consumed. A tick must end in time
even if sources do not answer: servers are queried in parallel, with one query at a time each, and a server that is
unreachable or silent is skipped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

from msgspec.structs import replace as replaced

from ingest_project.contracts.files import SENSOR_READINGS, FileEvent
from ingest_project.core.errors import IngestError, TransientError
from ingest_project.core.items import digest_of
from ingest_project.core.logging import get_logger
from ingest_project.readers.profiles import ReaderProfile, first_group
from ingest_project.sources import Source, SourceFile

logger = get_logger(__name__)

ANSWER_TIMEOUT_SECONDS = 5.0
# The daemon gives up a tick after 60 s.
MAX_RESOLVE_SECONDS = 30.0


class Announced(NamedTuple):
    """A file event, the source that its file is in, and the dataset and reader profile that it belongs to."""

    event: FileEvent
    source: Source
    dataset: str = SENSOR_READINGS
    profile: str = ""

    @property
    def trace_id(self) -> str | None:
        """The trace that the event names."""
        return self.event.trace_id

    @property
    def names_its_version(self) -> bool:
        """True when the event names its version."""
        return self.event.etag is not None or self.event.modified_at is not None


class Answer(NamedTuple):
    """The present version of the file of one event, by the event's number; None if the source has no such file."""

    number: int
    file: SourceFile | None


def with_versions(announced: Sequence[Announced]) -> list[FileEvent]:
    """Return the events, in order, each with the version that is present where it names none.

    If a version cannot be resolved in time, the event keeps none: ingest reports the reason when it reads the file.
    """
    by_server: dict[str, list[int]] = {}
    for index, one in enumerate(announced):
        if not one.names_its_version:
            by_server.setdefault(_server_of(one.source.location), []).append(index)
    answers: SimpleQueue[Answer | None] = SimpleQueue()
    for indexes in by_server.values():
        # Daemon threads: a server that stays silent must not delay the end of the process.
        threading.Thread(target=_stat_each, args=(announced, indexes, answers), daemon=True).start()
    events, running, give_up_at = (
        [one.event for one in announced],
        len(by_server),
        time.monotonic() + MAX_RESOLVE_SECONDS,
    )
    while running and (left := give_up_at - time.monotonic()) > 0:
        try:
            answer = answers.get(timeout=min(ANSWER_TIMEOUT_SECONDS, left))
        except Empty:
            break
        if answer is None:
            running -= 1
        elif answer.file is not None:
            file = answer.file
            version = {"size_bytes": file.size_bytes, "modified_at": file.modified_at, "etag": file.etag}
            events[answer.number] = replaced(events[answer.number], **version)
    return events


def _stat_each(announced: Sequence[Announced], indexes: Sequence[int], answers: SimpleQueue[Answer | None]) -> None:
    """Query the versions of one server's files until it does not answer; None ends the answers."""
    for index in indexes:
        event, source, *_ = announced[index]
        file = None
        try:
            file = source.stat(event.file_path)
        except TransientError as error:
            logger.warning("version_unknown", source=source.location, reason=str(error))
            break
        except IngestError as error:
            logger.warning("version_unknown", source=source.location, reason=str(error))
        except Exception:  # the reason is reported when its file is read
            logger.exception("version_unknown", source=source.location)
        answers.put(Answer(index, file))
    answers.put(None)


def _server_of(location: str) -> str:
    """Return scheme and host of a source's address, `local` for this host."""
    scheme, _, rest = location.partition(":")
    return f"{scheme}://{rest[2:].partition('/')[0]}" if rest.startswith("//") else scheme


def meaning_of(profile: ReaderProfile, location: str, kind: str, *more: object) -> str:
    """Hash everything but the bytes that determines the rows of a file, to detect duplicates.

    Args:
        profile: that reads it.
        location: of the file, or its name; only the parts that the profile reads from it are hashed.
        kind: file type, by which the bytes are read.
        more: whatever else determines them, e.g. the columns of a declared dataset.
    """
    name = location.rpartition("/")[2]
    taken = {column: first_group(name, pattern) for column, pattern in profile.from_file_name.items()}
    taken |= {column: first_group(location, pattern) for column, pattern in profile.from_path.items()}
    return digest_of(profile.model_dump(mode="json", exclude={"description"}), taken, kind, *more)
