"""Each record once, in its newest version, exact, for any order and repetition of its versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any, NamedTuple

import polars as pl
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest_project.contracts.crm_event import CrmKind
from ingest_project.platform.database import open_engine, reading, writing
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.crm.records import opportunities, out_of_range, projects
from ingest_project.streams.crm.sink import identify, upsert
from ingest_project_tests.fuzz import examples
from ingest_project_tests.streams.crm.messages import encoded, opportunity, project

NOW = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    opened = open_engine(database_url)
    yield opened
    opened.dispose()


class Placed(NamedTuple):
    """A message and its position."""

    raw: bytes
    offset: int = 0
    topic_id: str = "g"
    epoch: int = 0
    partition: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def frame(self) -> pl.DataFrame:
        """The row that it becomes."""
        message = ConsumerRecord("sales_events", self.partition, self.offset, None, None, self.raw, self.headers)
        found = identify([message], self.topic_id, self.epoch)
        return next(frame for kind in CrmKind if not (frame := found.frame(kind)).is_empty())


def placed(raw: bytes, offset: int = 0, topic_id: str = "g", epoch: int = 0) -> Placed:
    return Placed(raw, offset, topic_id, epoch)


def store(engine: sa.Engine, *events: Placed, kind: CrmKind = CrmKind.OPPORTUNITY) -> int:
    """Store messages together; returns how many rows changed."""
    with writing(engine) as connection:
        return upsert(connection, kind, pl.concat([one.frame for one in events]), NOW) if events else 0


def rows(engine: sa.Engine, table: sa.Table = opportunities) -> list[dict[str, Any]]:
    with reading(engine) as connection:
        return [dict(row) for row in connection.execute(sa.select(table).order_by("event_id")).mappings()]


def test_a_record_is_stored_exactly_as_it_was_sent(engine: sa.Engine) -> None:
    message = opportunity(region="ü", custom={"n": 1})
    message["meta_data"] |= {"nested": {"a": [1, None, "x"]}}
    store(engine, placed(encoded(message, amount="12345678901234567890.10", probability="33.30"), 7))
    (row,) = rows(engine)
    assert (row["amount"], str(row["amount"])) == (Decimal("12345678901234567890.10"), "12345678901234567890.10")
    assert str(row["probability"]) == "33.30"
    assert row["expected_close_date"] == date(2024, 6, 30)
    assert row["last_modified"] == datetime(2024, 3, 24, 20, 40, 35, tzinfo=UTC)
    assert (row["tags"], row["source"], row["notes"]) == (["enterprise"], "Salesforce", "…")
    assert row["meta_data"] == message["meta_data"]
    assert row["other_fields"] == {"region": "ü", "custom": {"n": 1}}
    assert (row["kafka_topic"], row["kafka_partition"], row["kafka_offset"]) == ("sales_events", 0, 7)
    store(engine, placed(encoded(project(), budget="0.10")), kind=CrmKind.PROJECT)
    (row,) = rows(engine, projects)
    assert (str(row["budget"]), row["start_date"], row["end_date"]) == ("0.10", date(2024, 3, 1), date(2024, 8, 15))


def test_nulls_stay_nulls(engine: sa.Engine) -> None:
    nothing: dict[str, Any] = dict.fromkeys(["amount", "probability", "expected_close_date", "account_id", "owner_id"])
    store(engine, placed(encoded(opportunity(**nothing, meta_data={"last_modified": "2024-03-24T20:40:35Z"}))))
    (row,) = rows(engine)
    assert {row[name] for name in (*nothing, "source", "notes")} == {None}
    with reading(engine) as connection:
        query = "SELECT count(*) FROM opportunities WHERE tags IS NULL AND other_fields IS NULL"
        assert connection.execute(sa.text(query)).scalar() == 1


def test_an_older_version_never_overwrites_a_newer_one(engine: sa.Engine) -> None:
    new = placed(encoded(opportunity(last_modified="2024-03-24T20:40:35.000002Z", stage="Won")), 1)
    old = placed(encoded(opportunity(last_modified="2024-03-24T22:40:35.000001+02:00", stage="Lost")), 2)
    assert store(engine, new) == 1
    assert store(engine, old) == 0
    assert [row["stage"] for row in rows(engine)] == ["Won"]
    newest = placed(encoded(opportunity(last_modified="2024-03-25T00:00:00Z", stage="Reopened")), 3)
    assert store(engine, newest, old) == 1
    assert [row["stage"] for row in rows(engine)] == ["Reopened"]


def test_the_same_message_again_changes_nothing(engine: sa.Engine) -> None:
    raw = encoded(opportunity())
    assert store(engine, placed(raw, 5)) == 1
    before = rows(engine)
    assert store(engine, placed(raw, 5), placed(raw, 5), placed(raw, 3)) == 0
    assert rows(engine) == before


@pytest.mark.parametrize("chunks", [1, 2])
def test_at_equal_times_the_later_offset_of_a_partition_wins(engine: sa.Engine, chunks: int) -> None:
    earlier = placed(encoded(opportunity(stage="Won")), 1)
    later = placed(encoded(opportunity(stage="Reopened")), 2)
    for first, second in ((earlier, later), (later, earlier), (earlier, later)):
        deliveries = [[first], [second]] if chunks == 2 else [[first, second]]
        for delivery in deliveries:
            store(engine, *delivery)
        (row,) = rows(engine)
        assert (row["stage"], row["kafka_offset"]) == ("Reopened", 2)


def test_a_recreated_topic_is_later_than_the_one_before_whatever_its_offsets(engine: sa.Engine) -> None:
    old = placed(encoded(opportunity(stage="Old")), 900, topic_id="z", epoch=0)
    new = placed(encoded(opportunity(stage="New")), 0, topic_id="a", epoch=1)
    store(engine, new)
    store(engine, old)
    assert [row["stage"] for row in rows(engine)] == ["New"]


def test_the_trace_of_the_message_that_brought_the_version_is_stored(engine: sa.Engine) -> None:
    store(engine, placed(encoded(opportunity()), 1)._replace(headers=(("trace-id", b"t-1"),)))
    assert [row["trace_id"] for row in rows(engine)] == ["t-1"]
    store(engine, placed(encoded(opportunity()), 2))
    assert [row["trace_id"] for row in rows(engine)] == [None]


VERSIONS = st.builds(
    lambda event_id, day, stage, amount: encoded(
        opportunity(f"opp_{event_id}", f"2024-03-0{day}T00:00:00Z", stage=stage), amount=amount
    ),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from(["Won", "Lost"]),
    st.sampled_from(["1", "1.0", "2"]),
)
# Every life of a topic has one epoch. The names are such that no order of text gives the order of the lives.
PLACES = st.tuples(st.sampled_from([("Ä", 0), ("z", 1), ("B", 2), ("a", 3)]), st.integers(0, 2), st.integers(0, 9))


def model(events: Sequence[Placed]) -> dict[str, tuple[str, Decimal, int, int, int]]:
    """Apply the messages one by one in their total order: the last version of each record is what must be stored."""
    found = {}
    messages = [(json.loads(one.raw, parse_float=Decimal), one) for one in events]
    for message, place in sorted(
        messages, key=lambda one: (one[0]["meta_data"]["last_modified"], one[1].epoch, one[1].partition, one[1].offset)
    ):
        kept = (message["stage"], Decimal(message["amount"]), place.epoch, place.partition, place.offset)
        found[message["event_id"]] = kept
    return found


@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(messages=st.dictionaries(PLACES, VERSIONS, min_size=1, max_size=8), data=st.data())
def test_any_order_any_chunks_and_any_repetition_of_the_same_messages_equal_the_total_order(
    engine: sa.Engine, messages: Mapping[tuple[tuple[str, int], int, int], bytes], data: st.DataObject
) -> None:
    events = [
        Placed(raw, offset, life, epoch, partition) for ((life, epoch), partition, offset), raw in messages.items()
    ]
    again = data.draw(st.permutations([*events, *data.draw(st.lists(st.sampled_from(events), max_size=4))]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(again)), max_size=3)))
    with writing(engine) as connection:
        connection.execute(sa.delete(opportunities))
    for first, end in pairwise([0, *cuts, len(again)]):
        store(engine, *again[first:end])
    places = ("stage", "amount", "kafka_epoch", "kafka_partition", "kafka_offset")
    assert {row["event_id"]: tuple(row[name] for name in places) for row in rows(engine)} == model(events)


def test_many_rows_are_stored_as_a_few_are_however_their_json_is_laid_out(engine: sa.Engine) -> None:
    meta = '{\n\t"last_modified": "2024-03-24T20:40:35Z",\r\n "notes": "a\\\\b\\n\\t\\"c\\\\.", "tags": null}'
    raws = [
        encoded(opportunity(f"opp_{number:04}", name=f"deal\t{number}\\N", meta_data=None, region="\\."))
        .replace(b'"meta_data": null', b'"meta_data": ' + meta.encode())
        .replace(b"50000", b"%d.5" % number)
        for number in range(600)
    ]
    messages = [ConsumerRecord("sales_events", 0, offset, None, None, raw, ()) for offset, raw in enumerate(raws)]
    frame = identify(messages, "g").frame(CrmKind.OPPORTUNITY)
    with writing(engine) as connection:
        assert upsert(connection, CrmKind.OPPORTUNITY, frame, NOW) == 600
    together = rows(engine)
    with writing(engine) as connection:
        connection.execute(sa.delete(opportunities))
    for first in range(0, 600, 100):
        with writing(engine) as connection:
            upsert(connection, CrmKind.OPPORTUNITY, frame[first : first + 100], NOW)
    assert rows(engine) == together
    assert together[7]["meta_data"]["notes"] == 'a\\b\n\t"c\\.'
    assert (together[7]["name"], together[7]["other_fields"]) == ("deal\t7\\N", {"region": "\\."})


def test_amounts_and_probabilities_out_of_range_are_counted(engine: sa.Engine) -> None:
    store(
        engine,
        placed(encoded(opportunity("opp_a"), amount="-0.01")),
        placed(encoded(opportunity("opp_b"), probability="100.5")),
        placed(encoded(opportunity("opp_c"), probability="-1")),
        placed(encoded(opportunity("opp_d"), amount="0", probability="100")),
        placed(encoded(opportunity("opp_e"), amount="null", probability="null")),
    )
    store(engine, placed(encoded(project(), budget="-1")), kind=CrmKind.PROJECT)
    with reading(engine) as connection:
        assert out_of_range(connection, CrmKind.OPPORTUNITY) == 3
        assert out_of_range(connection, CrmKind.PROJECT) == 1
