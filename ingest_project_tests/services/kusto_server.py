"""A Kusto cluster of our own for the tests: the v2 query protocol over tables in memory, driven by Microsoft's client.

What makes reading from Kusto hard is there: answers have limits of rows and bytes, an answer of status 200 may end in
an error, and requests go wrong in the ways of `Fault`. How rows come and queries are run is in `kusto_tables`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ingest_project_tests.services.kusto_tables import Database, KqlError, Row, seven_digits

MAX_ROWS = 500_000
MAX_BYTES = 64 * 1024**2


class Fault(Enum):
    """What may go wrong with one request."""

    THROTTLED = "429, as a cluster under load answers"
    UNAVAILABLE = "503 from a gateway, not in Kusto's own words"
    FORBIDDEN = "403 with Kusto's reason"
    UNAUTHORIZED = "401"
    ERROR_AMONG_ROWS = "200, with an error in place of the last row"
    ERROR_AT_THE_END = "200, with an error in the last frame only"
    CUT_IN_THE_MIDDLE = "the connection is closed within the body"
    WITHOUT_LAST_FRAME = "200, with JSON that is whole and frames that are not"
    NOT_FRAMES = "200, with JSON of another shape"
    NOT_JSON = "200, with a page for people"
    SLOW = "no answer before the client's patience ends"
    REDIRECT = "302 to another host"


class KustoServer:
    """One cluster with one database, on a free loopback port, in threads of the test process.

    Attributes:
        database: whose tables are queried, under any name.
        requests: path, headers and body of each.
        page_limit: rows that one answer may have.
        slow_seconds: how long an answer takes under `Fault.SLOW`.
        token: what the header Authorization must bear; None requires none.
    """

    def __init__(self) -> None:
        self.database = Database(lambda: datetime.now(UTC))
        self.requests: list[dict[str, Any]] = []
        self.page_limit = MAX_ROWS
        self.slow_seconds = 10.0
        self.token: str | None = None
        self.faults: list[Fault] = []
        self.stopping = threading.Event()
        handler = type("_BoundHandler", (_Handler,), {"cluster": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def fail_next(self, *faults: Fault) -> None:
        """Apply these faults to the next requests, one each."""
        self.faults += faults

    def stop(self) -> None:
        """End the server; answers under way are cut off."""
        self.stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    cluster: KustoServer
    protocol_version = "HTTP/1.1"
    # Head and body are written one after the other; without this the second waits 40 ms for the first to be confirmed.
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Print nothing: requests are in `KustoServer.requests`."""

    def do_GET(self) -> None:
        if self.path == "/v1/rest/auth/metadata":
            self._note({})
            self._send(200, {"AzureAD": None})
        else:
            self._send(404, {"error": {"code": "NotFound", "message": "There is nothing here."}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._note(body)
        fault = self.cluster.faults.pop(0) if self.cluster.faults else None
        if self.path != "/v2/rest/query":
            self._send(404, _one_api_error("NotFound", f"There is no {self.path}.", permanent=True))
        elif fault in _REFUSALS:
            self._send(*_REFUSALS[fault])
        elif self.cluster.token is not None and self.headers["Authorization"] != f"Bearer {self.cluster.token}":
            self._send(401, {})
        else:
            self._answer(body, fault)

    def _note(self, body: dict[str, Any]) -> None:
        self.cluster.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})

    def _answer(self, body: dict[str, Any], fault: Fault | None) -> None:
        properties = json.loads(body["properties"])
        try:
            columns, rows, cursor = self.cluster.database.evaluate(body["csl"], properties["Parameters"])
        except KqlError as error:
            self._send(400, _one_api_error("General_BadRequest", f"Semantic error: {error}", permanent=True))
            return
        frames = _frames(columns, rows, cursor)
        size = len(json.dumps(frames[2]["Rows"]).encode())
        limit = min(MAX_BYTES, properties["Options"].get("truncationmaxsize", MAX_BYTES))
        if len(rows) > self.cluster.page_limit or size > limit:
            _fail(frames, "LimitsExceeded", "Query result set has exceeded the limit (E_QUERY_RESULT_SET_TOO_LARGE)")
        self._send_with(fault, frames)

    def _send_with(self, fault: Fault | None, frames: list[dict[str, Any]]) -> None:
        if fault is Fault.ERROR_AMONG_ROWS:
            _fail(frames, "LimitsExceeded", "Query execution has exceeded the allowed limits (80DA0001): memory")
        elif fault is Fault.ERROR_AT_THE_END:
            rows = list(frames[2]["Rows"])
            _fail(frames, "Internal", "An internal error occurred")
            frames[2]["Rows"] = rows
        elif fault is Fault.WITHOUT_LAST_FRAME:
            frames.pop()
        elif fault is Fault.SLOW:
            self.cluster.stopping.wait(self.cluster.slow_seconds)
        self._send(200, {"Tables": []} if fault is Fault.NOT_FRAMES else frames, cut=fault is Fault.CUT_IN_THE_MIDDLE)

    def _send(self, status: int, body: object, *, cut: bool = False) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()
        try:
            self.wfile.write(text[: len(text) // 2] if cut else text)
        except OSError:
            cut = True
        self.close_connection = self.close_connection or cut


def _frames(columns: dict[str, str], rows: list[Row], cursor: str | None) -> list[dict[str, Any]]:
    properties = [[0, "Visualization", '{"Visualization":null}'], *([[0, "Cursor", cursor]] if cursor else [])]
    completion = [[seven_digits(datetime.now(UTC)), "QueryInfo", 4, "Info", 0, "S_OK (0)", "Query completed"]]
    return [
        {"FrameType": "DataSetHeader", "IsProgressive": False, "Version": "v2.0"},
        _table(
            "QueryProperties",
            "@ExtendedProperties",
            {"TableId": "int", "Key": "string", "Value": "dynamic"},
            properties,
        ),
        _table("PrimaryResult", "PrimaryResult", columns, [[row.get(name) for name in columns] for row in rows]),
        _table("QueryCompletionInformation", "QueryCompletionInformation", _COMPLETION, completion),
        {"FrameType": "DataSetCompletion", "HasErrors": False, "Cancelled": False},
    ]


def _table(kind: str, name: str, columns: dict[str, str], rows: list[list[Any]]) -> dict[str, Any]:
    described = [{"ColumnName": column, "ColumnType": type_name} for column, type_name in columns.items()]
    return {
        "FrameType": "DataTable", "TableId": 0, "TableKind": kind, "TableName": name, "Columns": described, "Rows": rows
    }  # fmt: skip


def _fail(frames: list[dict[str, Any]], code: str, text: str) -> None:
    """End an answer that began well in an error, as Kusto does: among the rows and in the last frame."""
    errors = [_one_api_error(code, text, permanent=False)]
    frames[2]["Rows"] = [*frames[2]["Rows"][:1], {"OneApiErrors": errors}]
    frames[-1] |= {"HasErrors": True, "OneApiErrors": errors}


def _one_api_error(code: str, text: str, *, permanent: bool) -> dict[str, Any]:
    return {
        "error": {
            "code": code,
            "message": "Request is invalid and cannot be executed.",
            "@type": "Kusto.Data.Exceptions.KustoException",
            "@message": text,
            "@context": {"timestamp": seven_digits(datetime.now(UTC)), "serviceAlias": "TEST"},
            "@permanent": permanent,
        }
    }


_COMPLETION = {
    "Timestamp": "datetime", "EventTypeName": "string", "Level": "int", "LevelName": "string", "StatusCode": "int",
    "StatusCodeName": "string", "Payload": "string",
}  # fmt: skip

_REFUSALS: dict[Fault | None, tuple[int, object]] = {
    Fault.THROTTLED: (
        429,
        _one_api_error("TooManyRequests", "The request is denied due to throttling", permanent=False),
    ),
    Fault.UNAVAILABLE: (503, {"message": "Service Unavailable"}),
    Fault.FORBIDDEN: (403, _one_api_error("Forbidden", "'app' is not authorized to read", permanent=True)),
    Fault.UNAUTHORIZED: (401, {}),
    Fault.NOT_JSON: (200, b"<html><body>Sign in, please</body></html>"),
    Fault.REDIRECT: (302, {"message": "Found"}),
}


@pytest.fixture
def kusto_server() -> Iterator[KustoServer]:
    """An empty cluster for one test."""
    server = KustoServer()
    yield server
    server.stop()
