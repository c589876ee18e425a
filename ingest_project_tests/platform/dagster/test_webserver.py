"""The Dagster UI takes nothing from another site's page, changes nothing by GET, and answers under its own name."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from dagster_webserver.webserver import DagsterWebserver

from ingest_project.devstack import free_port

SECONDS = 60.0
QUERY = "{ version }"
MUTATION = "mutation { setNuxSeen }"
NAME = "dagster.example.com"
RUN = "5d0e8c6e"
WEBSOCKET = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
KEY = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "graphql-ws"}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A webserver without code locations."""
    home, port = tmp_path_factory.mktemp("webserver"), free_port()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    output = home / "storage" / RUN / "compute_logs"
    output.mkdir(parents=True)
    (home / "storage" / "kept.db").write_text("of others")
    (output / "step.out").write_text("of a run\n")
    environ = {**os.environ, "DAGSTER_HOME": str(home), "INGEST_WEBSERVER_URL": f"https://{NAME}"}
    command = [sys.executable, "-m", "ingest_project.platform.dagster.webserver", "--empty-workspace"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], env=environ, cwd=home, stdout=log, stderr=log)
    try:
        _wait_until_it_answers(process, port, home / "log")
        yield port
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://{here}"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Host": NAME, "Origin": f"https://{NAME}"},
        {"Host": "localhost:1234"},
    ],
)
def test_programs_and_its_own_pages_may_send_queries(port: int, headers: dict[str, str]) -> None:
    status, body = _post(port, MUTATION, headers)
    assert status == 200
    assert json.loads(body) == {"data": {"setNuxSeen": True}}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Referer": "https://example.org/page"}, 403),
        ({"Host": "example.org"}, 421),
        ({"Host": "example.org", "Origin": "http://example.org", "Sec-Fetch-Site": "same-origin"}, 421),
        ({"Host": f"{NAME}.example.org"}, 421),
    ],
)
def test_requests_from_another_site_or_host_name_are_refused(port: int, headers: dict[str, str], expected: int) -> None:
    for content_type in ("application/json", "text/plain"):
        status, body = _post(port, MUTATION, headers, content_type)
        assert status == expected
        assert b"setNuxSeen" not in body


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_nothing_is_executed_by_get(port: int, accept: str) -> None:
    for method in ("GET", "HEAD"):
        status, _ = _request(port, method, f"/graphql?query={quote(MUTATION)}", {"Accept": accept})
        assert status == 405


@pytest.mark.parametrize("path", ["/graphql%0A", "/notebook%0A", "/%00"])
def test_a_name_that_the_router_takes_for_another_is_not_answered(port: int, path: str) -> None:
    assert _request(port, "GET", f"{path}?query={quote(MUTATION)}", {})[0] == 404


def test_every_route_of_the_webserver_was_judged() -> None:
    """The route of pages takes any other path; the pages' own files are static."""
    pages, *others = "/{path:path}", "/", "/server_info", "/dagit_info", "/graphql", "/graphql"
    closed = {"/notebook", "/dagit/notebook", "/download_debug/{run_id:str}"}
    narrowed = {"/logs/{path:path}"}
    by_post = {f"/report_asset_{what}/{{asset_key:path}}" for what in ("materialization", "check", "observation")}
    webserver: Any = DagsterWebserver
    routes = [route for route in webserver(None).build_routes() if not route.name.endswith("static")]
    assert {route.path for route in routes} == {pages, *others, *closed, *narrowed, *by_post}
    assert all(route.methods == {"POST"} for route in routes if route.path in by_post)


@pytest.mark.parametrize(
    "path",
    [
        "/notebook?path=/etc/x.ipynb&repoLocName=x",
        "/dagit/notebook?path=x.ipynb&repoLocName=x",
        f"/download_debug/{RUN}",
        "/download_debug%2Fx",
        "/logs/kept/db",
        f"/logs/{RUN}/compute_logs/../../kept/db",
        "/logs/a/compute_logs/b/db",
    ],
)
def test_the_webserver_serves_no_files_of_the_machine_except_run_logs(port: int, path: str) -> None:
    for method in ("GET", "HEAD"):
        assert _request(port, method, path, {"Accept": "text/html"})[0] == 404
    assert _request(port, "GET", f"/logs/{RUN}/compute_logs/step/out", {}) == (200, b"of a run\n")
    # Pages of things with these names are pages.
    assert _request(port, "GET", "/assets/notebook", {"Accept": "text/html"})[0] == 200
    assert _request(port, "GET", "/assets/graphql", {})[0] == 200


def test_the_pages_are_shown(port: int) -> None:
    for path in ("/", "/graphql", "/server_info"):
        assert _request(port, "GET", path, {"Accept": "text/html"})[0] == 200
    # A probe knows the number of the container only.
    assert _request(port, "GET", "/server_info", {"Host": "10.1.2.3:3000"})[0] == 200


def test_another_sites_page_opens_no_websocket(port: int) -> None:
    own = {"Origin": f"http://127.0.0.1:{port}"}
    assert _request(port, "GET", "/graphql", WEBSOCKET | KEY | own)[0] == 101
    assert _request(port, "GET", "/graphql", WEBSOCKET | KEY | {"Origin": "https://example.org"})[0] == 403
    assert _request(port, "GET", "/graphql", WEBSOCKET | KEY | own | {"Host": "example.org"})[0] == 403


def _post(
    port: int, query: str, headers: Mapping[str, str], content_type: str = "application/json"
) -> tuple[int, bytes]:
    sent = {name: value.format(here=f"127.0.0.1:{port}") for name, value in headers.items()}
    return _request(port, "POST", "/graphql", {"Content-Type": content_type, **sent}, json.dumps({"query": query}))


def _request(port: int, method: str, path: str, headers: Mapping[str, str], body: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request(method, path, body or None, dict(headers))
        answer = connection.getresponse()
        return answer.status, b"" if answer.status == 101 else answer.read()
    finally:
        connection.close()


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up_at = time.monotonic() + SECONDS
    while time.monotonic() < give_up_at:
        assert process.poll() is None, log.read_text()
        try:
            _request(port, "GET", "/server_info", {})
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())
