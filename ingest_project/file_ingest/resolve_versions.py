"""Which version of a file an event means that does not say so: the one that is there when the event is taken.

A tick must end in time whoever does not answer. Sources are asked side by side, one question after the other; one that
is away is asked no further, and those that stay silent are left alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace as replaced

from ingest_project.contracts.file_event import FileEvent
from ingest_project.core.errors import IngestError, TransientError
from ingest_project.core.logging import get_logger
from ingest_project.sources.protocol import Source, SourceFile

logger = get_logger(__name__)

SILENT_SECONDS = 5.0
# The daemon gives up a tick after 60 s.
LONGEST_SECONDS = 30.0


class Announced(NamedTuple):
    """A file event and the source that its file is in."""

    event: FileEvent
    source: Source

    @property
    def names_its_version(self) -> bool:
        """Whether the event says which version it means."""
        return self.event.etag is not None or self.event.modified_at is not None


def with_versions(
    announced: Sequence[Announced], silent_seconds: float = SILENT_SECONDS, longest_seconds: float = LONGEST_SECONDS
) -> list[FileEvent]:
    """The events, in order, each with the version that is there where it names none.

    What cannot be told, or not in time, stays without: ingest says why once it reads the file.

    Args:
        announced: the events.
        silent_seconds: how long to wait while no source answers.
        longest_seconds: how long to wait in all.
    """
    questions: dict[str, list[int]] = {}
    for place, one in enumerate(announced):
        if not one.names_its_version:
            questions.setdefault(_server_of(one.source.location), []).append(place)
    answers = _Answers()
    # Threads that nobody waits for at the end of the process: what they ask may stay silent for long.
    threads = [
        threading.Thread(target=_ask, args=(announced, places, answers), daemon=True) for places in questions.values()
    ]
    for thread in threads:
        thread.start()
    answers.wait_for(threads, silent_seconds, longest_seconds)
    found = answers.taken()
    return [
        _with_version(one.event, found[place]) if place in found else one.event for place, one in enumerate(announced)
    ]


class _Answers:
    """What has been answered so far, by the place of the event."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[int, SourceFile] = {}
        self._last_at = time.monotonic()

    def add(self, place: int, file: SourceFile | None) -> None:
        with self._lock:
            self._last_at = time.monotonic()
            if file is not None:
                self._found[place] = file

    def wait_for(self, threads: Sequence[threading.Thread], silent_seconds: float, longest_seconds: float) -> None:
        begun_at = time.monotonic()
        for thread in threads:
            while thread.is_alive():
                until = min(self._last_at + silent_seconds, begun_at + longest_seconds)
                if (left := until - time.monotonic()) <= 0:
                    return
                thread.join(left)

    def taken(self) -> dict[int, SourceFile]:
        with self._lock:
            return dict(self._found)


def _ask(announced: Sequence[Announced], places: Sequence[int], answers: _Answers) -> None:
    for place in places:
        event, source = announced[place]
        try:
            answers.add(place, source.stat(event.file_path))
        except TransientError as error:
            logger.warning("version_unknown", source=source.location, reason=str(error))
            return
        except IngestError as error:
            logger.warning("version_unknown", source=source.location, reason=str(error))
            answers.add(place, None)
        except Exception:  # what one event causes is told when its file is read
            logger.exception("version_unknown", source=source.location)
            answers.add(place, None)


def _server_of(location: str) -> str:
    """Scheme and host of a source's address, `local` for this host."""
    scheme, _, rest = location.partition(":")
    return f"{scheme}://{rest[2:].partition('/')[0]}" if rest.startswith("//") else scheme


def _with_version(event: FileEvent, found: SourceFile) -> FileEvent:
    return replaced(event, size_bytes=found.size_bytes, modified_at=found.modified_at, etag=found.etag)
