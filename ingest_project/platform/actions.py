"""Actions of operators: select items by a filter, preview, act within a limit, and keep a record of who did it and why.

A capability lists its actions; the command line and the browser are generated from them, and both call `perform`. The
record of an action is written before anything changes and completed afterwards. A running action holds a lock that its
process's end releases: an incomplete record whose lock is free belongs to an action that was killed. The monitor, the
audit and the next action of the same name mark that record as interrupted and list the items that were done.
The client chooses the id of an action, so a request that is sent twice acts once. Actions on items of one kind run one
at a time: when several people request the same action, the first request does the work and the others report it done.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
import sqlalchemy as sa
import typer
from sqlalchemy import Column as Col

from ingest_project.core.console import complain, counted, data_text, print_json, say
from ingest_project.core.errors import (
    DatabaseUnavailableError,
    PermanentError,
    TransactionConflictError,
    TransientError,
)
from ingest_project.core.items import as_utc
from ingest_project.core.logging import get_logger
from ingest_project.core.yaml_models import nearest
from ingest_project.platform.database import exclusive, fetch, reading, writing
from ingest_project.platform.database.sql import Json, UtcTime, contains, in_parts, insert_into, metadata
from ingest_project.platform.errors import reason_of
from ingest_project.platform.runtime import Runtime

logger = get_logger(__name__)

DEFAULT_LIMIT, MAX_LIMIT = 100, 10_000
PRINTED_ITEMS = 20
MAX_VALUE_LENGTH, MAX_REASON_LENGTH = 100_000, 1_000
MAX_LINES = 1_000
LAST_ACTIONS = 20
STARTED, DONE, PARTLY_DONE, FAILED, INTERRUPTED = "started", "done", "partly done", "failed", "interrupted"
# Nothing was done, because a run or another process is working on the items.
NOT_DONE = "not done"
# Outcome of an item that was left to the run or process that is working on it.
IN_PROGRESS = "in progress"
# Longest wait for other actions on such items. Most take less than a second, and a person waits for the answer.
TURN_SECONDS = 30.0
# Another process may hold the lock briefly to check whether the action was interrupted.
LOCK_WAIT_SECONDS, LOOK_SECONDS = 10.0, 0.05
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_AGO = re.compile(r"([0-9]{1,5})([smhd])")

operator_actions = sa.Table(
    "operator_actions",
    metadata,
    # Chosen by the client before it sends the request: the same request sent twice is the same action.
    Col("action_id", sa.Text, primary_key=True),
    Col("action", sa.Text, nullable=False),
    Col("who", sa.Text, nullable=False),
    Col("reason", sa.Text, nullable=False),
    Col("parameters", Json, nullable=False),
    Col("item_limit", sa.Integer, nullable=False),
    Col("started_at", UtcTime, nullable=False),
    Col("finished_at", UtcTime),
    Col("outcome", sa.Text, nullable=False),
    Col("selected", sa.Integer, nullable=False),
    # Items that matched beyond the limit.
    Col("remaining", sa.BigInteger, nullable=False),
    Col("done", sa.Integer, nullable=False),
    Col("failed", sa.Integer, nullable=False),
    Col("detail", sa.Text, nullable=False),
    sa.Index("operator_actions_by_time", "started_at"),
)
operator_action_items = sa.Table(
    "operator_action_items",
    metadata,
    Col("action_id", sa.Text, primary_key=True),
    Col("item_key", sa.Text, primary_key=True),
    # Null until the action ends.
    Col("outcome", sa.Text),
    Col("reason", sa.Text),
    sa.Index("operator_action_items_by_item", "item_key"),
)

Services_contra = TypeVar("Services_contra", bound=Runtime, contravariant=True)
Kind = Literal["text", "lines", "time", "file"]


class ActionRefusedError(PermanentError):
    """The request does not match the action's parameters; nothing was changed."""


