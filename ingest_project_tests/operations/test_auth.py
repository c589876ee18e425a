"""Access to the monitor, and the headers of every response."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.operations.dashboard import require_protection
from ingest_project.operations.dashboard.auth import COOKIE, MAX_SESSIONS, SESSION_SECONDS, Gate, Role, Viewer
from ingest_project.operations.dashboard.limits import (
    FREE_FAILURES,
    LONGEST_PAUSE_SECONDS,
    MAX_ADDRESSES,
    SHARED_REFILL_SECONDS,
    GuessLimits,
)
from ingest_project.platform.http import is_loopback
from ingest_project_tests.operations.conftest import running

TOKEN = "a-token-of-the-tests"  # noqa: S105 - not one
PERSON = Viewer("person", Role.VIEWER)
PROTECTED = ("/", "/dashboard.json", "/metrics", "/readyz", "/nothing-here")


@pytest.fixture
def locked(settings_of: Callable[..., Settings], sqlite_url: str) -> Iterator[str]:
    with running(settings_of(sqlite_url, token=TOKEN), local_only=False) as site:
        yield site


def test_only_health_is_served_without_the_token(locked: str) -> None:
    assert requests.get(f"{locked}/healthz", timeout=5).status_code == 200
    for path in PROTECTED:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"{COOKIE}=9999999999.x"}):
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


def test_a_session_expires_and_ends_with_its_process() -> None:
    gate = Gate(TOKEN)
    session = gate.new_session(PERSON, now=1_000.0)
    assert gate.session_of(session, now=1_000.0 + SESSION_SECONDS - 1)
    assert not gate.session_of(session, now=1_000.0 + SESSION_SECONDS + 1)
    assert not Gate(TOKEN).session_of(session, now=1_000.0)
    for forged in ("", ".", "9999999999", "9999999999.", "x.y", "ü", f"9{session}"):
        assert not gate.session_of(forged, now=1_000.0)


def test_sessions_take_bounded_memory_and_the_oldest_ends_first() -> None:
    gate = Gate(TOKEN)
    sessions = [gate.new_session(PERSON, now=1_000.0) for _ in range(MAX_SESSIONS + 1)]
    assert len(set(sessions)) == len(sessions)
    assert not gate.session_of(sessions[0], now=1_001.0)
    assert gate.session_of(sessions[1], now=1_001.0)


def test_a_copy_of_the_cookie_is_worth_nothing_after_the_logout(locked: str) -> None:
    with requests.Session() as person:
        person.post(f"{locked}/login", data={"token": TOKEN}, timeout=15)
        copied = {"Cookie": f"{COOKIE}={person.cookies[COOKIE]}"}
        assert requests.get(f"{locked}/dashboard.json", headers=copied, timeout=15).status_code == 200
        person.post(f"{locked}/logout", timeout=5)
    assert requests.get(f"{locked}/dashboard.json", headers=copied, timeout=5).status_code == 401


def test_behind_tls_the_cookie_never_goes_over_plain_http(locked: str) -> None:
    headers = {"X-Forwarded-Proto": "https"}
    answer = requests.post(f"{locked}/login", data={"token": TOKEN}, headers=headers, allow_redirects=False, timeout=5)
    assert {"HttpOnly", "Secure", "SameSite=strict"} <= set(answer.headers["Set-Cookie"].split("; "))


def test_a_guessing_client_waits_longer_and_longer_and_the_right_token_is_not_checked_meanwhile(locked: str) -> None:
    for way in ("header", "form"):
        codes = []
        for number in range(FREE_FAILURES + 2):
            guess = f"guess-{way}-{number}"
            codes.append(
                requests.get(f"{locked}/metrics", headers={"Authorization": f"Bearer {guess}"}, timeout=5).status_code
                if way == "header"
                else requests.post(f"{locked}/login", data={"token": guess}, timeout=5).status_code
            )
        assert codes[-1] == 429
    refused = requests.get(f"{locked}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=5)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert requests.get(f"{locked}/healthz", timeout=5).status_code == 200


def guesses_until(limits: GuessLimits, address: str, count: int, now: float) -> float:
    for _ in range(count):
        now += limits.wait_seconds(address, now)
        limits.failed(address, now)
    return now


def test_pauses_double_up_to_their_limit_and_are_forgotten_with_the_right_token() -> None:
    limits = GuessLimits()
    now = guesses_until(limits, "192.0.2.1", FREE_FAILURES, 0.0)
    pauses = []
    for _ in range(12):
        limits.failed("192.0.2.1", now)
        pauses.append(limits.wait_seconds("192.0.2.1", now))
        now += pauses[-1]
    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    limits.succeeded("192.0.2.1")
    assert limits.wait_seconds("192.0.2.1", now) == 0


def test_many_addresses_together_are_slowed_down_in_bounded_memory_and_a_known_one_is_not() -> None:
    limits = GuessLimits()
    limits.succeeded("198.51.100.7")
    for number in range(50_000):
        limits.failed(f"203.0.{number // 250}.{number % 250}", 1.0)
    assert limits.wait_seconds("192.0.2.99", 1.0) > 0
    assert limits.wait_seconds("198.51.100.7", 1.0) == 0
    assert len(limits._failures) == MAX_ADDRESSES
    assert limits.wait_seconds("192.0.2.99", 1.0 + 2 * SHARED_REFILL_SECONDS) == 0


def test_the_addresses_of_one_ipv6_network_are_one_guesser() -> None:
    limits = GuessLimits()
    for number in range(FREE_FAILURES + 1):
        limits.failed(f"2001:db8::{number:x}", 0.0)
    assert limits.wait_seconds("2001:db8::ffff", 0.0) > 0
    assert limits.wait_seconds("2001:db8:1::1", 0.0) == 0
    for number in range(FREE_FAILURES + 1):
        limits.failed("::ffff:192.0.2.1" if number % 2 else "192.0.2.1", 0.0)
    assert limits.wait_seconds("192.0.2.1", 0.0) > 0


@pytest.mark.parametrize(
    "weak", ["x", "short", "a" * 40, "abababababababababab", "with a space in it", "ünïcödé-tökén-16"]
)
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused_with_the_remedy(weak: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"INGEST_MONITOR_TOKEN \(from environment\)") as refused:
        load_settings({"INGEST_MONITOR_TOKEN": weak}, tmp_path)
    assert weak == "x" or weak not in str(refused.value)
    assert "openssl rand -hex 32" in str(refused.value) or "printable ASCII" in str(refused.value)


def test_a_monitor_without_a_token_opens_with_none() -> None:
    assert not Gate("").try_token("", "127.0.0.1")


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
