"""Queries of Eventhouse, one YAML file for each business domain: the KQL made of it, and the events made of its rows.

    domain: claims
    database: ClaimsDb
    table: ClaimDocuments
    key: [DocumentSetId]
    steps: |
      | where Status == 'received'
      | extend Uploads = todynamic(UploadsJson)
    columns: {trace_id: ClaimId, occurred_at: ReceivedAt, attachments: Uploads}
    mode: cursor

The text of a query consists of such a file only; every value is a query parameter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, ValidationError, field_validator

from ingest_project.core.errors import SettingsError
from ingest_project.core.items import as_utc
from ingest_project.core.logging import get_logger
from ingest_project.core.yaml_models import Declared, mistakes, yaml_content, yaml_files

logger = get_logger(__name__)

# Kusto returns at most this many rows (and 64 MB) to one query.
MAX_ROWS = 500_000

# Columns that every page has in addition to the table's own.
INGESTED_AT = "_ingest_at"
KEY = "_ingest_key"
SERVER_TIME = "_ingest_now"
IS_TIMED = "_ingest_timed"

PARAMETERS = "declare query_parameters(_after:string, _until:string, _page_at:string, _page_key:string);"

# A broker's default message limit, less room for headers.
MAX_EVENT_BYTES = 1_000_000
LONGEST_REASON = 500
OMITTED = "payload_omitted"

Name = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^'\"\\\[\]\r\n]+$")]


class EventColumns(Declared):
    """Names the columns that hold the fields of an AttachmentEvent; every other column becomes part of its payload.

    Args:
        trace_id: text; a row without one is traced by its key.
        event_type: text; a row without one has the type `<domain>.event`.
        occurred_at: datetime, UTC; a row without one occurred when it was ingested.
        attachments: a list of addresses, or of objects with a `url`: dynamic, or text that is JSON; or one address.
        payload: dynamic object.
    """

    trace_id: Name = "trace_id"
    event_type: Name = "event_type"
    occurred_at: Name = "occurred_at"
    attachments: Name = "attachments"
    payload: Name = "payload"


class DomainQuery(Declared):
    """The query of one domain.

    Args:
        domain: name of the domain, the same in every message about its events.
        database: in the cluster.
        table: table to read; its IngestionTime policy must be enabled, as it is by default.
        key: columns that identify an event. Rows with the same key are one event, however often they are
            ingested; a row whose key is empty is known by its whole content and the time it was ingested.
        steps: KQL that continues from the table's new rows, beginning with `|`. It may filter, extend and project, but
            must keep the column `_ingest_at`.
        columns: columns of the fields of an event.
        mode: `cursor` reads by database cursor. `window` reads by ingestion time, for databases without cursors
            (streaming ingestion, Fabric).
        overlap_seconds: window only: how long after its ingestion time a row may become visible.
        page_rows: rows of one query; fewer where they are too large.
    """

    domain: str = Field(pattern=r"^[a-z0-9][a-z0-9_\-]{0,63}$")
    database: Name
    table: Name
    key: tuple[Name, ...] = Field(min_length=1)
    steps: str = ""
    columns: EventColumns = EventColumns()
    mode: Literal["cursor", "window"] = "cursor"
    overlap_seconds: int = Field(600, ge=1, le=7 * 86_400)
    page_rows: int = Field(5_000, gt=0, le=MAX_ROWS)

    @field_validator("steps")
    @classmethod
    def _continues_the_table(cls, steps: str) -> str:
        steps = steps.strip()
        if steps and not steps.startswith("|"):
            raise ValueError("steps continue from the table's rows and begin with '|'")
        return steps

    @property
    def source(self) -> str:
        """The source that positions of this query refer to: one of another source or mode is invalid."""
        return f"{self.mode}:{self.database}.{self.table}"


@dataclass(frozen=True)
class PolledEvent:
    """One event.

    Args:
        event_id: the same for every row with the same key, forever: publish each id once.
        trace_id: trace id of the event.
        value: the AttachmentEvent, JSON in UTF-8.
    """

    event_id: str
    trace_id: str
    value: bytes


@dataclass(frozen=True)
class RefusedRow:
    """A row that cannot become an event.

    Args:
        event_id: the id that its event would have had.
        reason: why, naming the limit.
        error_class: under which it is counted.
        value: the row, as a JSON object.
    """

    event_id: str
    reason: str
    error_class: str
    value: bytes


def page_text(query: DomainQuery, rows: int, *, until_is_known: bool, goes_on: bool) -> str:
    """Return KQL for one page: the next rows between two bounds, in an order that is the same every time.

    Args:
        query: query of the domain.
        rows: at most this many.
        until_is_known: whether there is an upper bound yet; without one the answer of a cursor query contains it.
        goes_on: whether to continue after the row at `_page_at` and `_page_key`.
    """
    lines = [
        PARAMETERS,
        _quoted(query.table),
        f"| where {_between(query, until_is_known=until_is_known)}",
        # Rows ingested before the policy was enabled have no ingestion time.
        f"| extend {INGESTED_AT} = coalesce(ingestion_time(), datetime(1900-01-01))",
        *([query.steps] if query.steps else []),
        # A hash is short whatever the key is, and sorts the same under every collation.
        f"| extend {KEY} = substring(hash_sha256({_key_text(query)}), 0, 32)",
        f"| sort by {INGESTED_AT} asc, {KEY} asc",
        f"| take {rows}",
    ]
    if goes_on:
        # `strcmp` is KQL's only string comparison. Parsing from text keeps all seven digits of Kusto's times.
        after = (
            f"| where {INGESTED_AT} > todatetime(_page_at) "
            f"or ({INGESTED_AT} == todatetime(_page_at) and strcmp({KEY}, _page_key) > 0)"
        )
        lines.insert(-2, after)
    return "\n".join(lines)


def server_time_text(query: DomainQuery) -> str:
    """Return KQL for the server's clock, and whether rows have ingestion times; no row if the table is empty."""
    return "\n".join(
        [_quoted(query.table), "| take 1", f"| project {SERVER_TIME} = now(), {IS_TIMED} = isnotnull(ingestion_time())"]
    )