class AlreadyPerformedError(PermanentError):
    """The same request was sent before; it is not performed twice.

    Args:
        action_id: id of the record of the first request.
    """

    def __init__(self, action_id: str) -> None:
        self.action_id = action_id
        super().__init__(f"This request was performed before: its record is {action_id}.")


class ActionsBusyError(TransientError):
    """Another action on items of the same kind is still running; nothing was changed."""

    def __init__(self) -> None:
        super().__init__(
            f"Nothing was changed: another action on such items is still running after {TURN_SECONDS:g} s. The audit "
            "(ingest audit) shows who started it. Try again when it has ended."
        )


class Parameter(NamedTuple):
    """A value that an action takes.

    Args:
        name: in lower case with underscores; the command line has dashes instead.
        meaning: one sentence for people.
        choices: the accepted values; empty to accept any value.
        required: without it the action is refused.
        kind: `lines` takes several values, one per line; `time` an ISO 8601 time (UTC without a zone) or an age such
            as 2h; `file` the path of a local file, which the browser uploads.
    """

    name: str
    meaning: str
    choices: tuple[str, ...] = ()
    required: bool = False
    kind: Kind = "text"

    @property
    def label(self) -> str:
        """Return the name as words, e.g. `Error class`."""
        return self.name.replace("_", " ").capitalize()


@dataclass(frozen=True, kw_only=True)
class ActionRequest:
    """A request to act.

    Args:
        parameters: values by the names of parameters; those of kind `lines` are separated by newlines.
        limit: maximum number of items to act on.
        reason: for the record; required unless it is a dry run.
        who: `user@host` on the command line, or the viewer's name in the browser.
        dry_run: select only; change and record nothing.
        action_id: identifies the request; a request with a known id is not performed again.
    """

    parameters: Mapping[str, str] = field(default_factory=dict)
    limit: int = DEFAULT_LIMIT
    reason: str = ""
    who: str = ""
    dry_run: bool = False
    action_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def typed(self, parameter: Parameter) -> str | tuple[str, ...] | datetime | None:
        """Return the value of a parameter, converted to the type of its kind."""
        if parameter.kind == "time":
            return self.time(parameter.name)
        return self.lines(parameter.name) if parameter.kind == "lines" else self.value(parameter.name)

    def value(self, name: str) -> str | None:
        """Return the value of a parameter; None where it is not given."""
        return self.parameters.get(name)

    def lines(self, name: str) -> tuple[str, ...]:
        """Return the values of a parameter of kind `lines`."""
        return tuple(dict.fromkeys(line.strip() for line in (self.value(name) or "").splitlines() if line.strip()))

    def time(self, name: str) -> datetime | None:
        """Return the moment of a parameter of kind `time`."""
        value = self.value(name)
        return None if value is None else time_of(value)


class Selection(NamedTuple):
    """Items that an action would act on.

    Args:
        keys: keys of the items to act on, at most `limit`.
        total: number of all matching items, including those beyond the limit and those in `refused` and `in_progress`.
        refused: items that match but cannot be acted on, each with the reason.
        notes: sentences that a person should read before acting.
        in_progress: items that match but that a run or process is working on, each with its name.
    """

    keys: tuple[str, ...]
    total: int
    refused: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    in_progress: Mapping[str, str] = {}

    @property
    def remaining(self) -> int:
        """Items that match beyond the limit."""
        return max(0, self.total - len(self.keys) - len(self.refused) - len(self.in_progress))


