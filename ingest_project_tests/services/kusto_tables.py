"""Tables of the Kusto server, and the few stages of KQL that this project's queries are made of.

A row gets its ingestion time before it becomes visible and its cursor value after, as in Kusto. Text that is none of
these stages is a syntax error.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

Row = dict[str, Any]
NO_TIME = "1900-01-01T00:00:00Z"

TIME_BOUNDS = r"\| where ingestion_time\(\) > todatetime\(_after\) and ingestion_time\(\) <= todatetime\(_until\)"
ADD_KEY = (
    r"\| extend _ingest_key = substring\(hash_sha256\("
    r"iff\(isempty\(strcat\((.+)\)\), tostring\(pack_all\(\)\), strcat\((.+)\)\)\), 0, 32\)"
)
AFTER_PAGE = (
    r"\| where _ingest_at > todatetime\(_page_at\) "
    r"or \(_ingest_at == todatetime\(_page_at\) and strcmp\(_ingest_key, _page_key\) > 0\)"
)


class KqlError(Exception):
    """A query that cannot be run."""


@dataclass
class Table:
    """Rows in the order of their ingestion, with what Kusto knows of each."""

    columns: dict[str, str]
    rows: list[_Stored] = field(default_factory=list)
    has_ingestion_times: bool = True


@dataclass
class _Stored:
    values: Row
    ingested_at: str
    cursor: int | None


class Database:
    """Tables, and the cursor they share.

    Args:
        now: the server's clock.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.has_cursors = True
        self.tables: dict[str, Table] = {}
        self._cursor = 638_000_000_000_000_000
        self._lock = threading.Lock()

    def create_table(self, name: str, columns: dict[str, str]) -> Table:
        """Add a table.

        Args:
            name: of the table.
            columns: Kusto's type by column name.
        """
        self.tables[name] = Table(columns)
        return self.tables[name]

    def ingest(self, name: str, *rows: Row, at: str | None = None, has_cursor: bool = True) -> None:
        """Add rows as one ingestion.

        Args:
            name: of the table.
            rows: values by column; what is missing is null.
            at: their ingestion time, with seven digits of a second; now where not given.
            has_cursor: False leaves them visible and without a cursor value until `assign_cursors`.
        """
        with self._lock:
            if has_cursor:
                self._cursor += 1
            stored_at = at or seven_digits(self.now())
            cursor = self._cursor if has_cursor else None
            self.tables[name].rows += [_Stored(row, stored_at, cursor) for row in rows]

    def assign_cursors(self, name: str) -> None:
        """Assign cursor values to rows that were ingested without one."""
        with self._lock:
            self._cursor += 1
            for row in self.tables[name].rows:
                if row.cursor is None:
                    row.cursor = self._cursor

    def evaluate(self, text: str, parameters: dict[str, str]) -> tuple[dict[str, str], list[Row], str | None]:
        """Return columns, rows and, for a query that requests it, the cursor."""
        with self._lock:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if lines[0].startswith("declare query_parameters("):
                lines.pop(0)
            else:
                parameters = {}
            name = lines.pop(0).strip("['] ")
            if name not in self.tables:
                raise KqlError(f"SEM0100: Failed to resolve table expression named '{name}'")
            run = Run(self, self.tables[name], parameters)
            for line in lines:
                run.stage(line)
            return run.columns, run.rows, str(self._cursor) if run.asked_for_cursor else None


