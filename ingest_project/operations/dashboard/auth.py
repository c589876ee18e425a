"""Authenticate and authorise requests to the console.

A *viewer* can see everything, an *operator* can also act. Programs send a token as `Authorization: Bearer`; people type
it into a form, or sign in with OpenID Connect, and get a cookie. The cookie is a random number that only this process
knows: its session ends at its expiry, at logout, and with the process. If neither a token nor a provider is configured,
every user of this machine is an operator.

Every request passes through `Guarded`, so that no page can omit a rule: a request other than GET and HEAD needs the
role, a page of this site as its origin, the session's CSRF token unless it carries a Bearer token, and a body within
limits of size and time. Every response forbids the page to load anything from, or send anything to, another site.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote

from pydantic import SecretStr
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingest_project.core.secrets import text_of
from ingest_project.core.settings import Settings
from ingest_project.operations.dashboard.limits import MAX_BODY_BYTES, ActionLimits, BoundedBody, GuessLimits
from ingest_project.operations.dashboard.rendering import render, root_of
from ingest_project.platform.http import host_of, is_loopback, is_same_origin

SESSION_SECONDS = 12 * 3600
MAX_SESSIONS = 1_000
COOKIE = "ingest_monitor"
# A browser accepts a cookie with this prefix only over TLS, and only from exactly this host.
HOST_PREFIX = "__Host-"
CSRF_HEADER = "x-csrf-token"
LOOKING = frozenset({"GET", "HEAD"})
# Paths that need no sign-in; logging out needs only the cookie, which other sites cannot send.
SIGN_IN_PATHS = frozenset({"/login", "/logout", "/oidc/login", "/oidc/callback"})
OPEN_PATHS = SIGN_IN_PATHS | {"/healthz"}
# Scripts and styles are not secret, and the sign-in form needs them.
OPEN_PREFIX = "/static/"
MAX_SIGN_IN_BYTES = 4_096
BODY_SECONDS, UPLOAD_SECONDS = 10.0, 300.0
MAX_RETURN_CHARACTERS = 2_000
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    # With `no-referrer`, browsers send `null` as the origin of our own forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Role(StrEnum):
    """Role of a viewer: look only, or also act."""

    VIEWER = "viewer"
    OPERATOR = "operator"


class Viewer(NamedTuple):
    """The sender of a request.

    Args:
        name: name of the person, as recorded in the audit.
        role: role of the person.
        signed_in: False if no sign-in is required.
    """

    name: str
    role: Role
    signed_in: bool = True

    @property
    def may_act(self) -> bool:
        """Return True for an operator."""
        return self.role is Role.OPERATOR


RECHECKED = "Your sign-in has to be confirmed again: load a page of this site, and send this once more."
NOBODY = Viewer("", Role.VIEWER, signed_in=False)
# Viewers without a token or a provider: on this machine only, and with --insecure.
LOCAL_PERSON = Viewer("local user", Role.OPERATOR, signed_in=False)
ANYBODY = Viewer("anybody", Role.VIEWER, signed_in=False)


class Session(NamedTuple):
    """A person who has signed in.

    Args:
        csrf_token: token that every form and request of the session carries.
        ends: monotonic time of its end.
        trusted_until: monotonic time after which the provider has to confirm the person again; None without a provider.
    """

    viewer: Viewer
    csrf_token: str
    ends: float
    trusted_until: float | None = None


class Admission(NamedTuple):
    """The admitted viewer, and the CSRF token that actions need; None if they need none."""

    viewer: Viewer
    csrf_token: str | None


class Gate:
    """Checks tokens and sessions, and limits guesses.

    Args:
        token: token of viewers; empty for none.
        operator_token: token of operators; empty for none.
        has_provider: True if people can sign in with OpenID Connect.
        everybody: viewer of every request if no sign-in is required.
        recheck_seconds: time after which the provider has to confirm a person again.
    """

    def __init__(
        self,
        token: str | SecretStr = "",
        operator_token: str | SecretStr = "",
        *,
        has_provider: bool = False,
        everybody: Viewer = LOCAL_PERSON,
        recheck_seconds: float = SESSION_SECONDS,
    ) -> None:
        of_role = {Role.VIEWER: token, Role.OPERATOR: operator_token}
        self._tokens = [(known, Viewer(f"{role} token", role)) for role, known in of_role.items() if text_of(known)]
        self._has_provider = has_provider
        self._recheck_seconds = recheck_seconds
        self._everybody = Admission(everybody, secrets.token_urlsafe(32))
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        self._limits = GuessLimits()

    @classmethod
    def of(cls, settings: Settings, *, local_only: bool) -> Gate:
        """Create the gate for these settings.

        Args:
            settings: settings with the tokens and the provider.
            local_only: True if only this machine can reach the console.
        """
        token, operator_token = settings.monitor.token, settings.monitor.operator_token
        return cls(
            token or "",
            operator_token or "",
            has_provider=bool(settings.oidc.issuer),
            everybody=LOCAL_PERSON if local_only else ANYBODY,
            recheck_seconds=settings.oidc.recheck_seconds,
        )

    @property
    def is_locked(self) -> bool:
        """Return True if people and programs have to authenticate."""
        return bool(self._tokens) or self._has_provider

    @property
    def takes_tokens(self) -> bool:
        """Return True if at least one token is configured."""
        return bool(self._tokens)

    def try_token(self, token: str, address: str, now: float | None = None) -> Viewer | None:
        """Return the viewer of a token from a client's address, in constant time for wrong tokens.

        Raises:
            HTTPException: 429: the address has to wait, so the token was not checked.
        """
        now = time.monotonic() if now is None else now
        if wait := self._limits.wait_seconds(address, now):
            raise too_many(wait, "Too many wrong tokens.")
        digest, viewer = _digest(token), None
        for known, its_viewer in self._tokens:
            if secrets.compare_digest(digest, _digest(text_of(known))):
                viewer = its_viewer
        if viewer:
            self._limits.succeeded(address)
        else:
            self._limits.failed(address, now)
        return viewer

    def new_session(self, viewer: Viewer, now: float | None = None, *, by_provider: bool = False) -> str:
        """Create a session; return the value of its cookie.

        Args:
            viewer: viewer of the session.
            now: current monotonic time.
            by_provider: True if the provider has confirmed the person, which is valid for a limited time.
        """
        now = time.monotonic() if now is None else now
        # Sessions end in the order of their beginning.
        while self._sessions and (
            len(self._sessions) >= MAX_SESSIONS or next(iter(self._sessions.values())).ends <= now
        ):
            self._sessions.popitem(last=False)
        cookie = secrets.token_urlsafe(32)
        until = now + self._recheck_seconds if by_provider else None
        self._sessions[_digest(cookie)] = Session(viewer, secrets.token_urlsafe(32), now + SESSION_SECONDS, until)
        return cookie

    def session_of(self, cookie: str, now: float | None = None) -> Session | None:
        """Return the session of a cookie, unless it has ended."""
        session = self._sessions.get(_digest(cookie))
        return session if session and session.ends > (time.monotonic() if now is None else now) else None

    def is_stale(self, cookie: str, now: float | None = None) -> bool:
        """Return True if the provider has to confirm the person before the session admits further requests."""
        session = self.session_of(cookie, now)
        until = session.trusted_until if session else None
        return until is not None and until <= (time.monotonic() if now is None else now)

    def end_session(self, cookie: str) -> None:
        """End a session, which invalidates all copies of its cookie."""
        self._sessions.pop(_digest(cookie), None)

    def admit(self, request: Request) -> Admission | None:
        """Return the sender of a request; None without a valid token or cookie.

        Raises:
            HTTPException: see `try_token`.
        """
        if not self.is_locked:
            return self._everybody
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            viewer = self.try_token(token.strip(), address_of(request.scope))
            return Admission(viewer, None) if viewer else None
        cookie = cookie_of(request)
        session = None if self.is_stale(cookie) else self.session_of(cookie)
        return Admission(session.viewer, session.csrf_token) if session else None


class Guarded:
    """Wraps the application: passes on only allowed requests, with their sender.

    Args:
        app: application to guard.
        gate: checks tokens and sessions.
        local_only: refuse requests addressed to names other than this machine's own: a foreign page could have its
            name resolve to this machine and read everything (DNS rebinding).
        actions_per_minute: limit for one viewer.
        uploads: maximum body size by path, in bytes; MAX_BODY_BYTES for other paths.
    """

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        *,
        local_only: bool,
        actions_per_minute: int,
        uploads: Mapping[str, int] | None = None,
    ) -> None:
        self._app = app
        self._gate = gate
        self._local_only = local_only
        self._actions = ActionLimits(actions_per_minute)
        self._uploads = uploads or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # No name contains NUL, which databases and file systems refuse.
        plain = {"path": scope["path"].replace("\x00", "\ufffd")}
        plain["query_string"] = scope["query_string"].replace(b"%00", b"%EF%BF%BD").replace(b"\x00", b"%EF%BF%BD")
        scope = {**scope, **plain}
        app, request = self._app, Request(scope, receive)
        request.state.viewer, request.state.csrf_token = NOBODY, ""
        try:
            app = self._refusal(request) or app
            if app is self._app and request.method not in LOOKING:
                receive = await self._checked_body(request)
        except HTTPException as refusal:
            app = problem(request, refusal)
        await app(scope, receive, _with_headers(send))

    def _refusal(self, request: Request) -> Response | None:
        """Return the response to an unauthenticated request; None if the request may read."""
        if self._local_only and not is_loopback(host_of(request.headers.get("host", ""))[0]):
            raise HTTPException(421, "This monitor is for this machine only; set a token to open it.")
        path = request.scope["path"]
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return None
        admission = self._gate.admit(request)
        if admission:
            request.state.viewer, request.state.csrf_token = admission.viewer, admission.csrf_token or ""
            request.state.needs_csrf_token = admission.csrf_token is not None
            return None
        if not _wants_page(request) or request.method not in LOOKING:
            stale = self._gate.is_stale(cookie_of(request))
            reason = RECHECKED if stale else "The token is missing or wrong."
            raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})
        # Use the path as the browser sent it: an encoded slash in a key is not a separator.
        address = request.scope.get("raw_path", path.encode()).decode("latin-1")
        address += f"?{request.url.query}" if request.url.query else ""
        wanted = "" if path == "/" else f"?next={quote(address[:MAX_RETURN_CHARACTERS])}"
        login = f"{root_of(request.scope)}login{wanted}"
        if request.headers.get("sec-fetch-site") == "cross-site":
            # A browser omits the cookie when it follows a link from another site: let our own page repeat the request.
            return render(request, "opening.html", 401, to=login)
        return RedirectResponse(login, 303)

    async def _checked_body(self, request: Request) -> Receive:
        """Check a request that changes something; return the function that reads its bounded body.

        Raises:
            HTTPException: the request is not allowed.
        """
        if not is_same_origin(request.headers):
            raise HTTPException(403, "The request comes from a page of another site.")
        path, viewer = request.scope["path"], request.state.viewer
        if path in SIGN_IN_PATHS:
            return BoundedBody(request, MAX_SIGN_IN_BYTES, BODY_SECONDS).receive
        if not viewer.may_act:
            raise HTTPException(403, f"Only an operator can do this, and {viewer.name} is a {viewer.role}.")
        upload = self._uploads.get(path)
        body = BoundedBody(request, upload or MAX_BODY_BYTES, UPLOAD_SECONDS if upload else BODY_SECONDS)
        if request.state.needs_csrf_token:
            given = request.headers.get(CSRF_HEADER) or await body.csrf_token()
            if not secrets.compare_digest(given.encode(), request.state.csrf_token.encode()):
                raise HTTPException(403, "The form has expired. Load its page again, and send it once more.")
        if wait := self._actions.take(viewer.name):
            raise too_many(wait, "Too many actions.")
        return body.receive


def problem(request: Request, error: Exception) -> Response:
    """Return the response for an error: a page for browsers, JSON or a line of text for programs.

    Args:
        request: request that failed.
        error: an HTTPException, or an IngestError of a part that does not answer.
    """
    status, detail, headers = 503, str(error), None
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, error.detail, error.headers
    if _wants_page(request):
        page = render(request, "problem.html", status, title=HTTPStatus(status).phrase, detail=detail)
        page.headers.update(headers or {})
        return page
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"error": detail}, status, headers)
    return PlainTextResponse(f"{detail}\n", status, headers)


def is_https(request: Request) -> bool:
    """Return True if the browser used TLS, according to the connection or a proxy's header."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"


