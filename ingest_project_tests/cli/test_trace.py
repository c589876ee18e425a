"""`ingest trace` tells what happened in one trace, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest_project_tests.cli.known_files import arrive, take

if TYPE_CHECKING:
    from ingest_project.resources import Services
    from ingest_project_tests.cli.conftest import Ingest

KEY = "clean.csv~aaaaaaaaaa"


def test_the_story_of_a_trace_is_told_in_the_order_of_time(ingest: Ingest, services: Services) -> None:
    arrive(services, KEY, "other.csv~bbbbbbbbbb")
    take(services, KEY)

    told = ingest("trace", f"trace-of-{KEY}")
    assert told.exit_code == 0
    assert "other.csv" not in told.out
    assert told.out.index("arrived") < told.out.index("taken by a run")
    moments = ingest("trace", f"trace-of-{KEY}", "--json").json["moments"]
    assert [(moment["subject"], moment["what"]) for moment in moments] == [
        (f"file {KEY}", "arrived"),
        (f"file {KEY}", "taken by a run"),
    ]


def test_a_trace_that_is_not_on_record_is_said_with_exit_code_1(ingest: Ingest, services: Services) -> None:
    del services
    told = ingest("trace", "nobody")
    assert told.exit_code == 1
    assert "nobody" in told.err
