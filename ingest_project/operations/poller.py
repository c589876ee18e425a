"""The parts of the system that are looked at, each by a thread of its own and as often as it needs.

Whoever asks gets what was seen last, at once: scrapers and viewers cost the databases nothing, and a part that hangs
delays nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Generic, TypeVar

from ingest_project.core.errors import IngestError
from ingest_project.core.logging import get_logger

logger = get_logger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Sample(Generic[Value]):
    """What the last look at a part brought.

    Args:
        value: of the last look that worked, however long ago; None before the first.
        at: when that was.
        took_seconds: how long it took.
        problem: why the last look did not work; None when it did.
    """

    value: Value | None = None
    at: datetime | None = None
    took_seconds: float = 0.0
    problem: str | None = None

    @property
    def present(self) -> Value | None:
        """The value, unless the last look failed."""
        return None if self.problem else self.value

    def age_seconds(self, now: datetime) -> float | None:
        """How old the value is; None where there is none."""
        return None if self.at is None else max(0.0, (now - self.at).total_seconds())


class Poller(Generic[Value]):
    """A part and the thread that looks at it.

    Args:
        name: for people and metrics.
        look: asks everything there is to know; an IngestError says why it cannot be known.
        every_seconds: pause between two looks.
    """

    def __init__(self, name: str, look: Callable[[], Value], every_seconds: float) -> None:
        self.name = name
        self.every_seconds = every_seconds
        self._look = look
        self._seen: Sample[Value] = Sample()
        self._looked = threading.Event()
        self._stop = threading.Event()
        # A look that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._keep_looking, name=f"monitor-{name}", daemon=True)

    @property
    def seen(self) -> Sample[Value]:
        """What the last look brought; a problem where nobody looks any more."""
        if self._thread.ident is None or self._thread.is_alive() or self._stop.is_set():
            return self._seen
        return replace(self._seen, problem="nobody looks at it any more: its thread has ended. Start the monitor again")

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def wait_for_first_look(self, seconds: float) -> None:
        """Return once there has been a look, or after that time."""
        self._looked.wait(seconds)

    def ask_to_stop(self) -> None:
        """No further look is begun."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait for the look that goes on."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def look_now(self) -> None:
        """Look once, in the calling thread."""
        began = time.monotonic()
        problem = None
        try:
            value = self._look()
        except IngestError as error:
            problem = str(error)
        except Exception as error:  # a defect in one part must not end the others
            logger.exception("look_failed", part=self.name)
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            self._seen = Sample(value, datetime.now(UTC), time.monotonic() - began)
        else:
            if problem != self._seen.problem:
                logger.warning("part_away", part=self.name, reason=problem)
            self._seen = Sample(self._seen.value, self._seen.at, self._seen.took_seconds, problem)
        self._looked.set()

    def _keep_looking(self) -> None:
        while not self._stop.is_set():
            try:
                self.look_now()
            except Exception as defect:  # noqa: BLE001 - of the log, say: a thread that ended would look at nothing
                self._seen = replace(self._seen, problem=f"{type(defect).__name__}: {defect}")
                self._looked.set()
            self._stop.wait(self.every_seconds)