def address_of(scope: Scope) -> str:
    """Return the client's address from the connection."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def cookie_of(request: Request, name: str = COOKIE) -> str:
    """Return a cookie of a request; empty if it is missing."""
    return request.cookies.get(cookie_name(request, name), "")


def cookie_name(request: Request, name: str = COOKIE) -> str:
    """Return the name under which this request sends a cookie."""
    return HOST_PREFIX + name if is_https(request) else name


def set_cookie(request: Request, answer: Response, value: str, seconds: int, name: str = COOKIE) -> None:
    """Set a cookie in the browser, or delete it if the value is empty.

    The browser sends a sign-in cookie when the provider redirects back to this site; a session's cookie only from
    this site's own pages.
    """
    answer.set_cookie(
        cookie_name(request, name),
        value,
        seconds,
        httponly=True,
        secure=is_https(request),
        samesite="strict" if name == COOKIE else "lax",
    )


def _digest(text: str) -> bytes:
    # A digest has constant length, and is useless to a reader of this process's memory.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def too_many(seconds: float, reason: str) -> HTTPException:
    """Return the refusal of a request that may be repeated after some seconds."""
    seconds = math.ceil(seconds)
    return HTTPException(429, f"{reason} Try again in {seconds} s.", {"Retry-After": str(seconds)})


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sent
