"""Query Eventhouse by Microsoft's client, check the whole answer, and bound the wait.

Queries and secrets are sent to trusted hosts only. Import this module where a query is about to be sent, because the
library takes half a second to import.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Self, cast

from azure.core.credentials import TokenCredential
from azure.core.exceptions import ClientAuthenticationError
from azure.kusto.data import ClientRequestProperties, KustoClient, KustoConnectionStringBuilder
from azure.kusto.data.client import HTTPAdapterWithSocketOptions
from azure.kusto.data.exceptions import KustoApiError, KustoAuthenticationError, KustoNetworkError
from azure.kusto.data.kusto_trusted_endpoints import MatchRule, well_known_kusto_endpoints
from azure.kusto.data.response import KustoResponseDataSet
from requests import PreparedRequest, Response, Session
from urllib3.connection import HTTPConnection

from ingest_project.attachments.eventhouse import (
    AnswerTooLargeError,
    BrokenAnswerError,
    QueryReportedError,
    QueryResult,
    ReportedError,
    check_address,
    check_frames,
    check_login,
)
from ingest_project.attachments.eventhouse.queries import INGESTED_AT
from ingest_project.core.errors import (
    AddressRejectedError,
    EventhouseUnavailableError,
    IngestError,
    PermanentError,
    QueryRejectedError,
    SettingsError,
)
from ingest_project.core.settings import EventhouseSettings
from ingest_project.platform.http import parse_url
from ingest_project.platform.http.pinned_transport import require_origin

APPLICATION = "ingest-project"
PRIMARY_TABLE = "PrimaryResult"
PROPERTIES_TABLE = "QueryProperties"
CURSOR_PROPERTY = "Cursor"
TOO_LARGE = "E_QUERY_RESULT_SET_TOO_LARGE"
MAX_REASON_LENGTH = 300
CHECK_QUERY = f"Check the query's table, columns and steps, which must keep the column {INGESTED_AT}."
CHECK_CURSORS = "Where the database has no cursors, set `mode: window` for this domain."
CHECK_ACCESS = "Give its identity the role Viewer on the database, or check the credentials."
CHECK_ADDRESS = "Check the address of the cluster."
FIRST_REFUSAL, FIRST_FAILURE = 400, 500
_PASSING_STATUSES = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
QUERY_PATH = "v2/rest/query"
CONNECT_SECONDS = 10.0
# Network time, in addition to the server's time limit.
NETWORK_SECONDS = 5.0


class EventhouseClient:
    """Queries one cluster, for any number of threads, over connections that stay open. Reads only.

    Raises:
        SettingsError: the address is not that of a trusted cluster, or credentials are missing.
    """

    def __init__(self, settings: EventhouseSettings) -> None:
        self.address = check_address(settings)
        self._settings = settings
        self._client: CheckedKustoClient | None = None
        self._lock = threading.Lock()
        application = (settings.tenant_id, settings.client_id, settings.client_secret)
        if settings.authentication == "application" and not all(application):
            raise SettingsError("An Eventhouse application needs a tenant id, a client id and a client secret.")
        if settings.authentication == "none" and not self.address.startswith("http://"):
            raise SettingsError(f"Eventhouse at {self.address} needs credentials: only plain http goes without.")

    def query(self, database: str, text: str, parameters: Mapping[str, str] | None = None) -> QueryResult:
        """Run a query and return its rows.

        Args:
            database: to query.
            text: KQL without values.
            parameters: values of the query parameters (strings) that the text declares.

        Raises:
            AnswerTooLargeError: the answer exceeds Kusto's limit or ours.
            EventhouseUnavailableError: no answer, throttled, cut off, or an error that may pass.
            QueryRejectedError: not KQL that can be run, or not allowed; also where sign-in is refused.
            SettingsError, AddressRejectedError: a query or a secret would go to a host that is not trusted; it was not
                sent.
        """
        properties = self._properties(parameters or {})
        try:
            return _answer(self._open_client().execute_query(database, text, properties))
        except Exception as error:
            raise _refusal(error) or self._failure(error, database, properties.client_request_id) from error

    def close(self) -> None:
        """Disconnect. A later query connects again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            # The library has no types for this and the class below.
            client.close()  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_client(self) -> CheckedKustoClient:
        with self._lock:
            if self._client is None:
                self._client = connect(self._settings, self.address)
            return self._client

    def _properties(self, parameters: Mapping[str, str]) -> ClientRequestProperties:
        properties = ClientRequestProperties()  # type: ignore[no-untyped-call]
        properties.application = APPLICATION
        properties.client_request_id = f"{APPLICATION};{uuid.uuid4()}"
        properties.set_option("servertimeout", timedelta(seconds=self._settings.timeout_seconds))
        properties.set_option("truncationmaxsize", self._settings.max_page_bytes)
        properties.set_option("results_progressive_enabled", value=False)
        properties.set_option("request_readonly", value=True)
        for name, value in parameters.items():
            properties.set_parameter(name, value)
        return properties

    def _failure(self, error: Exception, database: str, request_id: str) -> Exception:
        """Return the error to raise for an exception of the library."""
        subject = f"The query to {database} at {self.address} (request {request_id})"
        if isinstance(error, QueryReportedError):
            return self._error_of_answer(error.errors, subject)
        if isinstance(error, BrokenAnswerError):
            return EventhouseUnavailableError(self.address, error)
        if isinstance(error, KustoNetworkError):
            return EventhouseUnavailableError(self.address, _network_reason(error))
        if isinstance(error, KustoAuthenticationError):
            return self._sign_in_failure(error.exception)
        status = _status(error)
        if status is not None:
            return self._refused_with(status, _reported_by(error), subject)
        return EventhouseUnavailableError(self.address, f"the answer cannot be understood ({type(error).__name__})")

    def _error_of_answer(self, errors: list[ReportedError], subject: str) -> Exception:
        text = _one_line("; ".join(error.text for error in errors))
        if any(TOO_LARGE in error.text for error in errors):
            return AnswerTooLargeError(text)
        if all(error.permanent for error in errors):
            return QueryRejectedError(subject, text, _remedy(text))
        return EventhouseUnavailableError(self.address, text)

    def _refused_with(self, status: int, reported: ReportedError, subject: str) -> Exception:
        reason = f"{status}: {_one_line(reported.text)}"
        if TOO_LARGE in reported.text:
            return AnswerTooLargeError(reason)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return QueryRejectedError(subject, reason, CHECK_ACCESS)
        if status == HTTPStatus.NOT_FOUND:
            return QueryRejectedError(subject, reason, CHECK_ADDRESS)
        is_refusal = FIRST_REFUSAL <= status < FIRST_FAILURE and status not in _PASSING_STATUSES
        if is_refusal and reported.permanent is not False:
            return QueryRejectedError(subject, reason, _remedy(reason))
        return EventhouseUnavailableError(self.address, reason)

    def _sign_in_failure(self, cause: Exception) -> IngestError:
        reason = f"sign-in failed: {_one_line(str(cause))}"
        if isinstance(cause, ClientAuthenticationError):
            return QueryRejectedError(f"Access to {self.address}", reason, CHECK_ACCESS)
        return EventhouseUnavailableError(self.address, reason)


