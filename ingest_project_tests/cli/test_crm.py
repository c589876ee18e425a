"""`ingest crm unidentified`: unidentified messages, their reasons, and retries."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest

from ingest_project.contracts.crm_event import CrmKind
from ingest_project.operations import SystemResources
from ingest_project.platform.database import reading, writing
from ingest_project.streams.crm.records import count
from ingest_project.streams.crm.unidentified import MessagePosition, Unidentified, keep
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.streams.crm.messages import encoded, opportunity, row_of

NOW = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
# The first as if a fix had come since: the rules of today know it.
PAYLOADS = (encoded(opportunity()), b"not JSON \x1b[31m", b"\xff\xfe")
FIXED, TEXT, BYTES = (f"sales_events-0-{offset}" for offset in range(3))


@pytest.fixture(autouse=True)
def _three_messages(services: SystemResources) -> None:
    messages = []
    for offset, payload in enumerate(PAYLOADS):
        found = row_of(payload)
        reason = found if isinstance(found, str) else "Unknown at the time."
        messages.append(
            Unidentified(
                position=MessagePosition("sales_events", "", 0, offset),
                timestamp=NOW,
                key=None,
                headers=(("trace", b"x"),),
                payload=payload,
                reason=reason,
                error_class="UnreadableMessageError",
            )
        )
    with writing(services.engine) as connection:
        keep(connection, messages, NOW)


def test_messages_are_listed_with_their_reasons(ingest: Ingest) -> None:
    listed = ingest("crm", "unidentified", "list")
    assert listed.exit_code == 0
    assert all(text in listed.out for text in (FIXED, TEXT, BYTES, "Not JSON", "Not UTF-8"))
    found = ingest("crm", "unidentified", "list", "--json", "--limit", "2").json
    assert [message["message_id"] for message in found["messages"]] == [FIXED, TEXT]
    assert found["more"] is True
    assert ingest("crm", "unidentified", "list", "--search", "utf-8").out.count("sales_events") == 1
    assert "No such messages" in ingest("crm", "unidentified", "list", "--search", "nowhere").err


def test_a_message_is_shown_whole_and_cannot_reach_the_terminal(ingest: Ingest) -> None:
    shown = ingest("crm", "unidentified", "show", TEXT)
    assert shown.exit_code == 0
    assert "sales_events[0]@1" in shown.out
    assert r"not JSON \x1b[31m" in shown.out
    assert "Not UTF-8" in ingest("crm", "unidentified", "show", BYTES).out
    as_json = ingest("crm", "unidentified", "show", BYTES, "--json").json
    assert base64.b64decode(as_json["payload"]) == PAYLOADS[2]


def test_a_retry_stores_newly_identified_messages_and_names_the_others(
    ingest: Ingest, services: SystemResources
) -> None:
    done = ingest("crm", "unidentified", "retry", "--all", "--json")
    assert done.exit_code == 0
    assert done.json == {"identified": [FIXED], "unidentified": [TEXT, BYTES]}
    with reading(services.engine) as connection:
        assert count(connection, CrmKind.OPPORTUNITY) == 1
    assert FIXED not in ingest("crm", "unidentified", "list").out
    assert "became opportunity opp_1" in ingest("crm", "unidentified", "list", "--all").out
    assert "opportunity opp_1" in ingest("crm", "unidentified", "show", FIXED).out


def test_a_named_message_that_is_still_not_identified_is_exit_code_1(ingest: Ingest) -> None:
    result = ingest("crm", "unidentified", "retry", TEXT)
    assert result.exit_code == 1
    assert "still not identified" in result.err
    assert ingest("crm", "unidentified", "retry", FIXED).out.startswith(f"{FIXED} is identified and stored.")


def test_a_misspelt_id_changes_nothing(ingest: Ingest, services: SystemResources) -> None:
    result = ingest("crm", "unidentified", "retry", FIXED, "sales_events-7")
    assert result.exit_code == 1
    assert "sales_events-7" in result.err
    with reading(services.engine) as connection:
        assert count(connection, CrmKind.OPPORTUNITY) == 0
    assert ingest("crm", "unidentified", "show", "sales_events").exit_code == 1


@pytest.mark.parametrize("arguments", [[], ["--all", FIXED]])
def test_an_ambiguous_selection_of_messages_to_retry_is_wrong_usage(ingest: Ingest, arguments: list[str]) -> None:
    assert ingest("crm", "unidentified", "retry", *arguments).exit_code == 2
