"""Replay attachments that match a filter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from ingest_project.attachments import AttachmentResources
from ingest_project.attachments.queue import ATTACHMENT_QUEUE
from ingest_project.attachments.tables import AttachmentState, attachments
from ingest_project.core.console import moment
from ingest_project.platform.actions import (
    Action,
    ActionRecord,
    ActionRefusedError,
    ActionRequest,
    Outcome,
    Parameter,
    Selection,
)
from ingest_project.platform.database import reading
from ingest_project.platform.database.sql import in_parts
from ingest_project.platform.work_queue.selection import (
    Filter,
    entry_filters,
    equals,
    reopened_since,
    select_entries,
    taken,
)

COLUMNS = attachments.c
STATE = Parameter("state", "State that they are in; by default failed.", ("failed", "stored"))
RATE = Parameter("per_second", "How many become due a second; by default INGEST_REPLAYS_PER_SECOND.")


def _is_of_host(host: str) -> sa.ColumnElement[bool]:
    """Match addresses of a host, with any port."""
    url, rest = COLUMNS.attachment_url, ("/", ":", "?", "#")
    addresses = [f"{scheme}://{host}" for scheme in ("http", "https")]
    begins = [url.istartswith(address + end, autoescape=True) for address in addresses for end in rest]
    return sa.or_(*begins, sa.func.lower(url).in_([address.lower() for address in addresses]))


FILTERS = (
    *entry_filters(COLUMNS.attachment_key, "attachment"),
    equals("domain", COLUMNS.domain, "Business domain."),
    Filter(Parameter("host", "Host of the address."), _is_of_host),
    equals("trace_id", COLUMNS.trace_id, "Trace of its event."),
)


def conditions_of(request: ActionRequest) -> list[sa.ColumnElement[bool]]:
    """Return the condition of each filter that a request sets."""
    return [condition(value) for parameter, condition in FILTERS if (value := request.typed(parameter))]


def _select(services: AttachmentResources, request: ActionRequest) -> Selection:
    _rate(services, request)
    state = request.value(STATE.name) or AttachmentState.FAILED.value
    selection = select_entries(services.engine, COLUMNS.attachment_key, FILTERS, request, (state,))
    most = services.settings.attachments.max_replays
    exhausted: dict[str, str] = {}
    with reading(services.engine) as connection:
        for part in in_parts(selection.keys):
            query = sa.select(COLUMNS.attachment_key).where(COLUMNS.attachment_key.in_(part), COLUMNS.replays >= most)
            reason = f"it has been replayed {most} times (INGEST_MAX_REPLAYS)"
            exhausted |= dict.fromkeys(connection.execute(query).scalars(), reason)
    keys = tuple(key for key in selection.keys if key not in exhausted)
    return selection._replace(keys=keys, refused={**selection.refused, **exhausted})


def _replay(services: AttachmentResources, request: ActionRequest, keys: Sequence[str]) -> Outcome:
    settings, now, rate = services.settings.attachments, datetime.now(UTC), _rate(services, request)
    finished = ATTACHMENT_QUEUE.finished
    done = services.attachments.replay(keys, request.who, settings.max_replays, rate, now, finished)
    last = now + timedelta(seconds=max(0, len(done) - 1) / rate)
    detail = f"{rate:g} a second; the last one is due at {moment(last)}." if done else ""
    return Outcome(done, detail=detail, in_progress=taken(keys, done))


def _acted_on(services: AttachmentResources, record: ActionRecord, keys: Sequence[str]) -> Collection[str]:
    return reopened_since(services.engine, COLUMNS.attachment_key, keys, record.started_at)


def _rate(services: AttachmentResources, request: ActionRequest) -> float:
    text = request.value(RATE.name)
    try:
        rate = float(text or services.settings.attachments.replays_per_second)
    except ValueError:
        rate = 0.0
    if not 0.001 <= rate <= 1e6:  # noqa: PLR2004 - said in the message
        raise ActionRefusedError("Per second is a number from 0.001 to 1,000,000.")
    return rate


REPLAY = Action(
    name="replay-attachments",
    title="Replay attachments",
    noun="attachment",
    meaning="Downloads attachments again that failed, or that are stored, at a bounded rate and a bounded number of "
    "times each. One that a run works on is left to it.",
    parameters=(*(one.parameter for one in FILTERS), STATE, RATE),
    select=_select,
    apply=_replay,
    acted_on=_acted_on,
    kind="attachment",
)
