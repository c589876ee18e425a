"""Read the new events of a domain page by page, and record the position of each domain.

The whole state is the position, which the caller saves once a page's events are published:

- By cursor: a window reaches from the saved cursor to the one in the window's first answer. Kusto gives a row
  its cursor value after it has become visible, and no row gets one of an earlier window.
- By ingestion time: a row becomes visible some time after its ingestion time. So a window reaches from where
  the last one ended to the server's present, and every `overlap_seconds` one reaches back by twice that, which brings
  the late rows and repeats others. The ids of events make the repetition harmless: they are the same for the same
  row, and the caller's outbox lets each out once. The outbox and not the position remembers them,
  because it does so anyway, has room, and stays right however many rows the overlap holds.

Within a window the order is total (ingestion time, then a hash of the key) and both bounds are fixed, so a page
begins right after the row where the last one ended, also in another process: no row is skipped or read twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec
import sqlalchemy as sa

from ingest_project.attachments.eventhouse import AnswerTooLargeError, QueryClient, QueryResult
from ingest_project.attachments.eventhouse.queries import (
    INGESTED_AT,
    KEY,
    DomainQuery,
    PolledEvent,
    RefusedRow,
    event_of,
    page_text,
    server_time_text,
)
from ingest_project.attachments.tables import eventhouse_positions as positions
from ingest_project.core.errors import QueryRejectedError
from ingest_project.core.logging import get_logger
from ingest_project.platform.database import fetch, writing
from ingest_project.platform.database.sql import insert_missing

logger = get_logger(__name__)

BEGINNING_OF_TIME = "1900-01-01T00:00:00Z"
_NO_CURSOR = "Set `mode: window` for this domain, or enable the table's IngestionTime policy."
_NO_TIMES = "Enable it: `.alter table {table} policy ingestiontime true`."


class EventhousePositions:
    """Reads and writes the table `eventhouse_positions`. Every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def get(self, domain: str) -> str | None:
        """Return the position to continue from; None: from the beginning."""
        query = sa.select(positions.c.position).where(positions.c.domain == domain)
        return fetch(self._engine, query).scalar() or None

    def advance(self, domain: str, position: str, events: int, refused: int, now: datetime) -> None:
        """Store the position behind a published page. Storing it twice counts its events twice."""
        change = {
            "position": position,
            "events": positions.c.events + events,
            "refused": positions.c.refused + refused,
            "reason": None,
            "updated_at": now,
        }
        self._change(domain, change, now)

    def fail(self, domain: str, reason: str, now: datetime) -> None:
        """Store why the last poll failed; the position stays."""
        self._change(domain, {"reason": reason, "updated_at": now}, now)

    def _change(self, domain: str, change: Mapping[str, object], now: datetime) -> None:
        first = {"domain": domain, "position": "", "events": 0, "refused": 0, "updated_at": now}
        with writing(self._engine) as connection:
            insert_missing(connection, positions, [first], positions.c.domain)
            connection.execute(sa.update(positions).where(positions.c.domain == domain).values(change))


class QueryCursor(msgspec.Struct, frozen=True, omit_defaults=True):
    """Read position of a domain. Opaque to the caller; see `to_json` and `position_from_json`.

    Args:
        source: mode, database and table it refers to.
        after: everything up to here is done: a cursor, or an ingestion time.
        swept: window only: the time up to which late rows have been queried.
        until: end of the window whose pages are being read; empty between windows.
        since: window only: where that window begins.
        page_at: ingestion time of the last row of the last page, with seven digits of a second.
        page_key: key of that row.
        rows: how many rows fit into a page of this window; 0 where nothing was too large.
    """

    source: str
    after: str = ""
    swept: str = ""
    until: str = ""
    since: str = ""
    page_at: str = ""
    page_key: str = ""
    rows: int = 0

    def to_json(self) -> str:
        """Return the position as text to save, of a few hundred bytes."""
        return msgspec.json.encode(self).decode()


@dataclass(frozen=True)
class Page:
    """Result of one poll.

    Args:
        events: in the order of their ingestion. In window mode some may have come before, see `PolledEvent.event_id`.
        refused: rows that cannot become events, to be counted and shown.
        position: to save with the events, and to poll from next.
        more: whether more is waiting, so that the next poll need not wait.
    """

    events: list[PolledEvent]
    refused: list[RefusedRow]
    position: QueryCursor
    more: bool


