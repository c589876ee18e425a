"""Actions of operators: dry run, limit, record, and each request once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from threading import Barrier

import pytest

from ingest_project.core.settings import Settings
from ingest_project.operations.actions import ACTIONS, actions_by_capability
from ingest_project.platform import actions
from ingest_project.platform.actions import (
    Action,
    ActionRefusedError,
    ActionRequest,
    ActionsBusyError,
    AlreadyPerformedError,
    Outcome,
    Parameter,
    Performed,
    Selection,
    action_record,
    action_records,
    actions_on_item,
    items_of_action,
    perform,
    time_of,
)
from ingest_project.platform.database import exclusive
from ingest_project.platform.runtime import Runtime

ALL = tuple(f"item-{number}" for number in range(5))


@pytest.fixture
def services(database_url: str) -> Iterator[Runtime]:
    runtime = Runtime(Settings.model_validate({"warehouse": {"database_url": database_url}}))
    yield runtime
    runtime.engine.dispose()


class Painting:
    """An action on a list of items, which knows what it has painted."""

    def __init__(self) -> None:
        self.painted: list[str] = []
        self.error: Exception | None = None

    def action(self) -> Action[Runtime]:
        """The action that paints."""
        return Action(
            name="paint-items",
            title="Paint items",
            noun="item",
            meaning="Paints.",
            parameters=(
                Parameter("colour", "Of the paint.", ("red", "green"), required=True),
                Parameter("since", "Not before.", kind="time"),
            ),
            select=lambda _services, request: Selection(ALL[: request.limit], len(ALL)),
            apply=self._apply,
            acted_on=lambda _services, _record, keys: [key for key in keys if key in self.painted],
        )

    def _apply(self, services: Runtime, request: ActionRequest, keys: Sequence[str]) -> Outcome:
        # Whoever kills it now finds what it was about to do.
        record = action_record(services.engine, request.action_id)
        assert record is not None
        assert record.outcome == "started"
        assert {item.item_key for item in items_of_action(services.engine, request.action_id, 10)} == set(keys)
        self.painted += keys
        if self.error:
            raise self.error
        return Outcome(tuple(keys[1:]), {keys[0]: "too wet"}, "Two coats.")


def request(**given: object) -> ActionRequest:
    return ActionRequest(**{"parameters": {"colour": "red"}, "who": "ada@host", "reason": "spring", **given})  # type: ignore[arg-type]


def test_a_dry_run_changes_and_records_nothing(services: Runtime) -> None:
    painting = Painting()
    shown = perform(services, painting.action(), request(dry_run=True, reason="", limit=2))
    assert (shown.keys, shown.total, shown.remaining) == (ALL[:2], 5, 3)
    assert painting.painted == []
    assert action_records(services.engine) == ()


def test_an_action_is_recorded_with_person_reason_and_the_outcome_of_each_item(services: Runtime) -> None:
    painting = Painting()
    done = perform(services, painting.action(), request(limit=3))
    assert done.outcome == "partly done"
    (record,) = action_records(services.engine, action="paint-items", who="ada")
    assert (record.who, record.reason, record.parameters) == ("ada@host", "spring", {"colour": "red"})
    assert (record.selected, record.remaining, record.done, record.failed) == (3, 2, 2, 1)
    assert (record.outcome, record.detail, record.item_limit) == ("partly done", "Two coats.", 3)
    assert record.finished_at is not None
    first, *_ = items_of_action(services.engine, record.action_id, 10)
    assert (first.item_key, first.outcome, first.reason) == ("item-0", "failed", "too wet")
    assert [one.action_id for one in actions_on_item(services.engine, "item-1")] == [record.action_id]
    assert action_records(services.engine, who="bob") == ()


def test_a_request_that_is_sent_twice_acts_once(services: Runtime) -> None:
    painting, twice = Painting(), request()
    perform(services, painting.action(), twice)
    with pytest.raises(AlreadyPerformedError, match=twice.action_id):
        perform(services, painting.action(), twice)
    assert painting.painted == list(ALL)
    assert len(action_records(services.engine)) == 1


def test_one_of_several_equal_simultaneous_actions_is_performed(services: Runtime) -> None:
    painting, everybody = Painting(), Barrier(3)

    def select(_services: Runtime, _request: ActionRequest) -> Selection:
        wet = tuple(painting.painted)
        # Long enough for all to have selected, if nothing kept them apart.
        time.sleep(0.05)
        left = tuple(key for key in ALL if key not in wet)
        notes = ("Somebody has painted.",) if wet else ()
        return Selection(left, len(ALL), notes=notes, in_progress=dict.fromkeys(wet, "it is wet"))

    action = replace(painting.action(), select=select)

    def one(who: str) -> Performed:
        everybody.wait()
        own = Runtime(services.settings)
        try:
            return perform(own, action, request(who=who))
        finally:
            own.engine.dispose()

    with ThreadPoolExecutor(3) as people:
        found = list(people.map(one, ("ada", "bob", "eve")))
    assert painting.painted == list(ALL)
    assert sorted(one.outcome for one in found) == ["not done", "not done", "partly done"]
    assert sorted(len(one.in_progress) for one in found) == [0, 5, 5]
    records = sorted((one.outcome, one.detail) for one in action_records(services.engine))
    assert records == [*[("not done", "Somebody has painted.")] * 2, ("partly done", "Two coats.")]


def test_an_action_that_waits_too_long_for_another_one_is_refused_and_changes_nothing(
    services: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "TURN_SECONDS", 0.05)
    painting = Painting()
    with (
        exclusive(services.engine, "actions-on-item"),
        pytest.raises(ActionsBusyError, match="another action on such items is still running"),
    ):
        perform(services, painting.action(), request())
    assert (painting.painted, action_records(services.engine)) == ([], ())


def test_records_are_read_a_page_at_a_time_older_and_newer(services: Runtime) -> None:
    ids = [perform(services, Painting().action(), request()).action_id for _ in range(5)]
    newest_first = ids[::-1]

    def page(**edge: str) -> list[str]:
        return [one.action_id for one in action_records(services.engine, limit=2, **edge)]

    assert (page(), page(before=ids[3]), page(before=ids[1])) == (newest_first[:2], newest_first[2:4], [ids[0]])
    assert (page(after=ids[0]), page(after=ids[4]), page(before="unknown")) == ([ids[2], ids[1]], [], newest_first[:2])


def test_an_action_that_raises_is_recorded_as_failed_with_the_reason(services: Runtime) -> None:
    painting = Painting()
    painting.error = ZeroDivisionError("no paint")
    with pytest.raises(ZeroDivisionError):
        perform(services, painting.action(), request())
    (record,) = action_records(services.engine)
    assert (record.outcome, record.failed, record.detail) == ("failed", 5, "no paint")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parameters": {"color": "red"}}, "did you mean colour"),
        ({"parameters": {}}, "needs Colour"),
        ({"parameters": {"colour": "blue"}}, "one of red, green"),
        ({"parameters": {"colour": "red", "since": "yesterday"}}, "no time"),
        ({"limit": 0}, "limit must be between"),
        ({"limit": 10_001}, "limit must be between"),
        ({"reason": " \n"}, "Enter a reason"),
        ({"reason": "x" * 1_001}, "more than 1,000"),
    ],
)
def test_a_wrong_request_is_refused_and_changes_nothing(
    services: Runtime, given: dict[str, object], message: str
) -> None:
    painting = Painting()
    with pytest.raises(ActionRefusedError, match=message):
        perform(services, painting.action(), request(**given))
    assert painting.painted == []
    assert action_records(services.engine) == ()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-01-15", "2026-01-15T00:00:00+00:00"),
        ("2026-01-15T10:30", "2026-01-15T10:30:00+00:00"),
        ("2026-01-15T10:30+02:00", "2026-01-15T08:30:00+00:00"),
        ("90s", "2026-02-01T11:58:30+00:00"),
        ("7d", "2026-01-25T12:00:00+00:00"),
    ],
)
def test_moments_are_times_in_utc_or_how_long_ago(text: str, meant: str) -> None:
    assert time_of(text, datetime(2026, 2, 1, 12, tzinfo=UTC)).isoformat() == meant


def test_every_action_has_a_name_of_its_own_and_says_what_it_does() -> None:
    listed = [action for actions in actions_by_capability().values() for action in actions]
    assert len({action.name for action in listed}) == len(listed) == len(ACTIONS)
    for action in listed:
        assert action.title
        assert action.meaning.endswith(".")
        assert all(parameter.meaning.endswith(".") for parameter in action.parameters)
