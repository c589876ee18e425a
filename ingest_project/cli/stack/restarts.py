"""How often a part of the stack that ends by itself is started again, and after what pause."""

from __future__ import annotations

from collections import defaultdict

PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
# A part that ran for longer than this has its restarts back.
REMEMBERED_SECONDS = 600.0


class Restarts:
    """Counts the ends of each part."""

    def __init__(self) -> None:
        self._ends: defaultdict[str, list[float]] = defaultdict(list)

    def pause_after_end(self, name: str, now: float) -> float | None:
        """Count one more end of a part.

        Args:
            name: of the part.
            now: on a clock that only goes on, in seconds.

        Returns:
            how long to wait before it is started again; None when it has ended too often.
        """
        recent = [at for at in self._ends[name] if now - at < REMEMBERED_SECONDS]
        self._ends[name] = [*recent, now]
        return PAUSES_SECONDS[len(recent)] if len(recent) < len(PAUSES_SECONDS) else None

    def ends(self, name: str) -> int:
        """Return how many ends of a part are remembered."""
        return len(self._ends[name])
