"""Long random histories of polling with late rows and killed processes."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from ingest_project.attachments.eventhouse.client import EventhouseClient
from ingest_project.attachments.eventhouse.polling import Page, poll, position_from_json
from ingest_project.attachments.eventhouse.queries import DomainQuery
from ingest_project.core.errors import EventhouseUnavailableError
from ingest_project_tests.attachments.eventhouse.samples import TABLE, claims, expected, row
from ingest_project_tests.services.kusto_server import Fault, KustoServer
from ingest_project_tests.services.kusto_tables import Database, seven_digits

OVERLAP = timedelta(seconds=60)
FAULTS = (Fault.THROTTLED, Fault.ERROR_AMONG_ROWS, Fault.WITHOUT_LAST_FRAME, Fault.CUT_IN_THE_MIDDLE)


class Poller:
    """Who polls, saves the position, and publishes each id once, as the caller of `poll` does.

    Attributes:
        delivered: ids in the order of the pages that were saved.
        published: trace ids, in the order they were let out.
    """

    def __init__(self, client: EventhouseClient, query: DomainQuery) -> None:
        self.delivered: list[str] = []
        self.published: list[str] = []
        self._client = client
        self._query = query
        self._saved: str | None = None
        self._sent: set[str] = set()

    def poll(self, *, dies: bool = False) -> bool:
        """Read a page and, unless it dies before that, save it; whether more is waiting."""
        saved = position_from_json(self._saved) if self._saved else None
        try:
            page = poll(self._client, self._query, saved)
        except EventhouseUnavailableError:
            return True
        if not dies:
            self._save(page)
        return page.more or dies

    def _save(self, page: Page) -> None:
        self._saved = page.position.to_json()
        for event in page.events:
            self.delivered.append(event.event_id)
            if event.event_id not in self._sent:
                self._sent.add(event.event_id)
                self.published.append(event.trace_id)


class World:
    """A table that rows come to, late or not, and its clock."""

    def __init__(self, server: KustoServer, database: Database, chance: random.Random) -> None:
        self.rows = 0
        self.clock = datetime(2026, 3, 1, tzinfo=UTC)
        self._server, self._database, self._chance = server, database, chance
        database.now = lambda: self.clock

    def go_on(self) -> None:
        """Let some time pass, in which this and that may happen."""
        self.clock += timedelta(seconds=self._chance.uniform(0, 25))
        for _ in range(self._chance.randrange(4)):
            self._ingest()
        if self._chance.random() < 0.3:
            self._database.assign_cursors(TABLE)
        if self._chance.random() < 0.2:
            self._server.fail_next(self._chance.choice(FAULTS))

    def _ingest(self) -> None:
        late = timedelta(seconds=self._chance.choice([0, 0, 0, self._chance.uniform(0, OVERLAP.total_seconds())]))
        first, self.rows = self.rows + 1, self.rows + self._chance.randrange(1, 6)
        self._database.ingest(
            TABLE,
            *(row(number) for number in range(first, self.rows + 1)),
            at=seven_digits(self.clock - late),
            has_cursor=self._chance.random() < 0.7,
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", ["cursor", "window"])
def test_each_row_is_published_once_whatever_happens(
    client: EventhouseClient, kusto_server: KustoServer, database: Database, mode: str, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    query = claims(mode=mode, page_rows=chance.randrange(1, 8), overlap_seconds=round(OVERLAP.total_seconds()))
    poller, world = Poller(client, query), World(kusto_server, database, chance)
    for _ in range(60):
        world.go_on()
        poller.poll(dies=chance.random() < 0.3)

    kusto_server.faults.clear()
    database.assign_cursors(TABLE)
    for _ in range(3):
        world.clock += OVERLAP
        while poller.poll():
            pass

    assert sorted(poller.published) == expected(1, world.rows)
    if mode == "cursor":
        assert len(poller.delivered) == world.rows
