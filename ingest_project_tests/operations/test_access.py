"""Permission to act: roles, CSRF tokens, origins, and limits of a request that changes something."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from html import unescape
from pathlib import Path
from urllib.parse import urljoin

import psutil
import pytest
import requests
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.operations.dashboard import limits, require_protection
from ingest_project.operations.dashboard.auth import ANYBODY, COOKIE, Gate, Guarded, problem
from ingest_project.operations.dashboard.limits import MAX_ADDRESSES, ActionLimits
from ingest_project.operations.dashboard.oidc import SignInPages
from ingest_project_tests.operations.conftest import running, serving
from ingest_project_tests.services.kafka import wait_until

VIEWER, OPERATOR = "the-token-of-viewers", "the-token-of-operators"
UPLOAD_BYTES = 2_000_000
PAGE = {"Accept": "text/html"}


def console(
    gate: Gate, settings: Settings | None = None, *, local_only: bool = False, actions_per_minute: int = 1_000
) -> Guarded:
    """A guarded application with one page and one action, which say what they learn."""

    async def page(request: Request) -> Response:
        viewer = request.state.viewer
        return JSONResponse({"name": viewer.name, "role": viewer.role, "csrf_token": request.state.csrf_token})

    async def act(request: Request) -> Response:
        return JSONResponse({"who": request.state.viewer.name, "bytes": len(await request.body())})

    async def alive(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    routes = [
        Route("/", page),
        Route("/items/{key:path}", page),
        Route("/healthz", alive),
        Route("/act", act, methods=["POST", "DELETE"]),
        Route("/upload", act, methods=["POST"]),
        *SignInPages(settings or Settings(), gate).routes(),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: problem})
    upload_limits = {"/upload": UPLOAD_BYTES}
    return Guarded(app, gate, local_only=local_only, actions_per_minute=actions_per_minute, uploads=upload_limits)


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    with serving(console(Gate(VIEWER, OPERATOR))) as site:
        yield site


@pytest.fixture(scope="module")
def unlocked() -> Iterator[str]:
    with serving(console(Gate(), local_only=True)) as site:
        yield site


def signed_in(site: str, token: str) -> tuple[requests.Session, str]:
    """A person with a session, and the CSRF token of their pages."""
    person = requests.Session()
    person.post(f"{site}/login", data={"token": token}, timeout=5)
    return person, person.get(f"{site}/", timeout=5).json()["csrf_token"]


@pytest.mark.parametrize(("token", "role", "status"), [(VIEWER, "viewer", 403), (OPERATOR, "operator", 200)])
def test_a_token_gives_its_role_to_programs_and_to_sessions(locked: str, token: str, role: str, status: int) -> None:
    bearer = {"Authorization": f"Bearer {token}"}
    assert requests.get(f"{locked}/", headers=bearer, timeout=5).json()["role"] == role
    assert requests.post(f"{locked}/act", headers=bearer, timeout=5).status_code == status
    person, csrf_token = signed_in(locked, token)
    assert person.get(f"{locked}/", timeout=5).json()["role"] == role
    answer = person.post(f"{locked}/act", data={"csrf_token": csrf_token}, timeout=5)
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["who"] == "operator token"


def test_with_an_operator_token_only_reading_requires_it_too(
    settings_of: Callable[..., Settings], sqlite_url: str
) -> None:
    with running(settings_of(sqlite_url, operator_token=OPERATOR), local_only=False) as site:
        assert requests.get(f"{site}/readyz", timeout=5).status_code == 401
        assert requests.get(
            f"{site}/readyz", headers={"Authorization": f"Bearer {OPERATOR}"}, timeout=15
        ).status_code in {200, 503}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_nothing_is_done_without_the_csrf_token_of_this_session(locked: str, method: str) -> None:
    person, _ = signed_in(locked, OPERATOR)
    _, of_another = signed_in(locked, OPERATOR)
    for form in (None, {"csrf_token": ""}, {"csrf_token": of_another}, {"csrf_token": "ü"}):
        assert person.request(method, f"{locked}/act", data=form, timeout=5).status_code == 403
    assert person.request(method, f"{locked}/act", headers={"X-CSRF-Token": of_another}, timeout=5).status_code == 403


def test_the_csrf_token_may_be_in_a_field_of_either_kind_of_form_or_in_a_header(locked: str) -> None:
    person, csrf_token = signed_in(locked, OPERATOR)
    form = {"name": "x" * 20_000, "csrf_token": csrf_token}
    assert person.post(f"{locked}/act", data=form, timeout=5).json()["bytes"] > 20_000
    parts = {"file": ("f.csv", b"y" * 1_400_000)}
    upload = person.post(f"{locked}/upload", data={"name": "n", "csrf_token": csrf_token}, files=parts, timeout=5)
    assert upload.json()["bytes"] > 1_400_000
    assert person.post(f"{locked}/upload", data={"name": "n"}, files=parts, timeout=5).status_code == 403
    sent = person.post(f"{locked}/act", json={"a": 1}, headers={"X-CSRF-Token": csrf_token}, timeout=5)
    assert sent.json()["bytes"] == 8
    assert person.post(f"{locked}/act", json={"csrf_token": csrf_token}, timeout=5).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Referer": "https://evil.example/127.0.0.1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "{site}"}, 200),
        ({"Referer": "{site}/act"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://console.example"}, 200),
        ({"Origin": "https://console.example", "X-Forwarded-Host": "console.example"}, 200),
    ],
)
def test_pages_of_other_sites_can_send_nothing(
    locked: str, unlocked: str, headers: dict[str, str], status: int
) -> None:
    for site in (locked, unlocked):
        sent = {name: value.replace("{site}", site) for name, value in headers.items()}
        person, csrf_token = signed_in(site, OPERATOR)
        answer = person.post(f"{site}/act", headers=sent | {"X-CSRF-Token": csrf_token}, timeout=5)
        assert answer.status_code == status
        if status == 403:
            assert person.post(f"{site}/login", headers=sent, data={"token": OPERATOR}, timeout=5).status_code == 403
            assert person.post(f"{site}/logout", headers=sent, timeout=5).status_code == 403
        assert person.get(f"{site}/", timeout=5).status_code == 200


def test_on_this_machine_the_person_is_operator_and_needs_the_csrf_token_and_the_right_host(unlocked: str) -> None:
    found = requests.get(f"{unlocked}/", timeout=5).json()
    assert found["role"] == "operator"
    act = f"{unlocked}/act"
    assert requests.post(act, timeout=5).status_code == 403
    form = {"csrf_token": found["csrf_token"]}
    assert requests.post(act, data=form, timeout=5).status_code == 200
    assert requests.post(act, data=form, headers={"Host": "evil.example"}, timeout=5).status_code == 421


def test_beyond_this_machine_nobody_acts_without_a_token() -> None:
    with serving(console(Gate(everybody=ANYBODY))) as site:
        found = requests.get(f"{site}/", timeout=5).json()
        assert found["role"] == "viewer"
        refused = requests.post(f"{site}/act", headers={"X-CSRF-Token": found["csrf_token"]}, timeout=5)
        assert refused.status_code == 403


def test_a_session_that_somebody_else_gave_the_browser_is_not_kept(locked: str) -> None:
    attacker, _ = signed_in(locked, VIEWER)
    given = attacker.cookies[COOKIE]
    answer = requests.post(
        f"{locked}/login", data={"token": OPERATOR}, cookies={COOKIE: given}, allow_redirects=False, timeout=5
    )
    assert answer.cookies[COOKIE] != given
    assert attacker.get(f"{locked}/", timeout=5).status_code == 401


def test_behind_tls_the_cookie_belongs_to_this_host_alone(locked: str) -> None:
    tls = {"X-Forwarded-Proto": "https"}
    answer = requests.post(f"{locked}/login", data={"token": OPERATOR}, headers=tls, allow_redirects=False, timeout=5)
    value = re.match(rf"__Host-{COOKIE}=([\w-]+); ", answer.headers["Set-Cookie"])
    assert value
    assert "Domain" not in answer.headers["Set-Cookie"]
    for name, status in ((f"__Host-{COOKIE}", 200), (COOKIE, 401)):
        sent = tls | {"Cookie": f"{name}={value[1]}"}
        assert requests.get(f"{locked}/", headers=sent, timeout=5).status_code == status


def test_too_many_actions_of_one_person_wait_and_those_of_another_do_not() -> None:
    with serving(console(Gate(VIEWER, OPERATOR), actions_per_minute=3)) as site:
        bearer = {"Authorization": f"Bearer {OPERATOR}"}
        answers = [requests.post(f"{site}/act", headers=bearer, timeout=5) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 20
        assert requests.get(f"{site}/", headers=bearer, timeout=5).status_code == 200
    actions = ActionLimits(60)
    assert [actions.take("one", 0.0) for _ in range(60)] == [0.0] * 60
    assert actions.take("one", 0.0) == pytest.approx(1.0)
    assert actions.take("another", 0.0) == 0.0
    assert actions.take("one", 1.5) == 0.0
    for number in range(2 * MAX_ADDRESSES):
        actions.take(str(number), 2.0)
    assert len(actions._left) == MAX_ADDRESSES


def test_a_body_that_is_too_large_is_refused_announced_or_not(locked: str) -> None:
    bearer = {"Authorization": f"Bearer {OPERATOR}"}
    for path, size in (("/act", limits.MAX_BODY_BYTES), ("/upload", UPLOAD_BYTES)):
        fits = requests.post(locked + path, headers=bearer, data=b"x" * size, timeout=5)
        assert fits.json()["bytes"] == size
        for content in (b"x" * (size + 1), iter([b"x" * size, b"x"])):
            answer = requests.post(locked + path, headers=bearer, data=content, timeout=5)
            assert answer.status_code == 413
            assert f"{size:,} bytes" in answer.text


def test_a_body_that_never_arrives_times_out(locked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest_project.operations.dashboard.auth.BODY_SECONDS", 0.2)
    address = ("127.0.0.1", int(locked.rpartition(":")[2]))
    with socket.create_connection(address, timeout=5) as connection:
        head = f"POST /act HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OPERATOR}\r\nContent-Length: 100\r\n\r\nabc"
        connection.sendall(head.encode())
        assert connection.recv(1_000).startswith(b"HTTP/1.1 408 ")


def test_a_head_that_never_arrives_or_never_ends_is_refused(locked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = ("127.0.0.1", int(locked.rpartition(":")[2]))
    with socket.create_connection(address, timeout=5) as connection:
        # Without a bound, each line of it would be kept.
        with suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % number for number in range(20_000)))
        assert connection.recv(1_000).startswith(b"HTTP/1.1 400 ")
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.2)
    with socket.create_connection(address, timeout=5) as connection:
        for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2:
            try:
                connection.sendall(bytes([byte]))
            except ConnectionError:
                break
            time.sleep(0.02)
        with suppress(ConnectionError):
            assert connection.recv(1_000) == b""


@pytest.mark.parametrize("path", ["/small", "/large"])
def test_a_connection_that_does_not_take_its_answers_is_ended(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.2)
    answers = {"/healthz": b"ok\n", "/small": bytes(50_000), "/large": bytes(8 * 1024**2)}
    routes = [Route(one, partial(_answered, Response(content))) for one, content in answers.items()]
    with serving(Starlette(routes=routes)) as site, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        connection.connect(("127.0.0.1", int(site.rpartition(":")[2])))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 200)
        ours, process = connection.getsockname(), psutil.Process()
        wait_until(lambda: all(one.raddr != ours for one in process.net_connections("tcp")), 20)


async def _answered(response: Response, _request: Request) -> Response:
    return response


def test_a_refusal_is_a_page_for_people_and_a_line_or_json_for_programs(locked: str) -> None:
    viewer = {"Authorization": f"Bearer {VIEWER}"}
    act = f"{locked}/act"
    page = requests.post(act, headers=viewer | PAGE, timeout=5)
    assert page.status_code == 403
    assert '<p role="alert">Only an operator can do this, and viewer token is a viewer.</p>' in page.text
    assert requests.post(act, headers=viewer, timeout=5).text.startswith("Only an operator")
    answer = requests.post(act, headers=viewer | {"Accept": "application/json"}, timeout=5)
    assert answer.json()["error"].startswith("Only an operator")
    assert requests.post(act, headers=PAGE, timeout=5).status_code == 401
    missing = requests.get(f"{locked}/<script>", headers=viewer | PAGE, timeout=5)
    assert (missing.status_code, "<script>" in missing.text) == (404, False)


@pytest.mark.parametrize(
    ("path", "lands"),
    [
        ("/items/file/a%2Fb.csv?x=1&y=%20", "/items/file/a%2Fb.csv?x=1&y=%20"),
        ("/login?next=//evil.example/", "/evil.example/"),
        ("/login?next=/%5Cevil.example", "/"),
        ("/login?next=https://evil.example/", "/"),
        ("/login?next=/https://evil.example/", "/https:/evil.example/"),
        ("/login?next=/%0d%0aSet-Cookie:x", "/"),
    ],
)
def test_after_the_login_a_person_sees_the_page_they_wanted_and_never_another_site(
    locked: str, path: str, lands: str
) -> None:
    with requests.Session() as person:
        form = person.get(locked + path, headers=PAGE, timeout=5)
        action = re.search(r'action="([^"]+)"', form.text)
        assert action
        target = urljoin(form.url, unescape(action[1]))
        assert person.post(target, data={"token": VIEWER}, timeout=5).url == locked + lands


def test_a_link_followed_from_another_site_finds_the_session(locked: str) -> None:
    from_mail = PAGE | {"Sec-Fetch-Site": "cross-site"}
    opening = requests.get(f"{locked}/items/file/x", headers=from_mail, timeout=5)
    found = re.search(r'content="0;url=([^"]+)"', opening.text)
    assert found
    assert found[1] == "../../login?next=/items/file/x"
    person, _ = signed_in(locked, VIEWER)
    answer = person.get(f"{locked}/login?next=/items/file/x", headers=PAGE, timeout=5)
    assert answer.url == f"{locked}/items/file/x"


def test_both_tokens_must_differ_and_are_never_shown(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="INGEST_MONITOR_OPERATOR_TOKEN") as refused:
        load_settings({"INGEST_MONITOR_TOKEN": VIEWER, "INGEST_MONITOR_OPERATOR_TOKEN": VIEWER}, tmp_path)
    assert VIEWER not in str(refused.value)
    loaded = load_settings({"INGEST_MONITOR_OPERATOR_TOKEN": OPERATOR}, tmp_path)
    assert OPERATOR not in repr(loaded)
    require_protection(loaded.settings, "0.0.0.0", insecure=False)  # noqa: S104 - nothing listens