class Outcome(NamedTuple):
    """Result of an action.

    Args:
        done: keys of the items.
        failed: the others, each with the reason.
        detail: one or two sentences for a person.
        created: key of an item to the key of the one that was made of it, where its key changes.
        in_progress: items that a run or process has claimed since they were selected, each with its name.
    """

    done: tuple[str, ...]
    failed: Mapping[str, str] = {}
    detail: str = ""
    created: Mapping[str, str] = {}
    in_progress: Mapping[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class Action(Generic[Services_contra]):
    """Something that an operator can do to items.

    Args:
        name: on the command line, e.g. `replay-attachments`.
        title: for people, in the imperative.
        noun: noun for one item.
        meaning: its effect, and that of a second execution.
        parameters: the parameters that it accepts.
        select: finds the items; changes nothing.
        apply: acts on the selected items; one item's failure does not affect the others. Idempotent.
        acted_on: returns the items on which an interrupted action had acted.
        kind: kind of the items, as in `/items/{kind}/{key}`; empty if its items have no page.
    """

    name: str
    title: str
    noun: str
    meaning: str
    parameters: tuple[Parameter, ...]
    select: Callable[[Services_contra, ActionRequest], Selection]
    apply: Callable[[Services_contra, ActionRequest, Sequence[str]], Outcome]
    acted_on: Callable[[Services_contra, ActionRecord, Sequence[str]], Collection[str]]
    kind: str = ""

    @property
    def nouns(self) -> str:
        """Return the plural of the noun."""
        return f"{self.noun[:-1]}ies" if self.noun.endswith("y") else f"{self.noun}s"


class Performed(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a request, dry or not.

    Args:
        action: name of the action.
        action_id: id of the record; empty for a dry run.
        dry_run: nothing was changed.
        keys: items that were selected.
        total: number of items that match.
        remaining: number of matching items beyond the limit.
        done: items that were acted on.
        failed: items that match and could not be acted on, each with the reason.
        detail: for a person.
        created: key of an item to the key of the one that was made of it, where its key changes.
        notes: sentences that a person should read before acting.
        in_progress: items that match but that a run or process was working on, each with its name.
    """

    action: str
    action_id: str
    dry_run: bool
    keys: tuple[str, ...]
    total: int
    remaining: int
    done: tuple[str, ...] = ()
    failed: Mapping[str, str] = {}
    detail: str = ""
    created: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    in_progress: Mapping[str, str] = {}

    @property
    def is_complete(self) -> bool:
        """Return True if no item failed and none was in progress."""
        return not self.failed and not self.in_progress

    @property
    def outcome(self) -> str:
        """Return the outcome for the record."""
        return DONE if self.is_complete else PARTLY_DONE if self.done else FAILED if self.failed else NOT_DONE


class ActionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The record of an action.

    Args:
        finished_at: when it ended; for an interrupted action, when its outcome was determined.
        outcome: STARTED, DONE, PARTLY_DONE, NOT_DONE, FAILED or INTERRUPTED.
        selected: number of items selected, including those that failed or were in progress.
        remaining: number of matching items beyond the limit.
    """

    action_id: str
    action: str
    who: str
    reason: str
    parameters: dict[str, str]
    item_limit: int
    started_at: datetime
    finished_at: datetime | None
    outcome: str
    selected: int
    remaining: int
    done: int
    failed: int
    detail: str

    @property
    def request(self) -> ActionRequest:
        """Return the request that started the action."""
        return ActionRequest(
            parameters=self.parameters,
            limit=self.item_limit,
            reason=self.reason,
            who=self.who,
            action_id=self.action_id,
        )


class ItemOutcome(msgspec.Struct, frozen=True):
    """Outcome of an action for one item.

    Args:
        outcome: `done`, `failed`, `in progress` or `not done`; None where the action has not ended.
        reason: why it was not done, or the key of the item that was made of it.
    """

    item_key: str
    outcome: str | None
    reason: str | None


def perform(services: Services_contra, action: Action[Services_contra], request: ActionRequest) -> Performed:
    """Act on the items that match and record the action; a dry run only selects them.

    Raises:
        ActionRefusedError: a parameter, the limit or the reason is missing or wrong; nothing was changed.
        AlreadyPerformedError: the same request was performed before.
        ActionsBusyError: another action on items of the same kind does not end.
        DatabaseUnavailableError, TransactionConflictError: the database does not answer.
    """
    if not request.dry_run and action_record(services.engine, request.action_id):
        raise AlreadyPerformedError(request.action_id)
    request = checked(action, request)
    if request.dry_run:
        return _selected(services, action, request)
    with _turn(services.engine, action.noun):
        # Settle earlier actions first: the work of this one must not count as that of one that was killed.
        settle_interrupted(services, {action.name: action})
        performed = _selected(services, action, request)
        with exclusive(services.engine, _lock_of(request.action_id), LOCK_WAIT_SECONDS, once=True):
            return _act(services, action, request, performed)


@contextmanager
def _turn(engine: sa.Engine, noun: str) -> Iterator[None]:
    """Wait for other actions on such items to end, so that the selection sees their results."""
    with ExitStack() as held:
        try:
            held.enter_context(exclusive(engine, f"actions-on-{noun.replace(' ', '-')}", TURN_SECONDS))
        except TransactionConflictError:
            raise ActionsBusyError from None
        yield


def _selected(services: Services_contra, action: Action[Services_contra], request: ActionRequest) -> Performed:
    selection = action.select(services, request)
    return Performed(
        action=action.name,
        action_id="" if request.dry_run else request.action_id,
        dry_run=request.dry_run,
        keys=selection.keys,
        total=selection.total,
        remaining=selection.remaining,
        failed=selection.refused,
        notes=selection.notes,
        in_progress=selection.in_progress,
    )


def _act(
    services: Services_contra, action: Action[Services_contra], request: ActionRequest, performed: Performed
) -> Performed:
    _begin(services.engine, action, request, performed)
    try:
        # The notes say why there is nothing to do, e.g. because another person has just done it.
        nothing = Outcome((), detail=" ".join(performed.notes))
        outcome = action.apply(services, request, performed.keys) if performed.keys else nothing
    except Exception as error:
        # Any exception completes the record, which would otherwise show a running action.
        reason = str(error) or type(error).__name__
        lost = msgspec.structs.replace(performed, failed=dict.fromkeys(performed.keys, reason), detail=reason)
        _complete(services.engine, lost)
        raise
    merged = {
        "failed": {**performed.failed, **outcome.failed},
        "in_progress": {**performed.in_progress, **outcome.in_progress},
    }
    performed = msgspec.structs.replace(performed, **outcome._asdict() | merged)
    _complete(services.engine, performed)
    return performed


def settle_interrupted(services: Services_contra, actions: Mapping[str, Action[Services_contra]]) -> None:
    """Complete the records of actions whose process was killed, with the items that they had done. Idempotent.

    Args:
        services: the resources.
        actions: the actions by name; records of other actions are not changed.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    query = sa.select(operator_actions.c.action_id).where(
        operator_actions.c.finished_at.is_(None), operator_actions.c.action.in_(list(actions))
    )
    unfinished = fetch(services.engine, query).scalars().all()
    for action_id in unfinished:
        # A running action holds its lock and is skipped.
        with (
            suppress(TransactionConflictError),
            exclusive(services.engine, _lock_of(action_id), LOOK_SECONDS, once=True),
        ):
            record = action_record(services.engine, action_id)
            if record is not None and record.finished_at is None:
                _settle(services, actions[record.action], record)


def _settle(services: Services_contra, action: Action[Services_contra], record: ActionRecord) -> None:
    own = operator_action_items.c.action_id == record.action_id
    query = sa.select(operator_action_items.c.item_key).where(own, operator_action_items.c.outcome.is_(None))
    keys = list(fetch(services.engine, query).scalars())
    change: dict[str, Any] = {"outcome": INTERRUPTED}
    done: set[str] = set()
    try:
        done = set(keys).intersection(action.acted_on(services, record, keys)) if keys else done
    except (DatabaseUnavailableError, TransactionConflictError):
        raise
    except Exception as error:  # noqa: BLE001 - of one record; the others are settled
        # `finished_at` stays empty, so that the next call tries again.
        change["detail"] = f"Its process ended in the middle. Which items were done is not known: {reason_of(error)}"
    else:
        detail = f"Its process ended in the middle, when {len(done):,} of {len(keys):,} items were done. "
        detail += "Perform it again: nothing is done twice."
        change |= {"finished_at": datetime.now(UTC), "done": len(done), "detail": detail}
    if change["detail"] == record.detail:
        return
    with writing(services.engine) as connection:
        where = operator_actions.c.action_id == record.action_id
        connection.execute(sa.update(operator_actions).where(where).values(change))
        if "finished_at" in change:
            connection.execute(sa.delete(operator_action_items).where(own, operator_action_items.c.outcome.is_(None)))
            _insert_items(
                connection, record.action_id, [(key, DONE if key in done else NOT_DONE, None) for key in keys]
            )
    logger.warning("action_interrupted", action=record.action, id=record.action_id, who=record.who, done=len(done))


def _lock_of(action_id: str) -> str:
    return f"action-{action_id}"


def checked(action: Action[Any], request: ActionRequest) -> ActionRequest:
    """Return the request with its parameters normalised: empty ones removed, times in UTC.

    Raises:
        ActionRefusedError: a parameter, the limit or the reason is unknown, missing or invalid.
    """
    known = {parameter.name: parameter for parameter in action.parameters}
    parameters: dict[str, str] = {}
    for name, value in request.parameters.items():
        if name not in known:
            raise ActionRefusedError(f"{action.name} takes no {name[:50]!r}{nearest(name, known)}")
        if value.strip():
            parameters[name] = _value_of(known[name], value)
    for parameter in action.parameters:
        if parameter.required and parameter.name not in parameters:
            raise ActionRefusedError(f"{action.name} needs {parameter.label}: {parameter.meaning}")
    if not 1 <= request.limit <= MAX_LIMIT:
        raise ActionRefusedError(f"The limit must be between 1 and {MAX_LIMIT:,}.")
    reason = " ".join(request.reason.replace("\x00", "").split())
    if not request.dry_run and not any(one.isprintable() and one != " " for one in reason):
        raise ActionRefusedError("Enter a reason: the record of the action needs one.")
    if len(reason) > MAX_REASON_LENGTH:
        raise ActionRefusedError(f"The reason has more than {MAX_REASON_LENGTH:,} characters.")
    return replace(request, parameters=parameters, reason=reason)


def time_of(text: str, now: datetime | None = None) -> datetime:
    """Parse a time as people type it.

    Args:
        text: `2026-01-15`, `2026-01-15T10:30`, with or without an offset (UTC without one), or an age: `30m`,
            `2h`, `7d`.
        now: the time from which an age is counted back; the current time by default.

    Raises:
        ActionRefusedError: it has neither form.
    """
    if ago := _AGO.fullmatch(text.strip()):
        return (now or datetime.now(UTC)).replace(microsecond=0) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        return as_utc(datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        raise ActionRefusedError(f"{text[:50]!r} is no time: write 2026-01-15T10:30 (UTC) or 2h (ago).") from None


def login_name() -> str:
    """Return the user of the command line for records, as user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def action_records(  # noqa: PLR0913 - each filter is one
    engine: sa.Engine,
    *,
    action: str | None = None,
    who: str | None = None,
    limit: int = 50,
    before: str | None = None,
    after: str | None = None,
) -> tuple[ActionRecord, ...]:
    """Return records of actions, the newest first.

    Args:
        engine: engine of the database.
        action: return only records of the action with this name.
        who: return only records whose `who` contains this text.
        limit: maximum number of records.
        before: return only records that are older than the one with this id.
        after: return only records that are newer than the one with this id, starting with its neighbours.
    """
    columns = operator_actions.c
    place = sa.tuple_(columns.started_at, columns.action_id)
    query = sa.select(operator_actions)
    if edge := action_record(engine, before or after or ""):
        # Keyset pagination: every page costs the same, however far back it is.
        at = sa.tuple_(edge.started_at, edge.action_id, types=[columns.started_at.type, columns.action_id.type])
        query = query.where(place < at if before else place > at)
    if action:
        query = query.where(columns.action == action)
    if who:
        query = query.where(contains(who, columns.who))
    order = [one.asc() if after else one.desc() for one in (columns.started_at, columns.action_id)]
    rows = fetch(engine, query.order_by(*order).limit(limit)).mappings().all()
    return tuple(ActionRecord(**row) for row in (reversed(rows) if after else rows))


def action_record(engine: sa.Engine, action_id: str) -> ActionRecord | None:
    """Return one record."""
    query = sa.select(operator_actions).where(operator_actions.c.action_id == action_id)
    row = fetch(engine, query).mappings().one_or_none()
    return ActionRecord(**row) if row else None


def interrupted_actions(connection: sa.Connection, since: datetime) -> tuple[ActionRecord, ...]:
    """Return the records of interrupted actions that started at or after `since`, newest first."""
    columns = operator_actions.c
    return _last_actions(connection, columns.started_at >= since, columns.outcome == INTERRUPTED)


def items_of_action(engine: sa.Engine, action_id: str, limit: int) -> tuple[ItemOutcome, ...]:
    """Return the items of an action, those that were not done first."""
    columns = operator_action_items.c
    query = sa.select(columns.item_key, columns.outcome, columns.reason).where(columns.action_id == action_id)
    query = query.order_by(columns.outcome.desc(), columns.item_key).limit(limit)
    return tuple(ItemOutcome(*row) for row in fetch(engine, query))


def actions_on_item(engine: sa.Engine, item_key: str) -> tuple[ActionRecord, ...]:
    """Return the records of the actions that selected an item, the newest first."""
    ids = sa.select(operator_action_items.c.action_id).where(operator_action_items.c.item_key == item_key)
    with reading(engine) as connection:
        return _last_actions(connection, operator_actions.c.action_id.in_(ids))


def _last_actions(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> tuple[ActionRecord, ...]:
    query = sa.select(operator_actions).where(*conditions).order_by(operator_actions.c.started_at.desc())
    return tuple(ActionRecord(**row) for row in connection.execute(query.limit(LAST_ACTIONS)).mappings())


def _value_of(parameter: Parameter, value: str) -> str:
    value = value.strip().replace("\x00", "\ufffd")
    if len(value) > MAX_VALUE_LENGTH:
        raise ActionRefusedError(f"{parameter.label} has more than {MAX_VALUE_LENGTH:,} characters.")
    if parameter.choices and value not in parameter.choices:
        raise ActionRefusedError(f"{parameter.label} is one of {', '.join(parameter.choices)}, not {value[:50]!r}.")
    if parameter.kind == "lines" and len(value.splitlines()) > MAX_LINES:
        raise ActionRefusedError(f"{parameter.label} takes at most {MAX_LINES:,} lines.")
    # Store an age as a time: it counts from now, not from when the record is read.
    return data_text(time_of(value)) if parameter.kind == "time" else value


def _begin(engine: sa.Engine, action: Action[Any], request: ActionRequest, found: Performed) -> None:
    """Write the record and its items: those that are about to change and those that are left out."""
    files = {parameter.name for parameter in action.parameters if parameter.kind == "file"}
    # Record only a file's name: its folder is on the operator's machine, or a temporary one of an upload.
    shown = {name: os.path.basename(value) if name in files else value for name, value in request.parameters.items()}  # noqa: PTH119 - text
    row = {
        "action_id": request.action_id,
        "action": action.name,
        "who": request.who,
        "reason": request.reason,
        "parameters": shown,
        "item_limit": request.limit,
        "started_at": datetime.now(UTC),
        "outcome": STARTED,
        "selected": len(found.keys) + len(found.failed) + len(found.in_progress),
        "remaining": found.remaining,
        "done": 0,
        "failed": len(found.failed),
        "detail": "",
    }
    with writing(engine) as connection:
        insert = insert_into(connection, operator_actions).values(row).on_conflict_do_nothing()
        if connection.execute(insert).rowcount != 1:
            raise AlreadyPerformedError(request.action_id)
        _insert_items(connection, request.action_id, [*((key, None, None) for key in found.keys), *_left_out(found)])


def _complete(engine: sa.Engine, performed: Performed) -> None:
    """Complete the record with the outcome of each item."""
    columns = operator_actions.c
    change = {
        "finished_at": datetime.now(UTC),
        "outcome": performed.outcome,
        "done": len(performed.done),
        "failed": len(performed.failed),
        "detail": performed.detail,
    }
    items: list[tuple[str, str | None, str | None]] = [
        (key, DONE, f"as {performed.created[key]}" if key in performed.created else None) for key in performed.done
    ]
    items += _left_out(performed)
    with writing(engine) as connection:
        connection.execute(sa.update(operator_actions).where(columns.action_id == performed.action_id).values(change))
        own = operator_action_items.c.action_id == performed.action_id
        connection.execute(sa.delete(operator_action_items).where(own))
        _insert_items(connection, performed.action_id, items)


def _left_out(performed: Performed) -> Iterable[tuple[str, str | None, str | None]]:
    """Return the items that were not acted on."""
    for outcome, items in ((FAILED, performed.failed), (IN_PROGRESS, performed.in_progress)):
        yield from ((key, outcome, reason) for key, reason in items.items())


def _insert_items(
    connection: sa.Connection, action_id: str, items: Sequence[tuple[str, str | None, str | None]]
) -> None:
    rows = [{"action_id": action_id, "item_key": key, "outcome": end, "reason": why} for key, end, why in items]
    for part in in_parts(rows):
        connection.execute(sa.insert(operator_action_items).values(list(part)))


def perform_command(
    services: Services_contra, action: Action[Services_contra], request: ActionRequest, *, as_json: bool
) -> Performed:
    """Perform an action and print the result.

    Raises:
        typer.BadParameter: the request does not match the action's parameters.
        typer.Exit: with code 1 if some items were not done; never for a dry run.
    """
    try:
        done = perform(services, action, request)
    except ActionRefusedError as error:
        raise typer.BadParameter(str(error)) from error
    print_performed(action, request, done, as_json=as_json)
    if not done.is_complete and not done.dry_run:
        raise typer.Exit(1)
    return done


def print_performed(action: Action[Any], request: ActionRequest, done: Performed, *, as_json: bool) -> None:
    """Print the result of an action, for a person or as one JSON object."""
    if as_json:
        print_json(done)
        return
    for note in done.notes if done.keys or done.dry_run else ():
        complain(note)
    acted = done.keys if done.dry_run else done.done
    what = "would be acted on" if done.dry_run else "done"
    _print_items(acted, lambda key: say(f"{key}, as {done.created[key]}" if key in done.created else key))
    _print_items(tuple(done.failed), lambda key: complain(f"{key}: {done.failed[key]}"))
    _print_items(tuple(done.in_progress), lambda key: complain(f"{key} is in progress: {done.in_progress[key]}"))
    if not done.total:
        say(f"No {action.noun} matches.")
    else:
        failed = f", {len(done.failed):,} {'would fail' if done.dry_run else 'failed'}" if done.failed else ""
        left = f", {len(done.in_progress):,} in progress and left as they are" if done.in_progress else ""
        say(f"{counted(len(acted), action.noun, action.nouns)} {what}{failed}{left}.")
    if done.detail:
        say(done.detail)
    if done.remaining:
        complain(f"{done.remaining:,} more beyond the limit of {request.limit:,}; repeat, or raise --limit.")
    if done.dry_run:
        say("Nothing was changed: this is a dry run.")
    elif done.total:
        say(f"Recorded: ingest audit {done.action_id}")


def _print_items(keys: tuple[str, ...], print_one: Callable[[str], None]) -> None:
    for key in keys[:PRINTED_ITEMS]:
        print_one(key)
    if len(keys) > PRINTED_ITEMS:
        say(f"... and {len(keys) - PRINTED_ITEMS:,} more.")
