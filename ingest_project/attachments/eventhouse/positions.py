"""How far each domain of Eventhouse has been read, and what came of the last look."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec
import sqlalchemy as sa

from ingest_project.attachments.tables import eventhouse_positions as positions
from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.work_queue.sql_helpers import insert_missing


class DomainPosition(msgspec.Struct, frozen=True):
    """One domain.

    Args:
        position: opaque; empty before the first page.
        events: read so far.
        refused: rows that could not become events.
        reason: why the last look failed; None where it did not.
    """

    domain: str
    position: str
    events: int
    refused: int
    reason: str | None


class EventhousePositions:
    """Reads and writes the table `eventhouse_positions`. Every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def get(self, domain: str) -> str | None:
        """Where to go on; None: from the beginning."""
        query = sa.select(positions.c.position).where(positions.c.domain == domain)
        with reading(self._engine) as connection:
            return connection.execute(query).scalar() or None

    def advance(self, domain: str, position: str, events: int, refused: int, now: datetime) -> None:
        """A page has been published. Entered a second time it would be counted twice, and read but once."""
        change = {
            "position": position,
            "events": positions.c.events + events,
            "refused": positions.c.refused + refused,
            "reason": None,
            "updated_at": now,
        }
        self._change(domain, change, now)

    def fail(self, domain: str, reason: str, now: datetime) -> None:
        """The last look came to nothing; the position stays."""
        self._change(domain, {"reason": reason, "updated_at": now}, now)

    def list(self) -> tuple[DomainPosition, ...]:
        """Every domain that was ever looked at."""
        columns = (positions.c.domain, positions.c.position, positions.c.events, positions.c.refused)
        query = sa.select(*columns, positions.c.reason).order_by(positions.c.domain)
        with reading(self._engine) as connection:
            return tuple(DomainPosition(*row) for row in connection.execute(query))

    def _change(self, domain: str, change: Mapping[str, object], now: datetime) -> None:
        first = {"domain": domain, "position": "", "events": 0, "refused": 0, "updated_at": now}
        with writing(self._engine) as connection:
            insert_missing(connection, positions, [first], positions.c.domain)
            connection.execute(sa.update(positions).where(positions.c.domain == domain).values(change))
