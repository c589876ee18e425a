"""Each record once, in its newest version, exact, in whatever order and however often its versions come."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest_project.database.crm_tables import opportunities, projects
from ingest_project.database.engine import open_engine, reading, writing
from ingest_project.messages.crm_event import CrmKind, decode_crm_event
from ingest_project.stores.crm_records import PlacedEvent, Position, Upserted, out_of_range, upsert
from ingest_project_tests.crm.messages import encoded, opportunity, project

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOW = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    opened = open_engine(database_url)
    yield opened
    opened.dispose()


def placed(raw: bytes, offset: int = 0) -> PlacedEvent:
    return PlacedEvent(decode_crm_event(raw), Position("sales_events", "g", 0, offset))


def store(engine: sa.Engine, *events: PlacedEvent, kind: CrmKind = CrmKind.OPPORTUNITY) -> Upserted:
    with writing(engine) as connection:
        return upsert(connection, kind, events, NOW)


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
    assert store(engine, new) == Upserted(1, 1)
    assert store(engine, old) == Upserted(1, 0)
    assert [row["stage"] for row in rows(engine)] == ["Won"]
    newest = placed(encoded(opportunity(last_modified="2024-03-25T00:00:00Z", stage="Reopened")), 3)
    assert store(engine, newest, old) == Upserted(2, 1)
    assert [row["stage"] for row in rows(engine)] == ["Reopened"]


def test_the_same_version_again_changes_nothing(engine: sa.Engine) -> None:
    raw = encoded(opportunity())
    assert store(engine, placed(raw, 5)) == Upserted(1, 1)
    before = rows(engine)
    assert store(engine, placed(raw, 5), placed(raw, 9)) == Upserted(2, 0)
    assert rows(engine) == before


VERSIONS = st.builds(
    lambda event_id, day, stage, amount: encoded(
        opportunity(f"opp_{event_id}", f"2024-03-0{day}T00:00:00Z", stage=stage), amount=amount
    ),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from(["Won", "Lost"]),
    st.sampled_from(["1", "1.0", "2"]),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(messages=st.lists(VERSIONS, min_size=1, max_size=8), data=st.data())
def test_any_order_and_any_repetition_of_the_same_messages_gives_the_same_rows(
    engine: sa.Engine, messages: Sequence[bytes], data: st.DataObject
) -> None:
    events = [placed(raw, offset) for offset, raw in enumerate(messages)]

    def after(deliveries: Sequence[Sequence[PlacedEvent]]) -> list[dict[str, Any]]:
        with writing(engine) as connection:
            connection.execute(sa.delete(opportunities))
        for delivery in deliveries:
            store(engine, *delivery)
        return rows(engine)

    expected = after([[event] for event in events])
    again = data.draw(st.permutations([*events, *data.draw(st.lists(st.sampled_from(events), max_size=4))]))
    cut = data.draw(st.integers(0, len(again)))
    assert after([again[:cut], again[cut:]]) == expected
    assert after([again]) == expected


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
