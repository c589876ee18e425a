"""Who may look, and what every answer forbids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import requests

from ingest_project.errors import SettingsError
from ingest_project.monitor.access import SESSION_SECONDS, Gate, is_loopback
from ingest_project.monitor.serving import require_protection
from ingest_project_tests.monitor.conftest import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingest_project.settings import Settings

TOKEN = "a-token-of-the-tests"  # noqa: S105 - not one
PROTECTED = ("/", "/dashboard.json", "/metrics", "/readyz", "/nothing-here")


@pytest.fixture
def locked(settings_of: Callable[..., Settings], sqlite_url: str) -> Iterator[str]:
    with running(settings_of(sqlite_url, token=TOKEN), local_only=False) as site:
        yield site


def test_only_health_is_told_without_the_token(locked: str) -> None:
    assert requests.get(f"{locked}/healthz", timeout=5).status_code == 200
    for path in PROTECTED:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "ingest_monitor=9999999999.x"}):
            answer = requests.get(locked + path, headers=headers, timeout=5)
            assert answer.status_code == 401, path
            assert TOKEN not in answer.text


def test_the_bearer_of_the_token_sees_everything(locked: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for path, status in {"/": 200, "/dashboard.json": 200, "/metrics": 200, "/readyz": 503}.items():
        assert requests.get(locked + path, headers=headers, timeout=15).status_code == status


def test_a_person_types_the_token_once_and_the_cookie_does_not_hold_it(locked: str) -> None:
    with requests.Session() as person:
        page = person.get(locked + "/", headers={"Accept": "text/html"}, timeout=5)
        assert page.url.endswith("/login")
        assert "Token" in page.text
        wrong = person.post(f"{locked}/login", data={"token": "guess"}, timeout=5)
        assert wrong.status_code == 401
        assert "hidden" not in wrong.text
        right = person.post(f"{locked}/login", data={"token": TOKEN}, timeout=15)
        assert right.status_code == 200
        assert right.url == locked + "/"
        cookie = next(iter(person.cookies))
        assert TOKEN not in str(cookie.value)
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert cookie.get_nonstandard_attr("SameSite") == "strict"
        person.post(f"{locked}/logout", timeout=5)
        assert person.get(f"{locked}/metrics", timeout=5).status_code == 401


def test_a_session_ends_by_itself_and_with_its_token() -> None:
    gate = Gate(TOKEN)
    session = gate.new_session(now=1_000.0)
    assert gate.knows(session, now=1_000.0 + SESSION_SECONDS - 1)
    assert not gate.knows(session, now=1_000.0 + SESSION_SECONDS + 1)
    assert not Gate("another").knows(session, now=1_000.0)
    for forged in ("", ".", "9999999999", "9999999999.", "x.y", f"9{session}"):
        assert not gate.knows(forged, now=1_000.0)


def test_a_monitor_without_a_token_opens_with_none() -> None:
    assert not Gate("").opens_with("")


def test_a_form_that_is_too_large_is_refused(locked: str) -> None:
    assert requests.post(f"{locked}/login", data=b"x" * 10_000, timeout=5).status_code == 413


def test_every_answer_forbids_to_load_or_send_anything_elsewhere(locked: str) -> None:
    for path in ("/healthz", "/metrics", "/login", "/static/dashboard.css"):
        headers = requests.get(locked + path, timeout=5).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_name_from_elsewhere_that_points_here_is_refused(
    settings_of: Callable[..., Settings], sqlite_url: str
) -> None:
    with running(settings_of(sqlite_url)) as site:
        for host in ("evil.example", "127.0.0.1.evil.example", "[bad", ""):
            answer = requests.get(f"{site}/metrics", headers={"Host": host}, timeout=15)
            assert answer.status_code in {400, 421}, host
        assert requests.get(f"{site}/metrics", headers={"Host": "localhost:8080"}, timeout=15).status_code == 200


def test_beyond_this_machine_it_wants_a_token(settings_of: Callable[..., Settings]) -> None:
    with pytest.raises(SettingsError, match="INGEST_MONITOR_TOKEN"):
        require_protection(settings_of(), "0.0.0.0", insecure=False)  # noqa: S104 - refused
    require_protection(settings_of(), "0.0.0.0", insecure=True)  # noqa: S104 - nothing listens
    require_protection(settings_of(token=TOKEN), "::", insecure=False)
    require_protection(settings_of(), "127.0.0.1", insecure=False)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("a.localhost", True), ("0.0.0.0", False), ("", False)],  # noqa: S104 - not listened on
)
def test_only_loopback_names_are_this_machine(host: str, local: bool) -> None:  # noqa: FBT001 - a table
    assert is_loopback(host) is local