class CheckedKustoClient(KustoClient):
    """A client that raises for every answer with an error in any of its parts.

    The library checks the rows only, not the frame that says whether the answer is complete.
    """

    def __init__(self, connection: KustoConnectionStringBuilder, address: str, timeout_seconds: float) -> None:
        super().__init__(connection)
        read_seconds = timeout_seconds + NETWORK_SECONDS
        adapter = _ClusterAdapter(address, read_seconds, self.compose_socket_options())
        # The library's type also allows aiohttp's session; this client is the synchronous one.
        session = cast("Session", self._session)
        session.mount("https://", adapter)
        session.mount("http://", adapter)

    @staticmethod
    def _kusto_parse_by_endpoint(endpoint: str, response_json: Any) -> KustoResponseDataSet:  # noqa: ANN401 - JSON
        if endpoint.endswith(QUERY_PATH):
            check_frames(response_json)
        return KustoClient._kusto_parse_by_endpoint(endpoint, response_json)  # noqa: SLF001 - what this one overrides


class _ClusterAdapter(HTTPAdapterWithSocketOptions):
    """Sends every request to the cluster only, and with a time-out.

    The library waits without an end for a cluster's metadata, and half a minute too long for an answer.
    """

    def __init__(self, address: str, read_seconds: float, keep_alive: list[tuple[int, int, int]]) -> None:
        self._origins = frozenset({parse_url(address).origin})
        self._timeout = (CONNECT_SECONDS, read_seconds)
        options = [*HTTPConnection.default_socket_options, *keep_alive]
        super().__init__(socket_options=options)  # type: ignore[no-untyped-call]

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401 - handed through
        require_origin(str(request.url), self._origins)
        kwargs["timeout"] = self._timeout
        return super().send(request, *args, **kwargs)


