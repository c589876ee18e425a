"""Rows to commits: where the table refuses a row, it alone becomes a dead letter, and the rows around it are stored."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ingest_project.bisection import store_bisecting
from ingest_project.errors import BrokerUnavailable, IngestError, PermanentError, UnforeseenFailure, UnreadableMessage
from ingest_project.intake import put_aside
from ingest_project.logs import get_logger
from ingest_project.stores.delta_failures import may_be_a_rows_fault
from ingest_project.stores.delta_tables import Committed
from ingest_project.user_activity.stream import CHUNK_BYTES, stream_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from ingest_project.ledger.range_record import OffsetRange
    from ingest_project.resources import Services

logger = get_logger(__name__)


@dataclass
class Appended:
    """What became of the rows of a commit.

    Args:
        table_version: of the last commit; None: the table had the rows already.
        refused: offsets of rows that the table refused; they are dead letters.
    """

    table_version: int | None = None
    refused: list[int] = field(default_factory=list)


def append_bisecting(  # noqa: PLR0913, PLR0917 - a commit is these facts
    services: Services, offsets: OffsetRange, table: pa.Table, after: int | None, end: int, checked: int
) -> Appended:
    """Append rows in one commit; where they are refused, in more, until the row stands alone that the table refuses.

    Each commit begins where the one before it ended. The dead letter of a refused row goes out before the commit that
    passes its offset: killed anywhere, the same call goes on.

    Args:
        services: Kafka and the table.
        offsets: the range that the rows are of.
        table: rows in the order of their offsets.
        after: the position that they follow.
        end: the position after all of them.
        checked: version of the table at which everything before was there.

    Raises:
        IngestError: the store, its schema or another writer was in the way, and no row.
    """
    store, stream, done = services.user_activity_events, stream_of(offsets), Appended()
    reached = after

    def commit(first: int, count: int, version: int) -> None:
        nonlocal reached
        rows = table.slice(first, count)
        committed = store.append(rows, app_id=stream, version=version, after=reached, checked=checked)
        if isinstance(committed, Committed):
            done.table_version = committed.table_version
        reached = version

    def store_part(rows: Sequence[int]) -> None:
        first, count, next_row = rows[0], len(rows), rows[-1] + 1
        version = end if next_row == table.num_rows else table["kafka_offset"][next_row].as_py()
        try:
            commit(first, count, version)
        except Exception as error:
            # Of a store that is away no row is to blame: it must take a commit without these rows.
            is_certain = 1 < count < table.num_rows
            if not may_be_a_rows_fault(error) or not (is_certain or _takes_commits(services, offsets)):
                raise
            if count > 1:
                raise _RefusedRowsError from error
            offset = table["kafka_offset"][first].as_py()
            _refuse(services, offsets, offset, error)
            done.refused.append(offset)
            commit(first, 0, version)

    if table.num_rows:
        store_bisecting(range(table.num_rows), store_part, lambda error: isinstance(error, _RefusedRowsError))
    else:
        commit(0, 0, end)
    return done


class _RefusedRowsError(Exception):
    """Some of the rows cannot be stored."""


def _takes_commits(services: Services, offsets: OffsetRange) -> bool:
    """Whether the table takes a commit that has no rows."""
    from ingest_project.user_activity.event_table import SCHEMA  # noqa: PLC0415 - brings pyarrow

    probe = f"{stream_of(offsets)}/probe"
    try:
        services.user_activity_events.append(SCHEMA.empty_table(), app_id=probe, version=time.time_ns() // 1_000)
    except IngestError:
        return False
    return True


def _refuse(services: Services, offsets: OffsetRange, offset: int, error: Exception) -> None:
    """Publish the message of a row as a dead letter, with the reason of the table."""
    for chunk in services.range_reader.read(*offsets.lane, offset, offset + 1, 1, CHUNK_BYTES):
        if chunk.lost:
            # Without its bytes there is no dead letter: it waits where a person sees it, and is lost only knowingly.
            reason = f"the message at {offset} is gone, and the table refuses its row"
            raise BrokerUnavailable(services.settings.kafka.bootstrap_servers, reason) from error
        refused = [(message, _reason_of(error)) for message in chunk.messages]
        put_aside(services, services.settings.topics.user_activity_events_dlq, refused, offsets.generation)


def _reason_of(error: Exception) -> PermanentError | UnreadableMessage:
    if isinstance(error, IngestError):
        return UnreadableMessage(f"The table refuses it: {error}")
    logger.error("storing_failed_unforeseen", exc_info=error)
    return UnforeseenFailure("Storing the message", error)