class Run:
    """One query on its way through its stages."""

    def __init__(self, database: Database, table: Table, parameters: dict[str, str]) -> None:
        self._database = database
        self._parameters = parameters
        self._timed = table.has_ingestion_times
        self._stored = list(table.rows)
        self.columns = dict(table.columns)
        self.rows: list[Row] = []
        self.asked_for_cursor = False
        self._load()

    def stage(self, line: str) -> None:
        """Run one line of the query.

        Raises:
            KqlError: nothing here knows it, or it names what is not there.
        """
        for pattern, evaluate in self._STAGES:
            found = re.fullmatch(pattern, line)
            if found:
                evaluate(self, *found.groups())
                return
        raise KqlError(f"SYN0002: Query could not be parsed at '{line[:30]}'")

    def _cursor_bounds(self, until: str | None) -> None:
        if not self._database.has_cursors:
            raise KqlError("Database cursors cannot be used with streaming ingestion")
        self.asked_for_cursor = True
        after = int(self._parameters["_after"] or 0)
        end = int(self._parameters["_until"]) if until else None
        self._keep(lambda s: s.cursor is not None and s.cursor > after and (end is None or s.cursor <= end))

    def _time_bounds(self) -> None:
        after, until = _ticks(self._parameters["_after"]), _ticks(self._parameters["_until"])
        self._keep(lambda s: self._timed and after < _ticks(s.ingested_at) <= until)

    def _add_time(self) -> None:
        self._load()
        self.columns["_ingest_at"] = "datetime"

    def _where_equal(self, column: str, value: str) -> None:
        self._require(column)
        self.rows = [row for row in self.rows if row.get(column) == value]

    def _project(self, columns: str) -> None:
        names = [name.strip() for name in columns.split(",")]
        for name in names:
            self._require(name)
        self.columns = {name: self.columns[name] for name in names}
        self.rows = [{name: row.get(name) for name in names} for row in self.rows]

    def _add_key(self, isempty_of: str, joined: str) -> None:
        columns = re.findall(r"tostring\(\['(.+?)'\]\)", isempty_of)
        assert joined == ", '\\n', ".join(f"tostring(['{column}'])" for column in columns)
        for column in columns:
            self._require(column)
        for row in self.rows:
            texts = [_tostring(row.get(column)) for column in columns]
            text = "\n".join(texts) if "".join(texts) else json.dumps(row, sort_keys=True)
            row["_ingest_key"] = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.columns["_ingest_key"] = "string"

    def _after_page(self) -> None:
        last = (_ticks(self._parameters["_page_at"]), self._parameters["_page_key"])
        self._require("_ingest_at")
        self.rows = [row for row in self.rows if (_ticks(row["_ingest_at"]), row["_ingest_key"]) > last]

    def _sort(self) -> None:
        self._require("_ingest_at")
        self.rows.sort(key=lambda row: (_ticks(row["_ingest_at"]), row["_ingest_key"]))

    def _take(self, count: str) -> None:
        self.rows = self.rows[: int(count)]

    def _server_time(self) -> None:
        self.columns = {"_ingest_now": "datetime", "_ingest_timed": "bool"}
        now = seven_digits(self._database.now())
        self.rows = [{"_ingest_now": now, "_ingest_timed": self._timed} for _ in self.rows]

    def _keep(self, wanted: Callable[[_Stored], bool]) -> None:
        self._stored = [stored for stored in self._stored if wanted(stored)]
        self._load()

    def _load(self) -> None:
        self.rows = [s.values | {"_ingest_at": s.ingested_at if self._timed else NO_TIME} for s in self._stored]

    def _require(self, column: str) -> None:
        if column not in self.columns:
            raise KqlError(f"SEM0100: Failed to resolve scalar expression named '{column}'")

    _STAGES: ClassVar[list[tuple[str, Callable[..., None]]]] = [
        (r"\| where cursor_after\(_after\)( and cursor_before_or_at\(_until\))?", _cursor_bounds),
        (TIME_BOUNDS, _time_bounds),
        (r"\| extend _ingest_at = coalesce\(ingestion_time\(\), datetime\(1900-01-01\)\)", _add_time),
        (ADD_KEY, _add_key),
        (AFTER_PAGE, _after_page),
        (r"\| sort by _ingest_at asc, _ingest_key asc", _sort),
        (r"\| project _ingest_now = now\(\), _ingest_timed = isnotnull\(ingestion_time\(\)\)", _server_time),
        (r"\| take (\d+)", _take),
        (r"\| where (\w+) == '([^']*)'", _where_equal),
        (r"\| project ([\w, ]+)", _project),
    ]


def seven_digits(moment: datetime) -> str:
    """Write a datetime as Kusto does: in UTC, to the tenth of a microsecond."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"


def _ticks(text: str) -> int:
    """Return tenths of a microsecond since a fixed time."""
    whole, _, digits = text.removesuffix("Z").partition(".")
    seconds = datetime.fromisoformat(whole + "+00:00") - datetime(1900, 1, 1, tzinfo=UTC)
    return seconds // timedelta(seconds=1) * 10**7 + int((digits + "0000000")[:7])


def _tostring(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
