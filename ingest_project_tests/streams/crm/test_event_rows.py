"""OpportunityEvent and ProjectEvent: distinguished by their fields, exact, and rejected in doubt."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.contracts import MAX_MESSAGE_BYTES
from ingest_project.contracts.crm_event import CrmKind
from ingest_project_tests.fuzz import examples
from ingest_project_tests.streams import hostile
from ingest_project_tests.streams.crm.messages import encoded, opportunity, project, row_of, rows_of


def without(message: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != name}


def refused(raw: bytes | None) -> str:
    reason = row_of(raw)
    assert isinstance(reason, str), reason
    return reason


def decoded(raw: bytes) -> tuple[CrmKind, dict[str, Any]]:
    found = row_of(raw)
    assert not isinstance(found, str), found
    return found


@settings(deadline=None, max_examples=examples(300))
@given(
    messages=st.lists(
        hostile.messages([opportunity(), project(), opportunity("42"), project(account_id=None)]),
        min_size=1,
        max_size=4,
    )
)
def test_the_outcome_of_a_message_does_not_depend_on_its_neighbours(messages: list[bytes]) -> None:
    alone = [row_of(raw) for raw in messages]
    for offset, (one, among_others) in enumerate(zip(alone, rows_of(messages), strict=True)):
        assert among_others == (one if isinstance(one, str) else (one[0], one[1] | {"kafka_offset": offset}))


def test_the_contracts_examples_are_accepted_unchanged() -> None:
    kind, deal = decoded(encoded(opportunity("opp_123456789"), amount="50000.00"))
    assert (kind, deal["event_id"], deal["amount"]) == (CrmKind.OPPORTUNITY, "opp_123456789", "50000.00")
    assert deal["expected_close_date"] == date(2024, 6, 30)
    assert deal["last_modified"] == datetime(2024, 3, 24, 20, 40, 35, tzinfo=UTC)
    assert (deal["source"], deal["tags"], deal["notes"]) == ("Salesforce", '["enterprise"]', "…")
    assert deal["other_fields"] is None
    kind, work = decoded(encoded(project(), budget="150000.00"))
    assert (kind, work["budget"], work["start_date"]) == (CrmKind.PROJECT, "150000.00", date(2024, 3, 1))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", "0.1"),
        ("12345678901234567890.12345678901234567890", "12345678901234567890.12345678901234567890"),
        ("1.5e3", "1500"),
        ("2E-2", "0.02"),
        ("-17.50", "-17.50"),
        ("-0", "0"),
        ("0.00", "0.00"),
        ("0e9999", "0"),
        ("123123123123123123123123123123", "123123123123123123123123123123"),
        ("null", None),
    ],
)
def test_an_amount_is_the_number_that_is_written(text: str, value: str | None) -> None:
    assert decoded(encoded(opportunity(), amount=text))[1]["amount"] == value


@pytest.mark.parametrize(
    "text",
    ["NaN", "Infinity", '"50000.00"', "true", "[1]", "{}", "1e400", "1e-400", "1e30", "9" * 31, "1" * 5_000, '"NaN"'],
)
def test_an_amount_that_is_no_number_or_beyond_every_limit_is_refused(text: str) -> None:
    refused(encoded(opportunity(), amount=text))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (without(opportunity(), "amount"), "for an opportunity it lacks amount"),
        (without(project(), "status"), "for a project it lacks status"),
        (without(opportunity(), "account_id"), "It is an opportunity without account_id"),
        (without(opportunity(), "meta_data"), "without meta_data"),
        (opportunity("proj_7"), "the fields of an opportunity and the event_id of a project"),
        (project("opp_7"), "the fields of a project and the event_id of an opportunity"),
        (project("7") | opportunity("7"), "all fields of an opportunity and all of a project"),
        ({"event_id": "7", "name": "x"}, "none of their fields"),
        (opportunity() | {"event_id": None}, "event_id"),
        (opportunity(event_id=" "), "event_id"),
        (opportunity("x" * 201), "at most 200"),
        (opportunity(name=5), "Not an opportunity: $.name must be text, is a whole number"),
        (opportunity(name=""), "name must not be empty"),
        (opportunity(stage=None), "$.stage must be text, is null"),
        (opportunity(owner_id=["x"]), "$.owner_id must be text, is a list"),
        (opportunity(expected_close_date="2024-02-30"), "$.expected_close_date must be a date like 2026-01-15"),
        (opportunity(expected_close_date="30.06.2024"), "$.expected_close_date must be a date like 2026-01-15"),
        (opportunity(meta_data=[]), "meta_data: it must be an object, is a list"),
        (opportunity(meta_data={}), "meta_data: last_modified is missing"),
        (opportunity(last_modified="yesterday"), "last_modified must be a time"),
        (opportunity(last_modified="0001-01-01T00:00:00+23:59"), "last_modified must be a time"),
        (
            opportunity(meta_data={"last_modified": 1711312835}),
            "meta_data: $.last_modified must be text, is a whole number",
        ),
        (
            opportunity(meta_data={"last_modified": "2024-03-24T20:40:35Z", "tags": "one"}),
            "$.tags must be a list, is text",
        ),
        (
            opportunity(meta_data={"last_modified": "2024-03-24T20:40:35Z", "tags": [1]}),
            "$.tags[0] must be text, is a whole number",
        ),
    ],
)
def test_ambiguous_messages_are_refused_with_a_reason_that_names_the_field(
    message: dict[str, Any], reason: str
) -> None:
    assert reason in refused(json.dumps(message).encode())


def test_an_id_decides_where_the_fields_would_allow_both() -> None:
    both = project("x") | opportunity("x")
    for event_id, kind, others in (
        ("opp_x", CrmKind.OPPORTUNITY, {"status", "start_date", "end_date", "budget"}),
        ("proj_x", CrmKind.PROJECT, {"stage", "amount", "probability", "expected_close_date"}),
    ):
        found, row = decoded(json.dumps(both | {"event_id": event_id}).encode())
        assert found is kind
        assert set(json.loads(row["other_fields"])) == others


def test_the_fields_decide_where_the_id_says_nothing() -> None:
    assert decoded(encoded(opportunity("42")))[0] is CrmKind.OPPORTUNITY
    assert decoded(encoded(project("42")))[0] is CrmKind.PROJECT


def test_fields_outside_the_contract_are_kept() -> None:
    message = opportunity(region="EMEA", custom={"a": [1, None]})
    message["meta_data"] |= {"score": 0.1, "nested": {"ü": [1]}}
    _, row = decoded(json.dumps(message).encode())
    assert json.loads(row["other_fields"]) == {"region": "EMEA", "custom": {"a": [1, None]}}
    assert json.loads(row["meta_data"]) == message["meta_data"]


def test_an_amount_that_is_there_twice_is_refused_however_it_is_written() -> None:
    raw = encoded(opportunity())
    for twin in (b'"amount":1,"amount"', b'"\\u0061mount":1,"amount"'):
        assert "amount occurs 2 times" in refused(raw.replace(b'"amount"', twin))
    assert "last_modified occurs 2 times" in refused(
        raw.replace(b'"last_modified"', b'"last_modified":"2020-01-01T00:00:00Z","last_modified"')
    )


@pytest.mark.parametrize("number", [0, 300])
def test_a_name_that_is_there_twice_refuses_its_message_alone_wherever_it_is(number: int) -> None:
    raw = encoded(opportunity(custom={"amount": 1}, notes='"amount": 1'))
    inner = raw.replace(b'"amount": 1}', b'"a": [{"amount": 1, "\\u0061mount": 2}]}')
    bad = {
        "custom occurs 2 times": raw.replace(b'"custom"', b'"custom": 1, "custom"'),
        "custom.a.amount occurs 2 times": inner,
        "meta_data.score occurs 3 times": raw.replace(b'"source"', b'"score": 1, "score": 1, "score": 2, "source"'),
        "meta_data.deep.a occurs 2 times": raw.replace(b'"source"', b'"deep": {"a": "\\"a\\":", "a": 1}, "source"'),
    }
    assert raw not in bad.values()
    *good, first, second, third, last = rows_of([raw] * number + list(bad.values()))
    assert not any(isinstance(row, str) for row in good)
    for found, reason in zip((first, second, third, last), bad, strict=True):
        assert reason in found, found


def test_a_time_without_zone_is_utc_and_one_with_a_zone_is_made_so() -> None:
    _, naive = decoded(encoded(opportunity(last_modified="2024-03-24T20:40:35")))
    _, offset = decoded(encoded(opportunity(last_modified="2024-03-24T22:40:35+02:00")))
    assert naive["last_modified"] == offset["last_modified"] == datetime(2024, 3, 24, 20, 40, 35, tzinfo=UTC)


def test_a_byte_order_mark_is_no_part_of_the_message() -> None:
    assert decoded(b"\xef\xbb\xbf" + encoded(opportunity()))[1]["event_id"] == "opp_1"


def test_nul_characters_become_a_character_that_every_database_keeps() -> None:
    _, row = decoded(encoded(opportunity(name="a\x00b", notes=r"\u0000")))
    assert row["name"] == "a\ufffdb"
    assert json.loads(row["other_fields"]) == {"notes": r"\u0000"}


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b"{",
        b"[" * 100_000,
        b"{}" * 2,
        b" " * (MAX_MESSAGE_BYTES + 1),
    ],
    ids=lambda raw: str(raw)[:12],
)
def test_json_that_is_not_an_object_is_refused(raw: bytes | None) -> None:
    refused(raw)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({*opportunity(), *project(), "other"})


@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_decoded_or_refused(raw: bytes) -> None:
    refused(raw)


@given(
    changes=st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=6), dropped=st.sets(st.sampled_from(FIELDS))
)
def test_any_object_is_decoded_or_refused(changes: dict[str, Any], dropped: set[str]) -> None:
    for message in (opportunity(), project(), opportunity() | project("7")):
        changed = {name: value for name, value in (message | changes).items() if name not in dropped}
        found = row_of(json.dumps(changed).encode())
        assert isinstance(found, str) or found[1]["event_id"] == changed["event_id"]
