"""Eventhouse (Kusto) as a source of attachment events: the clusters that are trusted, and what an answer must be.

A query carries a token, and only trusted hosts may receive one. The status line of an answer is sent before the query
has run, so an answer of status 200 may end in an error: as an object among the rows, or in the last frame (v2
protocol). It is then neither complete nor right, however many rows it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import EventhouseSettings
from ingest_project.platform.http import DEFAULT_PORTS, MalformedAddressError, redacted_url, split_address, split_server
from ingest_project.platform.http.host_policy import ANY_HOST, HostPattern

TRUSTED_HOSTS = (
    "*.kusto.windows.net",
    "*.kusto.data.microsoft.com",
    "*.kusto.fabric.microsoft.com",
    "*.kusto.azuresynapse.net",
    "*.kusto.usgovcloudapi.net",
    "*.kusto.chinacloudapi.cn",
    "*.kusto.azuresynapse.azure.cn",
)
# Login hosts of Microsoft Entra, one for each cloud: only these receive an application's secret.
LOGIN_HOSTS = (
    "login.microsoftonline.com",
    "login.windows.net",
    "login.microsoftonline.us",
    "login.chinacloudapi.cn",
    "login.partner.microsoftonline.cn",
)
FIRST_FRAME = "DataSetHeader"
LAST_FRAME = "DataSetCompletion"
TABLE_FRAME = "DataTable"


class AnswerTooLargeError(Exception):
    """An answer would have exceeded the limit of rows or bytes; request fewer rows."""


@dataclass(frozen=True)
class QueryResult:
    """A whole answer without errors.

    Args:
        columns: names, in order.
        rows: values as JSON has them, one list a row. Datetimes are text with seven digits of a second.
        cursor: the database's cursor at the time of the query, where the query used cursors.
    """

    columns: list[str]
    rows: list[list[Any]]
    cursor: str | None = None


class QueryClient(Protocol):
    """Queries one cluster; implemented by `client.EventhouseClient`, whose library commands do not load."""

    def query(self, database: str, text: str, parameters: Mapping[str, str] | None = None) -> QueryResult:
        """Run a query and return its rows, see `EventhouseClient.query`."""


@dataclass(frozen=True)
class ReportedError:
    """One error as Kusto reports it.

    Args:
        code: e.g. `LimitsExceeded`.
        text: for a person.
        permanent: whether the same query would fail again; None where Kusto does not say.
    """

    code: str
    text: str
    permanent: bool | None = None


class BrokenAnswerError(Exception):
    """An answer that is cut off or not of the v2 protocol."""


class QueryReportedError(Exception):
    """An answer that reports errors."""

    def __init__(self, errors: list[ReportedError]) -> None:
        self.errors = errors
        super().__init__("; ".join(error.text for error in errors))


def check_frames(frames: object) -> None:
    """Check that an answer is whole and without errors.

    Raises:
        QueryReportedError: it carries errors.
        BrokenAnswerError: it is not a whole answer.
    """
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise BrokenAnswerError("the answer is not a list of frames")
    errors = [error for frame in frames for error in _errors_in(frame)]
    if errors:
        raise QueryReportedError(errors)
    kinds = [frame.get("FrameType") for frame in frames]
    if len(kinds) < 2 or kinds[0] != FIRST_FRAME or kinds[-1] != LAST_FRAME:  # noqa: PLR2004 - the first and the last
        raise BrokenAnswerError("the answer is cut off")
    if not all(_is_table(frame) for frame in frames if frame["FrameType"] == TABLE_FRAME):
        raise BrokenAnswerError("a table of the answer is malformed")


def reported_error(body: object) -> ReportedError | None:
    """Return the error in a body of the form `{"error": {...}}`, if it is one."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return None
    text = error.get("@message") or error.get("message") or error.get("code") or "no reason given"
    permanent = error.get("@permanent")
    return ReportedError(str(error.get("code", "")), str(text), permanent if isinstance(permanent, bool) else None)


