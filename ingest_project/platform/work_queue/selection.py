"""Select entries of work queues by filters, for operators' actions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from ingest_project.platform.actions import ActionRequest, Parameter, Selection
from ingest_project.platform.capability import UNFINISHED
from ingest_project.platform.database import reading
from ingest_project.platform.database.sql import contains, rows_in


class Filter(NamedTuple):
    """A parameter that narrows a selection, and the function that returns the condition for its value."""

    parameter: Parameter
    condition: Callable[[Any], sa.ColumnElement[bool]]


def entry_filters(key: sa.Column[str], noun: str) -> tuple[Filter, ...]:
    """Return the filters of every work queue: key, reason, error class and time of the last change."""
    columns = key.table.c
    keys = Parameter("key", f"Key of the {noun}; * stands for any characters.", kind="lines")
    return (
        Filter(keys, lambda lines: sa.or_(*(matches(key, line) for line in lines))),
        Filter(Parameter("reason_text", "Text in the reason."), lambda text: contains(text, columns.reason)),
        Filter(Parameter("error_class", "Class of the error."), lambda name: columns.error_class == name),
        Filter(Parameter("since", "Changed then or later.", kind="time"), lambda time: columns.updated_at >= time),
        Filter(Parameter("until", "Changed before.", kind="time"), lambda time: columns.updated_at < time),
    )


def equals(name: str, column: sa.Column[Any], meaning: str, choices: tuple[str, ...] = ()) -> Filter:
    """Return a filter by equality with a column."""
    return Filter(Parameter(name, meaning, choices), lambda value: column == value)


def matches(column: sa.Column[Any], pattern: str) -> sa.ColumnElement[bool]:
    """Match a value, or a pattern if it contains * or ?, ignoring case."""
    if not is_pattern(pattern):
        return column == pattern
    like = re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%").replace("?", "_")
    return column.ilike(like, escape="\\")


def is_pattern(text: str) -> bool:
    """Return True if a text contains * or ?."""
    return "*" in text or "?" in text


def select_entries(
    engine: sa.Engine, key: sa.Column[str], filters: Sequence[Filter], request: ActionRequest, states: Sequence[str]
) -> Selection:
    """Select entries of a work queue, least recently changed first.

    An entry whose full key is given is selected in any finished state. An entry that a run has leased is in progress.

    Args:
            engine: engine of the database.
            key: primary key of the queue's table.
            filters: filters that the request may use.
            request: request with the values.
            states: states of the entries to select.
    """
    columns = key.table.c
    named = [line for line in request.lines("key") if not is_pattern(line)]
    chosen = [sa.or_(columns.state.in_(states), key.in_(named)) if named else columns.state.in_(states)]
    values = ((condition, request.typed(parameter)) for parameter, condition in filters)
    chosen += [condition(value) for condition, value in values if value]
    query = sa.select(key, columns.state, columns.reported_at).where(*chosen)
    with reading(engine) as connection:
        rows = connection.execute(query.order_by(columns.updated_at, key).limit(request.limit)).all()
        total = len(rows)
        if total == request.limit:
            total = int(connection.execute(sa.select(sa.func.count()).where(*chosen)).scalar_one())
        known = set(connection.execute(sa.select(key).where(key.in_(named))).scalars()) if named else set()
    refused = {name: "there is none with this key" for name in named if name not in known}
    in_progress = {
        name: f"it is {state}" if state in UNFINISHED else "a run still reports it"
        for name, state, reported_at in rows
        if state in UNFINISHED or reported_at is None
    }
    keys = tuple(name for name, *_ in rows if name not in in_progress)
    return Selection(keys, total + len(named) - len(known), refused, in_progress=in_progress)


def taken(keys: Sequence[str], done: Collection[str]) -> dict[str, str]:
    """Return the keys that were not done, with the reason: since their selection, a run has begun them."""
    acted_on = frozenset(done)
    return dict.fromkeys((key for key in keys if key not in acted_on), "a run has begun to work on it")


def reopened_since(engine: sa.Engine, key: sa.Column[Any], keys: Sequence[str], since: datetime) -> set[str]:
    """Return the keys of entries that were requested again at or after a time.

    Args:
        engine: engine of the database.
        key: key column of the queue's table.
        keys: keys of the entries to check.
        since: the time.
    """
    query = sa.select(key).where(key.table.c.reopened_at >= since)
    with reading(engine) as connection:
        return {row[0] for row in rows_in(connection, query, key, keys)}
