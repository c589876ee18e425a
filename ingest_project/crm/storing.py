"""Messages of one chunk into the tables, in one transaction; done again it leaves the same rows."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ingest_project.crm import unidentified_log
from ingest_project.crm.identifying import Identified, identify, unidentified
from ingest_project.database.engine import writing
from ingest_project.database.failures import sqlstate
from ingest_project.logs import get_logger
from ingest_project.messages.crm_event import CrmKind
from ingest_project.stores.crm_records import Position, upsert
from ingest_project.stores.unidentified_messages import Unidentified, keep

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ingest_project.kafka.received import Received

logger = get_logger(__name__)

# PostgreSQL's classes of codes for a value it does not take: malformed, against a rule, beyond a limit of its own.
REFUSALS = ("22", "23", "54")


def store(engine: sa.Engine, found: Identified, log_file: Path | None) -> Counter[str]:
    """Store messages: records by upsert, the rest whole.

    Should the database refuse what the rules let through, the messages are halved until the one is found that it
    refuses, which is then kept unidentified: one message never stops the others.

    Returns:
        what became of the messages, name to number.

    Raises:
        TransientError: nothing of the messages in question was stored; the same call may succeed later.
    """
    messages, generation = found.messages, found.generation
    if not messages:
        return Counter()
    try:
        return _store_together(engine, found, log_file)
    except sa.exc.DBAPIError as refusal:
        if not _is_refusal(refusal):
            raise
        if len(messages) == 1:
            return _keep_refused(engine, messages[0], generation, log_file, refusal)
    middle = len(messages) // 2
    halves = (identify(half, generation) for half in (messages[:middle], messages[middle:]))
    return sum((store(engine, half, log_file) for half in halves), Counter())


def _is_refusal(error: sa.exc.DBAPIError) -> bool:
    """Whether the values are what is wrong, as opposed to the tables or the connection."""
    if isinstance(error, sa.exc.DataError | sa.exc.IntegrityError):
        return True
    return isinstance(error.orig, BaseException) and sqlstate(error.orig).startswith(REFUSALS)


def _store_together(engine: sa.Engine, found: Identified, log_file: Path | None) -> Counter[str]:
    now = datetime.now(UTC)
    outcome = Counter({"unidentified": len(found.unidentified)})
    with writing(engine) as connection:
        for kind in CrmKind:
            done = upsert(connection, kind, found.events[kind], now)
            outcome[f"{kind}_messages"] += done.messages
            outcome[f"{kind}_rows_changed"] += done.changed
        _keep(connection, found.unidentified, now, log_file)
    return outcome


def _keep(connection: sa.Connection, messages: Sequence[Unidentified], now: datetime, log_file: Path | None) -> None:
    new = keep(connection, messages, now)
    if new:
        # One line, however many: each has its row, and its line in the log of its own.
        logger.warning(
            "messages_unidentified", messages=len(new), first=str(new[0].position), reason_of_first=new[0].reason
        )
    unidentified_log.append(log_file, new, now)


def _keep_refused(
    engine: sa.Engine, message: Received, generation: str, log_file: Path | None, refusal: Exception
) -> Counter[str]:
    cause = next(iter(str(getattr(refusal, "orig", None) or refusal).splitlines()), type(refusal).__name__)
    position = Position(message.topic, generation, message.partition, message.offset)
    kept = unidentified(message, position, f"The database refuses it: {cause[:300]}", type(refusal).__name__)
    with writing(engine) as connection:
        _keep(connection, [kept], datetime.now(UTC), log_file)
    return Counter({"unidentified": 1})
