"""Select entries of work queues by filters, for the actions of operators."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from ingest_project.platform.actions import ActionRequest, Parameter, Selection
from ingest_project.platform.capability import UNFINISHED
from ingest_project.platform.database import reading
from ingest_project.platform.database.sql import contains, in_parts


class Filter(NamedTuple):
    """A parameter that narrows a selection, and the condition that a value of it means."""

    parameter: Parameter
    condition: Callable[[Any], sa.ColumnElement[bool]]


def entry_filters(key: sa.Column[str], noun: str) -> tuple[Filter, ...]:
    """Return the filters that every work queue has: key, reason, class of error and time of the last change."""
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
    """Return a filter by the whole value of a column."""
    return Filter(Parameter(name, meaning, choices), lambda value: column == value)


def matches(column: sa.Column[Any], pattern: str) -> sa.ColumnElement[bool]:
    """Match a value, or with * and ? in it a pattern, whatever the case."""
    if not is_pattern(pattern):
        return column == pattern
    like = re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%").replace("?", "_")
    return column.ilike(like, escape="\\")


def is_pattern(text: str) -> bool:
    """Test whether a text contains * or ?."""
    return "*" in text or "?" in text


def select_entries(
    engine: sa.Engine,
    key: sa.Column[str],
    filters: Sequence[Filter],
    request: ActionRequest,
    states: Sequence[str],
) -> Selection:
    """Select entries of a work queue, those that changed first in front.

    A key that is given in full is selected in whatever finished state its entry is. An entry that a run holds or still
    reports is in progress.

    Args:
        engine: of the database.
        key: primary key of the queue's table.
        filters: that the request may use.
        request: with the values.
        states: that are selected.
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
    """Return those of the keys that were not done, with the reason: finished when selected, they are not any more."""
    acted_on = frozenset(done)
    return dict.fromkeys((key for key in keys if key not in acted_on), "a run has begun to work on it")


def reopened_since(engine: sa.Engine, key: sa.Column[Any], keys: Sequence[str], since: datetime) -> set[str]:
    """Return the keys of entries that were requested again at a time or later.

    Args:
        engine: of the database.
        key: the queue's column that has them.
        keys: of entries.
        since: the time.
    """
    found: set[str] = set()
    with reading(engine) as connection:
        for part in in_parts(keys):
            query = sa.select(key).where(key.in_(part), key.table.c.reopened_at >= since)
            found.update(connection.execute(query).scalars())
    return found