def connect(settings: EventhouseSettings, address: str) -> CheckedKustoClient:
    """Return a client for an address that was checked before; nothing is sent yet."""
    if settings.authentication == "none":
        connection = KustoConnectionStringBuilder.with_no_authentication(address)
    else:
        _trust(parse_url(address).host)
        connection = KustoConnectionStringBuilder.with_azure_token_credential(
            address, credential_from_login_endpoint=lambda authority: _credential(settings, authority)
        )
    return CheckedKustoClient(connection, address, settings.timeout_seconds)


def _answer(data: KustoResponseDataSet) -> QueryResult:
    # The raw rows: the library's own ones lose the seventh digit of a time.
    tables = {table.table_kind: table for table in data.tables}
    primary, properties = tables.get(PRIMARY_TABLE), tables.get(PROPERTIES_TABLE)
    if primary is None:
        raise BrokenAnswerError("the answer has no rows and no columns")
    names = [column.column_name for column in primary.columns]
    return QueryResult(names, primary.raw_rows, _cursor(properties.raw_rows if properties else []))


def _cursor(properties: list[list[Any]]) -> str | None:
    """Return the cursor among the answer's properties, which are rows of table id, name and value."""
    for row in properties:
        if CURSOR_PROPERTY in row[:-1]:
            return str(row[-1])
        if isinstance(row[-1], str) and row[-1].startswith('{"Cursor"'):
            return str(json.loads(row[-1])[CURSOR_PROPERTY])
    return None


def _reported_by(error: Exception) -> ReportedError:
    """Return the error in the body of a refusal."""
    if isinstance(error, KustoApiError):
        reported = error.get_api_error()
        return ReportedError(
            reported.code or "", reported.description or reported.message or "no reason given", reported.permanent
        )
    return ReportedError("", str(error) or "no reason given")


def _remedy(reason: str) -> str:
    return CHECK_CURSORS if "cursor" in reason.lower() else CHECK_QUERY


def _refusal(error: BaseException | None) -> PermanentError | None:
    """Return our own refusal to send something, which the library wraps in one of its exceptions."""
    while error is not None:
        if isinstance(error, SettingsError | AddressRejectedError):
            return error
        error = getattr(error, "exception", None) or error.__cause__ or error.__context__
    return None


def _status(error: BaseException | None) -> int | None:
    """Return the status of the response that an exception, or one of its causes, is about."""
    while error is not None:
        response = getattr(error, "http_response", None)
        response = getattr(error, "response", None) if response is None else response
        status = getattr(response, "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def _network_reason(error: Exception) -> str:
    cause = error.__cause__ or error
    return _one_line(f"{type(cause).__name__}: {cause}")


def _one_line(text: str) -> str:
    """Return one line of bounded length, for the middle of a sentence."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= MAX_REASON_LENGTH else line[: MAX_REASON_LENGTH - 1] + "…"


def _trust(host: str) -> None:
    """Allow the library to send a token to this checked host. Idempotent."""
    # The library has no types for these two.
    rule = MatchRule(host, exact=True)  # type: ignore[no-untyped-call]
    well_known_kusto_endpoints.add_trusted_hosts([rule], replace=False)  # type: ignore[no-untyped-call]


def _credential(settings: EventhouseSettings, authority: str) -> TokenCredential:
    from azure.identity import ClientSecretCredential, DefaultAzureCredential  # not for local servers

    authority = check_login(authority, settings)
    if settings.authentication == "application" and settings.client_secret is not None:
        secret = settings.client_secret.get_secret_value()
        return ClientSecretCredential(settings.tenant_id or "", settings.client_id or "", secret, authority=authority)
    return DefaultAzureCredential(authority=authority)