def load_queries(paths: Sequence[Path]) -> tuple[Mapping[str, DomainQuery], list[SettingsError]]:
    """Load the queries, by domain.

    Args:
        paths: YAML files with one query each, or folders of such files.

    Returns:
        the queries, and the errors of the files that are left out: they are missing, not a query, or a second one for
        the same domain.
    """
    queries: dict[str, DomainQuery] = {}
    problems: list[SettingsError] = []
    for path in yaml_files(paths):
        try:
            query = read_query(path)
        except SettingsError as error:
            problems.append(error)
            continue
        if query.domain in queries:
            reason = f"{path}: there already is an Eventhouse query for the domain {query.domain!r}."
            problems.append(SettingsError(reason))
        else:
            queries[query.domain] = query
    return queries, problems


def read_query(path: Path) -> DomainQuery:
    """Read the query in one YAML file.

    Raises:
        SettingsError: it cannot be read, or is not a query.
    """
    content = yaml_content(path, "Eventhouse query")
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold names and values: domain, database, table, key.")
    try:
        return DomainQuery.model_validate(content)
    except ValidationError as error:
        raise SettingsError(f"{path} is not an Eventhouse query: {mistakes(error)}") from None


def event_of(query: DomainQuery, row: dict[str, Any]) -> PolledEvent | RefusedRow:
    """Return the event of a row, or the row with the reason of its refusal; no row affects another one."""
    try:
        return _event_of(query, row)
    except Exception as error:
        logger.exception("eventhouse_row_unreadable", source=query.source)
        text = " ".join(str(error).split())[:LONGEST_REASON]
        return refused_row(query, row, f"It cannot become an event: {type(error).__name__}: {text}", error)


def refused_row(query: DomainQuery, row: dict[str, Any], reason: str, error: Exception | None = None) -> RefusedRow:
    """Return a row with the reason why it is no event, identified by its key, or by its content where it has none."""
    # Not msgspec: Kusto's answer may hold lone surrogates and NaN, and a dead letter keeps them.
    value = json.dumps(row, default=str).encode()
    key = row.get(KEY) or hashlib.sha256(value).hexdigest()
    error_class = type(error).__name__ if error else "EventTooLarge"
    return RefusedRow(f"eventhouse:{query.domain}:{key}", reason, error_class, value)


def _between(query: DomainQuery, *, until_is_known: bool) -> str:
    if query.mode == "window":
        return "ingestion_time() > todatetime(_after) and ingestion_time() <= todatetime(_until)"
    return "cursor_after(_after)" + (" and cursor_before_or_at(_until)" if until_is_known else "")


def _key_text(query: DomainQuery) -> str:
    columns = [f"tostring({_quoted(column)})" for column in query.key]
    # A line feed separates two columns: `a`, `bc` and `ab`, `c` are different keys.
    joined = ", '\\n', ".join(columns)
    return f"iff(isempty(strcat({', '.join(columns)})), tostring(pack_all()), strcat({joined}))"


def _quoted(name: str) -> str:
    return f"['{name}']"


def _event_of(query: DomainQuery, row: dict[str, Any]) -> PolledEvent | RefusedRow:
    """Return the event of a row.

    A payload that makes the event too large for a message is left out, and the event says so: the attachments are
    what matters.

    Args:
        query: the query that returned the row.
        row: values by column, as JSON has them.
    """
    event_id = f"eventhouse:{query.domain}:{row[KEY]}"
    event = _event(query, row)
    value = msgspec.json.encode(event)
    if len(value) > MAX_EVENT_BYTES:
        omitted = f"{len(value)} bytes are more than the {MAX_EVENT_BYTES} of a message"
        value = msgspec.json.encode(event | {"payload": {OMITTED: omitted}})
    if len(value) > MAX_EVENT_BYTES:
        reason = f"Without its payload the event has {len(value)} bytes; a message has at most {MAX_EVENT_BYTES}."
        return refused_row(query, row, reason)
    return PolledEvent(event_id, event["trace_id"], value)


def _event(query: DomainQuery, row: dict[str, Any]) -> dict[str, Any]:
    columns = query.columns
    named = {columns.trace_id, columns.event_type, columns.occurred_at, columns.attachments, columns.payload}
    others = {name: value for name, value in row.items() if name not in named and not name.startswith("_ingest_")}
    return {
        "trace_id": _text(row.get(columns.trace_id)) or row[KEY],
        "event_type": _text(row.get(columns.event_type)) or f"{query.domain}.event",
        "domain": query.domain,
        "occurred_at": _time(row.get(columns.occurred_at)) or _time(row[INGESTED_AT]),
        "attachments": _attachments(row.get(columns.attachments)),
        "payload": others | _payload(row.get(columns.payload)),
    }


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _time(value: object) -> str:
    """Return ISO 8601 in UTC with at most six digits of a second; other text unchanged, for readers to refuse."""
    text = _text(value)
    try:
        return as_utc(datetime.fromisoformat(text)).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError):
        return text


def _attachments(value: object) -> list[Any]:
    value = _parsed(value)
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def _payload(value: object) -> dict[str, Any]:
    value = _parsed(value)
    if value is None or value == "":
        return {}
    return value if isinstance(value, dict) else {"payload": value}


def _parsed(value: object) -> Any:  # noqa: ANN401 - JSON
    """Return the value of a dynamic column: Kusto sends JSON or, depending on how it was made, JSON as text."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text
