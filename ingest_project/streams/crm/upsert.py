"""Upsert the messages of one chunk in one transaction, retried on conflict. Idempotent."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from ingest_project.contracts.crm_event import CrmKind
from ingest_project.core.batches import store_bisecting
from ingest_project.core.errors import TransientError, UnexpectedError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import RetrySettings
from ingest_project.platform.database.engine import writing
from ingest_project.platform.database.errors import sqlstate
from ingest_project.platform.kafka.records import ConsumerRecord
from ingest_project.streams.crm import unidentified_store
from ingest_project.streams.crm.classify import Identified, identify, unidentified
from ingest_project.streams.crm.records import MessageOrder, upsert
from ingest_project.streams.crm.unidentified_store import Unidentified, keep

logger = get_logger(__name__)

# A run that waits longer only holds a place that others could use: the ledger asks for it again, minutes later.
PATIENCE_SECONDS = 60.0

Result = TypeVar("Result")


def retried(
    action: Callable[[], Result], retries: RetrySettings, sleep: Callable[[float], None] = time.sleep
) -> Result:
    """Do something that may be done twice, again and again while what goes wrong is transient.

    Args:
        action: leaves nothing behind when it fails.
        retries: most attempts, and the pause after each: RETRY_DELAY, doubled each time, with jitter.
        sleep: how to wait.

    Raises:
        TransientError: the last failure, after MAX_RETRIES attempts or a minute of pauses.
    """
    waited = 0.0
    attempt = 1
    while True:
        try:
            return action()
        except TransientError as error:
            pause = jittered(retries.delay(attempt).total_seconds())
            if attempt >= retries.max_attempts or waited + pause > PATIENCE_SECONDS:
                raise
            logger.warning("tried_again", reason=str(error), attempt=attempt, pause_seconds=round(pause, 3))
        sleep(pause)
        waited += pause
        attempt += 1


def jittered(seconds: float) -> float:
    """Between half of a pause and one and a half of it: those who failed together do not come back together."""
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret


# PostgreSQL's classes of codes for a value it does not take: malformed, against a rule, beyond a limit of its own.
REFUSALS = ("22", "23", "54")


def store(engine: sa.Engine, found: Identified, log_file: Path | None) -> Counter[str]:
    """Store messages: records by upsert, the rest whole.

    Should storing them together fail, for a reason that the rules did not foresee or because the database refuses a
    value, the messages are halved until the one is found that fails alone, which is then kept unidentified with the
    reason: one message never stops the others.

    Returns:
        what became of the messages, name to number.

    Raises:
        TransientError: nothing of the messages in question was stored; the same call may succeed later.
        DBAPIError: the tables are not as they should be.
    """
    outcome: Counter[str] = Counter()

    def store_part(messages: Sequence[ConsumerRecord]) -> None:
        whole = len(messages) == len(found.messages)
        part = found if whole else identify(messages, found.topic_id, found.epoch)
        outcome.update(_store_together(engine, part, log_file))

    for message, error in store_bisecting(found.messages, store_part, may_be_a_messages_fault):
        _keep_refused(engine, message, found, log_file, error)
        outcome["unidentified"] += 1
    return outcome


def may_be_a_messages_fault(error: Exception) -> bool:
    """Tell an error that one message may have caused from one of the tables, the connection or a concurrent writer."""
    if isinstance(error, TransientError):
        return False
    if isinstance(error, sa.exc.DBAPIError) and not isinstance(error, sa.exc.DataError | sa.exc.IntegrityError):
        return isinstance(error.orig, BaseException) and sqlstate(error.orig).startswith(REFUSALS)
    return True


def reason_of(error: Exception) -> tuple[str, str]:
    """Why a message could not be stored, and the class of that error."""
    if isinstance(error, sa.exc.DBAPIError):
        cause = next(iter(str(error.orig or error).splitlines()), type(error).__name__)
        return f"The database refuses it: {cause[:300]}", type(error).__name__
    logger.error("storing_failed_unforeseen", exc_info=error)
    failure = UnexpectedError("Storing the message", error)
    return str(failure), failure.error_class


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
    unidentified_store.append_to_log(log_file, new, now)


def _keep_refused(
    engine: sa.Engine, message: ConsumerRecord, found: Identified, log_file: Path | None, error: Exception
) -> None:
    position = MessageOrder(message.topic, found.topic_id, message.partition, message.offset, found.epoch)
    kept = unidentified(message, position, *reason_of(error))
    with writing(engine) as connection:
        _keep(connection, [kept], datetime.now(UTC), log_file)
