"""What is read from Eventhouse for each business domain: one YAML file a domain, and the KQL made of it.

    domain: claims
    database: ClaimsDb
    table: ClaimDocuments
    key: [DocumentSetId]
    steps: |
      | where Status == 'received'
      | extend Uploads = todynamic(UploadsJson)
    columns: {trace_id: ClaimId, occurred_at: ReceivedAt, attachments: Uploads}
    mode: cursor

The text of a query holds nothing but what stands in such a file; every value goes in as a query parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ingest_project.core.errors import SettingsError
from ingest_project.core.yaml_models import mistakes, yaml_content, yaml_files

# Kusto returns at most this many rows (and 64 MB) to one query.
MAX_ROWS = 500_000

# Columns that every page has besides the table's own.
INGESTED_AT = "_ingest_at"
KEY = "_ingest_key"
SERVER_TIME = "_ingest_now"
IS_TIMED = "_ingest_timed"

PARAMETERS = "declare query_parameters(_after:string, _until:string, _page_at:string, _page_key:string);"

Name = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^'\"\\\[\]\r\n]+$")]


class EventColumns(BaseModel):
    """Which columns hold the fields of an AttachmentEvent; every other column becomes part of its payload.

    Args:
        trace_id: text; a row without one is traced by its key.
        event_type: text; a row without one has the type `<domain>.event`.
        occurred_at: datetime, UTC; a row without one occurred when it was ingested.
        attachments: a list of addresses, or of objects with a `url`: dynamic, or text that is JSON; or one address.
        payload: dynamic object.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trace_id: Name = "trace_id"
    event_type: Name = "event_type"
    occurred_at: Name = "occurred_at"
    attachments: Name = "attachments"
    payload: Name = "payload"


class DomainQuery(BaseModel):
    """What is read for one domain.

    Args:
        domain: name of the domain, the same in every message about its events.
        database: in the cluster.
        table: whose rows are read; its IngestionTime policy must be enabled, as it is by default.
        key: columns that tell one event from another. Rows with the same key are one event, however often they are
            ingested; a row whose key is empty is known by its whole content and the time it was ingested.
        steps: KQL that goes on from the table's new rows, beginning with `|`. It may filter, extend and project, but
            must keep the column `_ingest_at`.
        columns: where the fields of an event are.
        mode: `cursor` reads by database cursor. `window` reads by ingestion time, for databases without cursors
            (streaming ingestion, Fabric).
        overlap_seconds: window only: how long after its ingestion time a row may become visible.
        page_rows: rows asked for at a time; fewer where they are too large.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    def _goes_on_from_the_table(cls, steps: str) -> str:
        steps = steps.strip()
        if steps and not steps.startswith("|"):
            raise ValueError("steps go on from the table's rows and begin with '|'")
        return steps

    @property
    def source(self) -> str:
        """What the positions of this query refer to: a position of another source or mode means nothing here."""
        return f"{self.mode}:{self.database}.{self.table}"


def page_text(query: DomainQuery, rows: int, *, until_is_known: bool, goes_on: bool) -> str:
    """KQL for one page: the next rows between two bounds, in an order that is the same every time.

    Args:
        query: of the domain.
        rows: at most this many.
        until_is_known: whether there is an upper bound yet; without one the answer of a cursor query tells it.
        goes_on: whether to go on after the row at `_page_at` and `_page_key`.
    """
    lines = [
        PARAMETERS,
        _quoted(query.table),
        f"| where {_between(query, until_is_known=until_is_known)}",
        # Rows from before the policy was enabled have no time of their own.
        f"| extend {INGESTED_AT} = coalesce(ingestion_time(), datetime(1900-01-01))",
        *([query.steps] if query.steps else []),
        # A hash is short whatever the key is, and sorts the same under every collation.
        f"| extend {KEY} = substring(hash_sha256({_key_text(query)}), 0, 32)",
        f"| sort by {INGESTED_AT} asc, {KEY} asc",
        f"| take {rows}",
    ]
    if goes_on:
        # KQL has no order of strings but this one. Parsed from text, times keep the seven digits Kusto has.
        after = (
            f"| where {INGESTED_AT} > todatetime(_page_at) "
            f"or ({INGESTED_AT} == todatetime(_page_at) and strcmp({KEY}, _page_key) > 0)"
        )
        lines.insert(-2, after)
    return "\n".join(lines)


def server_time_text(query: DomainQuery) -> str:
    """KQL for the server's clock, and whether the table's rows have ingestion times; no row if it has no rows."""
    return "\n".join(
        [
            _quoted(query.table),
            "| take 1",
            f"| project {SERVER_TIME} = now(), {IS_TIMED} = isnotnull(ingestion_time())",
        ]
    )


def load_queries(paths: Sequence[Path], problems: list[SettingsError] | None = None) -> Mapping[str, DomainQuery]:
    """The queries by domain.

    Args:
        paths: YAML files with one query each, or folders of such files.
        problems: takes what is wrong with a file, which is then left out; without it, the first one is raised.

    Raises:
        SettingsError: a file is missing or not a query, or two are for the same domain; says which and why.
    """
    queries: dict[str, DomainQuery] = {}
    for path in yaml_files(paths):
        try:
            query = _new_query(path, queries)
        except SettingsError as error:
            if problems is None:
                raise
            problems.append(error)
        else:
            queries[query.domain] = query
    return queries


def _new_query(path: Path, known: Mapping[str, DomainQuery]) -> DomainQuery:
    query = read_query(path)
    if query.domain in known:
        raise SettingsError(f"{path}: there already is an Eventhouse query for the domain {query.domain!r}.")
    return query


def read_query(path: Path) -> DomainQuery:
    """The query in one YAML file.

    Raises:
        SettingsError: it cannot be read, or is not a query.
    """
    content = yaml_content(path, "Eventhouse query")
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold names and values: domain, database, table, key.")
    try:
        return DomainQuery.model_validate(content)
    except ValidationError as error:
        raise SettingsError(
            f"{path} is not an Eventhouse query: {mistakes(error, DomainQuery, EventColumns)}"
        ) from None


def _between(query: DomainQuery, *, until_is_known: bool) -> str:
    if query.mode == "window":
        return "ingestion_time() > todatetime(_after) and ingestion_time() <= todatetime(_until)"
    return "cursor_after(_after)" + (" and cursor_before_or_at(_until)" if until_is_known else "")


def _key_text(query: DomainQuery) -> str:
    columns = [f"tostring({_quoted(column)})" for column in query.key]
    # Between two columns stands a line feed: `a`, `bc` and `ab`, `c` are different keys.
    joined = ", '\\n', ".join(columns)
    return f"iff(isempty(strcat({', '.join(columns)})), tostring(pack_all()), strcat({joined}))"


def _quoted(name: str) -> str:
    return f"['{name}']"
