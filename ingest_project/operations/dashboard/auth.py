"""Access to the monitor: by token, or from this machine where no token is set, with limits on guessing.

Programs send the token as `Authorization: Bearer`, people type it into a form and get a cookie. The cookie is a random
number that only this process knows: it ends with its time, with a logout and with the process. Every answer forbids the
page to load or send anything elsewhere.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse

from ingest_project.core.logging import get_logger
from ingest_project.operations.dashboard.rendering import root_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = get_logger(__name__)

FREE_FAILURES = 5
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0
FORGET_SECONDS = 3_600.0
# For all unknown addresses together: so many at once, and then one more at each interval.
SHARED_FAILURES, SHARED_REFILL_SECONDS = 60, 2.0
MAX_ADDRESSES = 1_024
# A client with one IPv6 address has the whole network of its first bits.
IPV6_PREFIX = 64


@dataclass
class _Failures:
    count: int
    at: float

    def pause(self, now: float) -> float:
        """Return the seconds that are left of the pause after the last failure."""
        over = self.count - FREE_FAILURES
        if over <= 0:
            return 0.0
        return self.at + min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(over - 1, 30)) - now


class GuessLimits:
    """Count wrong tokens and decide how long an address must wait before its next attempt is checked.

    An address that has sent the right token is trusted: others' guesses do not lock it out.
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        self._trusted: OrderedDict[str, None] = OrderedDict()
        self._shared = float(SHARED_FAILURES)
        self._shared_at = 0.0

    def wait_seconds(self, address: str, now: float) -> float:
        """Return how long this address must wait; 0 where its attempt may be checked."""
        who = _network(address)
        failures = self._failures.get(who)
        own = failures.pause(now) if failures else 0.0
        if who in self._trusted:
            return max(0.0, own)
        left = self._refilled(now)
        return max(0.0, own, 0.0 if left >= 1 else (1 - left) * SHARED_REFILL_SECONDS)

    def failed(self, address: str, now: float) -> None:
        """Count a wrong token."""
        who = _network(address)
        known = self._failures.pop(who, None)
        count = known.count + 1 if known and now - known.at < FORGET_SECONDS else 1
        self._failures[who] = _Failures(count, now)
        _keep_newest(self._failures)
        self._shared = max(0.0, self._refilled(now) - 1)
        if count > FREE_FAILURES:
            logger.warning("monitor_tokens_guessed", address=who, failures=count)

    def succeeded(self, address: str) -> None:
        """Forget the failures of an address that has shown the right token."""
        who = _network(address)
        self._failures.pop(who, None)
        self._trusted.pop(who, None)
        self._trusted[who] = None
        _keep_newest(self._trusted)

    def _refilled(self, now: float) -> float:
        self._shared = min(float(SHARED_FAILURES), self._shared + (now - self._shared_at) / SHARED_REFILL_SECONDS)
        self._shared_at = now
        return self._shared


def _keep_newest(entries: OrderedDict[str, Any]) -> None:
    while len(entries) > MAX_ADDRESSES:
        entries.popitem(last=False)


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))


class Role(StrEnum):
    """What a viewer may do: look, or act too."""

    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True)
class Viewer:
    """Who sent a request.

    Args:
        name: of the person; empty where nobody has to log in.
        role: what they may do.
    """

    name: str
    role: Role


