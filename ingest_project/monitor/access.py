"""Who may look: whoever knows the token, or on a monitor without one, whoever is on this machine.

Programs send the token as `Authorization: Bearer`, people type it into a form and get a cookie. The cookie does not
hold the token, and ends with it: it is signed by it. Every answer forbids the page to load or send anything elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "ingest_monitor"
SESSION_SECONDS = 12 * 3600
OPEN_PATHS = frozenset({"/healthz", "/login"})
# The form's own looks are no secret.
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
    """Knows the token.

    Args:
        token: empty where nobody is asked.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    @property
    def is_locked(self) -> bool:
        """Whether a token is asked for."""
        return bool(self._token)

    def opens_with(self, token: str) -> bool:
        """Whether that is the token; takes the same time for every wrong one."""
        return self.is_locked and secrets.compare_digest(token.encode(), self._token)

    def new_session(self, now: float | None = None) -> str:
        """The value of a cookie that is good for a while."""
        ends_at = str(int((time.time() if now is None else now) + SESSION_SECONDS))
        return f"{ends_at}.{self._signature(ends_at)}"

    def knows(self, session: str, now: float | None = None) -> bool:
        """Whether the cookie is one of ours and still good."""
        ends_at, _, signature = session.partition(".")
        if not secrets.compare_digest(signature.encode(), self._signature(ends_at).encode()):
            return False
        return int(ends_at) > (time.time() if now is None else now)

    def admits(self, headers: Headers) -> bool:
        """Whether a request brings the token or a cookie."""
        if not self.is_locked:
            return True
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.opens_with(token.strip()):
            return True
        return self.knows(_cookie(headers))

    def _signature(self, ends_at: str) -> str:
        return hmac.new(self._token, b"session " + ends_at.encode(), hashlib.sha256).hexdigest()


class Guarded:
    """The application behind the gate.

    Args:
        app: what is guarded.
        gate: knows the token.
        local_only: refuse requests that were addressed to another name than this machine's own: a page from elsewhere
            could have its name point here, and read what it likes.
    """

    def __init__(self, app: ASGIApp, gate: Gate, *, local_only: bool) -> None:
        self._app = app
        self._gate = gate
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._chosen(scope)(scope, receive, _with_headers(send))

    def _chosen(self, scope: Scope) -> ASGIApp:
        headers, path = Headers(scope=scope), scope["path"]
        if self._local_only and not is_loopback(_host(headers)):
            return PlainTextResponse("This monitor is for this machine only; set a token to open it.\n", 421)
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIX) or self._gate.admits(headers):
            return self._app
        if "text/html" in headers.get("accept", ""):
            return RedirectResponse("login", status_code=303)
        return PlainTextResponse("The token is missing or wrong.\n", 401, {"WWW-Authenticate": "Bearer"})


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(headers: Headers) -> str:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def _cookie(headers: Headers) -> str:
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
