"""The promises of the outbox, the same on PostgreSQL and SQLite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from ingest_project.platform.database import open_engine
from ingest_project.platform.kafka import publisher
from ingest_project.platform.kafka.publisher import _UNSENT, MessageOutbox


@pytest.fixture
def outbox(database_url: str) -> Iterator[MessageOutbox]:
    engine = open_engine(database_url)
    yield MessageOutbox(engine)
    engine.dispose()


def test_unsent_messages_are_returned_in_order(outbox: MessageOutbox) -> None:
    assert outbox.unsent(["b", "a"]) == ["b", "a"]
    outbox.record_intent("topic", ["a", "b"], {0: 5})
    assert outbox.unsent(["b", "a"]) == ["b", "a"]
    outbox.mark_sent("topic", ["b"])
    outbox.mark_sent("topic", ["b"])
    assert outbox.unsent(["b", "a"]) == ["a"]


def test_an_interrupted_intent_keeps_where_the_topic_ended_first(outbox: MessageOutbox) -> None:
    outbox.record_intent("topic", ["a", "b"], {0: 5, 11: 7})
    outbox.mark_sent("topic", ["b"])
    outbox.record_intent("topic", ["a", "b", "c"], {0: 50, 11: 70})
    assert outbox.interrupted("topic", ["a", "b", "c", "d"]) == {"a": {0: 5, 11: 7}, "c": {0: 50, 11: 70}}
    assert outbox.interrupted("another", ["a"]) == {}


def test_an_intent_that_another_publisher_took_over_no_longer_belongs_to_the_first(
    outbox: MessageOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "YOUNG_SECONDS", 0.1)
    successor = MessageOutbox(outbox._engine)
    is_first_s = outbox.record_intent("topic", ["a", "b"], {0: 5})
    assert is_first_s(["a", "b"])
    assert successor.interrupted("topic", ["b", "c"]) == {"b": {0: 5}}
    is_successor_s = successor.record_intent("topic", ["b", "c"], {0: 50})
    assert not is_first_s(["a", "b"])
    assert is_first_s(["a"])
    assert is_successor_s(["b", "c"])
    assert not outbox.record_intent("topic", ["c"], {0: 60})(["c"])
    successor.mark_sent("topic", ["b", "c"])
    assert not is_successor_s(["b", "c"])


def test_thousands_of_messages_pass_in_bulk(outbox: MessageOutbox) -> None:
    ids = [f"id-{number}" for number in range(12_000)]
    outbox.record_intent("topic", ids, {0: 0})
    assert len(outbox.interrupted("topic", ids)) == 12_000
    outbox.mark_sent("topic", ids)
    assert outbox.unsent(ids) == []
    assert "Seq Scan" not in plan_of_unsent(outbox, ids[:2_000])


def plan_of_unsent(outbox: MessageOutbox, ids: list[str]) -> str:
    """How PostgreSQL looks ids up; empty for SQLite."""
    with outbox._engine.connect() as connection:
        if connection.dialect.name != "postgresql":
            return ""
        return "\n".join(connection.execute(sa.text(f"EXPLAIN {_UNSENT.text}"), {"message_ids": ids}).scalars())