COOKIE = "ingest_monitor"
SESSION_SECONDS = 12 * 3600
MAX_SESSIONS = 1_000
OPEN_PATHS = frozenset({"/healthz", "/login"})
# The style of the form is no secret.
OPEN_PREFIX = "/static/"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gate:
    """Check the token, sessions and guesses.

    Args:
        token: empty where none is required.
    """

    def __init__(self, token: str) -> None:
        self._token = _digest(token) if token else b""
        self._sessions: OrderedDict[bytes, float] = OrderedDict()
        self._limits = GuessLimits()

    @property
    def is_locked(self) -> bool:
        """True where a token is required."""
        return bool(self._token)

    def opens_with(self, token: str) -> bool:
        """Tell whether that is the token; takes the same time for every wrong one."""
        return self.is_locked and secrets.compare_digest(_digest(token), self._token)

    def try_token(self, token: str, address: str, now: float | None = None) -> bool:
        """Check a token that came from an address.

        Raises:
            TooManyAttemptsError: the address has to wait; the token was not checked.
        """
        now = time.monotonic() if now is None else now
        if wait := self._limits.wait_seconds(address, now):
            raise TooManyAttemptsError(wait)
        if self.opens_with(token):
            self._limits.succeeded(address)
            return True
        self._limits.failed(address, now)
        return False

    def new_session(self, now: float | None = None) -> str:
        """Create a session; return the value of its cookie."""
        now = time.monotonic() if now is None else now
        # Sessions end in the order in which they began.
        while self._sessions and (len(self._sessions) >= MAX_SESSIONS or next(iter(self._sessions.values())) <= now):
            self._sessions.popitem(last=False)
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = now + SESSION_SECONDS
        return session

    def knows(self, session: str, now: float | None = None) -> bool:
        """Tell whether the cookie belongs to a session that has not ended."""
        return self._sessions.get(_digest(session), 0.0) > (time.monotonic() if now is None else now)

    def end_session(self, session: str) -> None:
        """End a session: copies of its cookie are worthless."""
        self._sessions.pop(_digest(session), None)

    def admits(self, headers: Headers, address: str) -> bool:
        """Tell whether a request carries a valid cookie or the token.

        Raises:
            TooManyAttemptsError: see `try_token`.
        """
        if not self.is_locked or self.knows(cookie_of(headers)):
            return True
        kind, _, token = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and self.try_token(token.strip(), address)


class TooManyAttemptsError(Exception):
    """An address has sent too many wrong tokens.

    Args:
        wait_seconds: after which its next one is checked.
    """

    def __init__(self, wait_seconds: float) -> None:
        self.wait_seconds = math.ceil(wait_seconds)
        super().__init__(f"Too many wrong tokens. Try again in {self.wait_seconds} s.")

    def answer(self) -> PlainTextResponse:
        """Return the response to the client."""
        return PlainTextResponse(f"{self}\n", 429, {"Retry-After": str(self.wait_seconds)})


class Guarded:
    """Wrap the application: only admitted requests reach it.

    Args:
        app: that is guarded.
        gate: knows the token.
        local_only: refuse requests addressed to a name other than this machine's own: a foreign page could have its
            name resolve to this machine and read everything (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, gate: Gate, *, local_only: bool) -> None:
        self._app = app
        self._gate = gate
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        session = cookie_of(Headers(scope=scope))
        state = scope.setdefault("state", {})
        state["viewer"] = Viewer("operator" if self._gate.is_locked else "", Role.OPERATOR)
        state["csrf_token"] = _digest(f"csrf:{session}").hex()
        await self._chosen(scope)(scope, receive, _with_headers(send))

    def _chosen(self, scope: Scope) -> ASGIApp:
        headers, path = Headers(scope=scope), scope["path"]
        if self._local_only and not is_loopback(_host(headers)):
            return PlainTextResponse("This monitor is for this machine only; set a token to open it.\n", 421)
        try:
            if path in OPEN_PATHS or path.startswith(OPEN_PREFIX) or self._gate.admits(headers, address_of(scope)):
                return self._app
        except TooManyAttemptsError as refusal:
            return refusal.answer()
        if "text/html" in headers.get("accept", ""):
            return RedirectResponse(f"{root_of(scope)}login", status_code=303)
        return PlainTextResponse("The token is missing or wrong.\n", 401, {"WWW-Authenticate": "Bearer"})


def is_loopback(host: str) -> bool:
    """Tell whether a name or address always means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(scope: Scope) -> str:
    """Return the address of the client, as far as the connection tells."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _digest(text: str) -> bytes:
    # Of constant length, and useless to a reader of this process's memory.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _host(headers: Headers) -> str:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def cookie_of(headers: Headers) -> str:
    """Return the session cookie of a request; empty without one."""
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sent