def position_from_json(text: str) -> QueryCursor:
    """Return a position that was saved.

    Raises:
        ValueError: it is not one.
    """
    return msgspec.json.decode(text, type=QueryCursor)


def poll(client: QueryClient, query: DomainQuery, position: QueryCursor | None) -> Page:
    """Read the next page of a domain's events. The same position brings the same events, and perhaps newer ones.

    Args:
        client: client of the cluster.
        query: query of the domain.
        position: result of the last poll; None begins with the table's first row. One of another table or mode
            begins again too: events that were published before have the same ids.

    Raises:
        EventhouseUnavailableError: try again later from the same position.
        QueryRejectedError: the query, its permissions or the table must be changed.
    """
    if position is not None and position.source != query.source:
        logger.warning("eventhouse_read_from_beginning", source=query.source, before=position.source)
        position = None
    begin = position or QueryCursor(query.source)
    if query.mode == "window" and not begin.until:
        window = _time_window(client, query, begin)
        if window is None:
            return Page([], [], begin, more=False)
        begin = window
    answer, rows = _read(client, query, begin)
    return _page(query, begin, answer, rows)


def _time_window(client: QueryClient, query: DomainQuery, begin: QueryCursor) -> QueryCursor | None:
    """Return the next window of ingestion times; None while the table is empty."""
    found = client.query(query.database, server_time_text(query)).rows
    if not found:
        return None
    server_time, is_timed = found[0]
    if not is_timed:
        cause = f"rows of {query.table} have no ingestion time"
        raise QueryRejectedError(f"Polling {query.source}", cause, _NO_TIMES.format(table=query.table))
    return next_window(begin, _moment(server_time), timedelta(seconds=query.overlap_seconds))


def next_window(done: QueryCursor, now: datetime, overlap: timedelta) -> QueryCursor:
    """Return the window of ingestion times to read after another.

    A row that becomes visible at most `overlap` after its ingestion time is in a window that begins after it has: the
    window that first looks for late rows after that begins an overlap before the last one that did had ended.

    Args:
        done: the position at the end of the last window.
        now: the server's clock.
        overlap: how long after its ingestion time a row may become visible.
    """
    until = _iso(now)
    if not done.after:
        return msgspec.structs.replace(done, since=BEGINNING_OF_TIME, until=until, swept=until)
    last_swept = _moment(done.swept)
    if now - last_swept < overlap:
        return msgspec.structs.replace(done, since=done.after, until=until)
    return msgspec.structs.replace(done, since=_iso(last_swept - overlap), until=until, swept=until)


def _read(client: QueryClient, query: DomainQuery, begin: QueryCursor) -> tuple[QueryResult, int]:
    """Return the next rows, and the limit that was queried: halved each time that they were too large together."""
    rows = begin.rows or query.page_rows
    parameters = {
        "_after": begin.since or begin.after,
        "_until": begin.until,
        "_page_at": begin.page_at,
        "_page_key": begin.page_key,
    }
    while True:
        text = page_text(query, rows, until_is_known=bool(begin.until), goes_on=bool(begin.page_at))
        try:
            return client.query(query.database, text, parameters), rows
        except AnswerTooLargeError as error:
            if rows == 1:
                remedy = "Leave large columns out in its steps."
                raise QueryRejectedError(
                    f"Polling {query.source}", f"a single row is too large: {error}", remedy
                ) from error
            rows //= 2
            logger.info("eventhouse_page_too_large", source=query.source, next_rows=rows)


def _page(query: DomainQuery, begin: QueryCursor, answer: QueryResult, rows: int) -> Page:
    found = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
    made = [event_of(query, row) for row in found]
    until = begin.until or answer.cursor
    if not until:
        raise QueryRejectedError(f"Polling {query.source}", "the database returns no cursor", _NO_CURSOR)
    more = len(found) >= rows
    if more:
        last = found[-1]
        position = msgspec.structs.replace(
            begin,
            until=until,
            page_at=last[INGESTED_AT],
            page_key=last[KEY],
            rows=0 if rows == query.page_rows else rows,
        )
    else:
        position = QueryCursor(query.source, after=until, swept=begin.swept)
    return Page(
        [event for event in made if isinstance(event, PolledEvent)],
        [row for row in made if isinstance(row, RefusedRow)],
        position,
        more,
    )


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