def check_address(settings: EventhouseSettings) -> str:
    """Return the cluster's address in its canonical form.

    Raises:
        SettingsError: none is set, or it is not the address of a trusted cluster; names the remedy.
    """
    if not settings.address:
        raise SettingsError("EVENT_SOURCE=eventhouse needs INGEST_EVENTHOUSE_ADDRESS and INGEST_EVENTHOUSE_QUERIES.")
    shown = _shown(settings.address)
    try:
        parts = split_server(settings.address, ("https", "http"))
    except MalformedAddressError as error:
        raise SettingsError(f"{shown} is not the https address of an Eventhouse cluster: {error.reason}.") from None
    host, port = parts.host, parts.port or DEFAULT_PORTS[parts.scheme]
    named = _matches(host, port, settings.trusted_hosts)
    if not named and not (_matches(host, port, TRUSTED_HOSTS) and port in DEFAULT_PORTS.values()):
        raise SettingsError(
            f"Eventhouse at {host} is not trusted, so it gets no query and no token. "
            "Check the address, or add the host to INGEST_EVENTHOUSE_TRUSTED_HOSTS."
        )
    if parts.scheme == "http" and not named:
        raise SettingsError(
            f"Eventhouse at {host} must be queried over https; plain http needs the host in "
            "INGEST_EVENTHOUSE_TRUSTED_HOSTS."
        )
    return parts.origin


def check_login(authority: str, settings: EventhouseSettings) -> str:
    """Return the address at which clients of the cluster sign in: an application sends its secret there.

    Raises:
        SettingsError: it is neither Microsoft's nor a trusted host; nothing is sent there.
    """
    try:
        parts = split_address(authority, ("https",))
    except MalformedAddressError as error:
        raise SettingsError(f"Eventhouse names {_shown(authority)} to sign in at: {error.reason}.") from None
    port = parts.port or DEFAULT_PORTS["https"]
    if parts.host not in LOGIN_HOSTS and not _matches(parts.host, port, settings.trusted_hosts):
        raise SettingsError(
            f"Eventhouse names {parts.host} to sign in at, which is not Microsoft's. Nothing is shown to it unless "
            "INGEST_EVENTHOUSE_TRUSTED_HOSTS names it."
        )
    return parts.origin


def _errors_in(frame: dict[str, Any]) -> Iterator[ReportedError]:
    rows = frame.get("Rows")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict):
            yield from _errors_of(row)
    if frame.get("HasErrors") or frame.get("OneApiErrors"):
        yield from _errors_of(frame)


def _errors_of(holder: dict[str, Any]) -> Iterator[ReportedError]:
    bodies = holder.get("OneApiErrors")
    found = [reported_error(body) for body in bodies] if isinstance(bodies, list) else []
    known = [error for error in found if error is not None]
    if known:
        yield from known
    else:
        exceptions = holder.get("Exceptions")
        text = "; ".join(map(str, exceptions)) if isinstance(exceptions, list) else "the query failed, no reason given"
        yield ReportedError("", text)


def _is_table(frame: dict[str, Any]) -> bool:
    columns, rows = frame.get("Columns"), frame.get("Rows")
    return (
        isinstance(columns, list)
        and isinstance(rows, list)
        and all(isinstance(column, dict) and "ColumnName" in column for column in columns)
        and all(isinstance(row, list) and len(row) == len(columns) for row in rows)
    )


def _matches(host: str, port: int, patterns: Iterable[str]) -> bool:
    parsed = [HostPattern.parse(pattern) for pattern in patterns]
    # A pattern for every host does not make any of them trusted.
    return any(pattern.name != ANY_HOST and pattern.matches_name(host, port) for pattern in parsed)


def _shown(address: str) -> str:
    """Return the address without a possible password before an @ or key behind a question mark."""
    return repr(redacted_url(address).partition("?")[0][:200])
