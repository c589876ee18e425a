"""Each row becomes one event, for any size of pages, times of rows and killed processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from ingest_project.attachments.eventhouse.client import EventhouseClient
from ingest_project.attachments.eventhouse.polling import QueryCursor, next_window, poll
from ingest_project.core.errors import EventhouseUnavailableError, QueryRejectedError
from ingest_project_tests.attachments.eventhouse.samples import (
    TABLE,
    access_to,
    claims,
    expected,
    poll_all,
    row,
    rows,
    traces,
)
from ingest_project_tests.services.kusto_server import Fault, KustoServer
from ingest_project_tests.services.kusto_tables import Database, seven_digits

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def after_noon(seconds: float) -> str:
    """An ingestion time so many seconds after noon."""
    return seven_digits(NOON + timedelta(seconds=seconds))


@pytest.mark.parametrize("mode", ["cursor", "window"])
def test_every_row_comes_once_in_pages_that_another_process_continues(
    client: EventhouseClient, database: Database, mode: str
) -> None:
    database.ingest(TABLE, *rows(1, 7))
    database.ingest(TABLE, *rows(8, 10))
    query = claims(mode=mode, page_rows=3)

    pages = poll_all(client, query)

    assert [len(page.events) for page in pages] == [3, 3, 3, 1]
    assert sorted(traces(pages)) == expected(1, 10)
    assert poll(client, query, pages[-1].position).events == []


@pytest.mark.parametrize("mode", ["cursor", "window"])
def test_a_page_that_is_read_again_is_the_same_page(client: EventhouseClient, database: Database, mode: str) -> None:
    database.ingest(TABLE, *rows(1, 9))
    query = claims(mode=mode, page_rows=4)
    first = poll(client, query, None)

    second, again = poll(client, query, first.position), poll(client, query, first.position)

    assert again == second
    assert not set(traces([first])) & set(traces([second]))


@pytest.mark.parametrize("mode", ["cursor", "window"])
def test_rows_that_arrive_while_pages_are_read_come_once_and_later(
    client: EventhouseClient, database: Database, mode: str
) -> None:
    database.ingest(TABLE, *rows(1, 6))
    query = claims(mode=mode, page_rows=4)
    first = poll(client, query, None)
    database.ingest(TABLE, *rows(7, 8))

    rest = poll_all(client, query, first.position)
    later = poll_all(client, query, rest[-1].position)

    assert sorted(traces([first, *rest])) == expected(1, 6)
    assert sorted(traces(later)) == expected(7, 8)


@pytest.mark.parametrize("mode", ["cursor", "window"])
def test_times_are_distinguished_to_the_seventh_digit(client: EventhouseClient, database: Database, mode: str) -> None:
    for number in range(1, 10):
        database.ingest(TABLE, row(number), at=f"2026-03-01T11:00:00.000000{number}Z")

    pages = poll_all(client, claims(mode=mode, page_rows=1))

    assert traces(pages) == expected(1, 9)


def test_a_row_whose_cursor_value_comes_late_is_neither_skipped_nor_doubled(
    client: EventhouseClient, database: Database
) -> None:
    database.ingest(TABLE, *rows(1, 2), has_cursor=False)
    database.ingest(TABLE, *rows(3, 4))
    before = poll(client, claims(), None)
    database.assign_cursors(TABLE)

    after = poll(client, claims(), before.position)

    assert sorted(traces([before])) == expected(3, 4)
    assert sorted(traces([after])) == expected(1, 2)


def test_a_row_that_becomes_visible_late_is_found_and_its_neighbours_keep_their_ids(
    client: EventhouseClient, database: Database
) -> None:
    clock = [NOON]
    database.now = lambda: clock[0]
    query = claims(mode="window", overlap_seconds=60)
    database.ingest(TABLE, row(1), at=after_noon(-50))
    pages = poll_all(client, query)

    clock[0] = NOON + timedelta(seconds=9)
    database.ingest(TABLE, row(2), at=after_noon(-49))
    database.ingest(TABLE, row(3), at=after_noon(8))
    quick = poll_all(client, query, pages[-1].position)
    clock[0] = NOON + timedelta(seconds=60)
    sweep = poll_all(client, query, quick[-1].position)

    assert traces(quick) == ["trace-00003"]
    assert traces(sweep) == ["trace-00001", "trace-00002", "trace-00003"]
    ids = [event.event_id for page in [*pages, *quick, *sweep] for event in page.events]
    assert len(ids) == 5
    assert len(set(ids)) == 3


def test_rows_are_swept_at_most_twice_however_often_is_polled(client: EventhouseClient, database: Database) -> None:
    clock = [NOON]
    database.now = lambda: clock[0]
    query = claims(mode="window", overlap_seconds=60)
    position, seen = None, 0
    for second in range(0, 300, 3):
        clock[0] = NOON + timedelta(seconds=second)
        if second == 30:
            database.ingest(TABLE, row(1), at=after_noon(29.5))
        page = poll(client, query, position)
        position, seen = page.position, seen + len(page.events)

    assert 1 <= seen <= 3


def test_windows_reach_every_row_that_becomes_visible_within_the_overlap() -> None:
    overlap = timedelta(seconds=60)
    polled_at = [NOON + timedelta(seconds=seconds) for seconds in (0, 7, 59, 61, 64, 120, 121, 400, 410, 475, 1000)]
    windows = []
    position = QueryCursor("window:events.T")
    for now in polled_at:
        position = next_window(position, now, overlap)
        windows.append((now, datetime.fromisoformat(position.since), datetime.fromisoformat(position.until)))
        position = QueryCursor(position.source, after=position.until, swept=position.swept)

    for ingested in (NOON + timedelta(seconds=seconds) for seconds in range(-30, 900)):
        for delay in (0, 1, 30, 59, 60):
            visible = ingested + timedelta(seconds=delay)
            assert any(now >= visible and since < ingested <= until for now, since, until in windows), (ingested, delay)
    assert all(since <= last_until for (_, _, last_until), (_, since, _) in pairwise(windows))


def test_a_page_that_is_too_large_is_halved_until_it_fits(
    client: EventhouseClient, kusto_server: KustoServer, database: Database
) -> None:
    database.ingest(TABLE, *rows(1, 40))
    kusto_server.page_limit = 5

    pages = poll_all(client, claims(page_rows=32))

    assert sorted(traces(pages)) == expected(1, 40)
    assert {len(page.events) for page in pages} == {4, 0}
    # Found once a window and not once a page.
    assert len(kusto_server.requests) == 3 + len(pages)


def test_a_page_with_more_bytes_than_allowed_is_halved_too(kusto_server: KustoServer, database: Database) -> None:
    database.ingest(TABLE, *(row(number, payload={"text": "x" * 30_000}) for number in range(8)))

    with EventhouseClient(access_to(kusto_server, max_page_bytes=100_000)) as client:
        pages = poll_all(client, claims())

    assert sorted(traces(pages)) == expected(0, 7)
    assert max(len(page.events) for page in pages) < 4


def test_a_single_row_that_is_too_large_is_refused_with_what_to_do(
    client: EventhouseClient, kusto_server: KustoServer, database: Database
) -> None:
    database.ingest(TABLE, row(1))
    kusto_server.page_limit = 0

    with pytest.raises(QueryRejectedError, match=r"single row is too large.*steps"):
        poll(client, claims(), None)


def test_the_query_s_steps_choose_rows_and_columns(client: EventhouseClient, database: Database) -> None:
    database.ingest(TABLE, row(1), row(2, event_type="other"), row(3))
    steps = "| where event_type == 'other'\n| project EventId, trace_id, _ingest_at"

    assert traces(poll_all(client, claims(steps=steps))) == ["trace-00002"]


def test_steps_that_lose_the_ingestion_time_are_refused_by_name(client: EventhouseClient, database: Database) -> None:
    database.ingest(TABLE, row(1))

    with pytest.raises(QueryRejectedError, match="must keep the column _ingest_at"):
        poll(client, claims(steps="| project EventId"), None)


def test_the_same_key_is_the_same_event_however_often_it_is_ingested(
    client: EventhouseClient, database: Database
) -> None:
    database.ingest(TABLE, row(1))
    first = poll(client, claims(), None)
    database.ingest(TABLE, row(1, trace_id="another"))
    second = poll(client, claims(), first.position)

    assert first.events[0].event_id == second.events[0].event_id
    assert first.events[0].event_id.startswith("eventhouse:claims:")


def test_rows_without_a_key_are_known_by_their_content(client: EventhouseClient, database: Database) -> None:
    database.ingest(TABLE, row(1, EventId=""), row(2, EventId=None), row(3, EventId=None))

    page = poll(client, claims(), None)

    assert len({event.event_id for event in page.events}) == 3


def test_a_key_of_two_columns_keeps_them_apart(client: EventhouseClient, database: Database) -> None:
    database.ingest(TABLE, row(1, EventId="a", trace_id="bc"), row(2, EventId="ab", trace_id="c"))

    page = poll(client, claims(key=["EventId", "trace_id"]), None)

    assert len({event.event_id for event in page.events}) == 2


def test_a_failure_leaves_nothing_lost(client: EventhouseClient, kusto_server: KustoServer, database: Database) -> None:
    database.ingest(TABLE, *rows(1, 5))
    first = poll(client, claims(page_rows=2), None)
    kusto_server.fail_next(Fault.ERROR_AMONG_ROWS)
    with pytest.raises(EventhouseUnavailableError):
        poll(client, claims(page_rows=2), first.position)

    rest = poll_all(client, claims(page_rows=2), first.position)

    assert sorted(traces([first, *rest])) == expected(1, 5)


def test_a_database_without_cursors_is_refused_with_the_other_mode_as_remedy(
    client: EventhouseClient, kusto_server: KustoServer, database: Database
) -> None:
    database.ingest(TABLE, row(1))
    kusto_server.database.has_cursors = False

    with pytest.raises(QueryRejectedError, match=r"cannot be used with streaming ingestion.*mode: window"):
        poll(client, claims(), None)
    assert traces(poll_all(client, claims(mode="window"))) == ["trace-00001"]


def test_a_table_without_ingestion_times_is_an_error_not_an_empty_window(
    client: EventhouseClient, database: Database
) -> None:
    database.ingest(TABLE, row(1))
    database.tables[TABLE].has_ingestion_times = False

    with pytest.raises(QueryRejectedError, match=f"alter table {TABLE} policy ingestiontime true"):
        poll(client, claims(mode="window"), None)


def test_an_empty_table_is_an_empty_page(client: EventhouseClient, database: Database) -> None:
    assert database.tables[TABLE].rows == []
    for mode in ("cursor", "window"):
        page = poll(client, claims(mode=mode), None)
        assert (page.events, page.more) == ([], False)


def test_another_mode_begins_again_with_the_same_ids(client: EventhouseClient, database: Database) -> None:
    database.ingest(TABLE, *rows(1, 3))
    by_cursor = poll(client, claims(), None)

    by_time = poll(client, claims(mode="window"), by_cursor.position)

    assert [event.event_id for event in by_time.events] == [event.event_id for event in by_cursor.events]
