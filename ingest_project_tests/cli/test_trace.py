"""`ingest trace` shows what happened in one trace, in order."""

from __future__ import annotations

import msgspec

from ingest_project.operations import SystemResources
from ingest_project.streams.user_activity.event_table import event_rows
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.cli.known_files import arrive, take
from ingest_project_tests.streams.crm.messages import encoded as crm_encoded
from ingest_project_tests.streams.crm.messages import opportunity
from ingest_project_tests.streams.crm.system import store_messages
from ingest_project_tests.streams.user_activity.events import encoded, event, received

KEY = "clean.csv~aaaaaaaaaa"


def test_the_history_of_a_trace_is_shown_in_time_order(ingest: Ingest, services: SystemResources) -> None:
    arrive(services, KEY, "other.csv~bbbbbbbbbb")
    take(services, KEY)

    result = ingest("trace", f"trace-of-{KEY}")
    assert result.exit_code == 0
    assert "other.csv" not in result.out
    assert result.out.index("arrived") < result.out.index("begun by a run")
    moments = ingest("trace", f"trace-of-{KEY}", "--json").json["moments"]
    assert [(moment["subject"], moment["what"]) for moment in moments] == [
        (f"file {KEY}", "arrived"),
        (f"file {KEY}", "begun by a run"),
    ]


def test_a_trace_that_is_not_on_record_is_said_with_exit_code_1(ingest: Ingest, services: SystemResources) -> None:
    del services
    result = ingest("trace", "nobody")
    assert result.exit_code == 1
    assert "nobody" in result.err


def test_events_and_crm_records_of_a_trace_are_in_its_story(ingest: Ingest, services: SystemResources) -> None:
    headers = (("trace-id", b"t-9"),)
    messages = [msgspec.structs.replace(one, headers=headers) for one in received(encoded(event("e9")), b"?")]
    rows = event_rows(messages[:1], "g").table
    services.user_activity.store.append(rows, app_id="test", version=1)
    crm = [msgspec.structs.replace(messages[0], value=crm_encoded(opportunity())), messages[1]]
    store_messages(services, crm)
    moments = ingest("trace", "t-9", "--json").json["moments"]
    assert {(moment["subject"], moment["what"]) for moment in moments} == {
        ("event e9", "page_view"),
        ("opportunities opp_1", "stored"),
        ("message user-activity-events-0-1~g", "unidentified"),
    }
