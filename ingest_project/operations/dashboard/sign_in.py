"""Routes of signing in and out: by token, and with OpenID Connect."""

from __future__ import annotations

from urllib.parse import parse_qs, quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ingest_project.core.settings import Settings
from ingest_project.operations.dashboard.auth import (
    COOKIE,
    MAX_RETURN_CHARACTERS,
    SESSION_SECONDS,
    Gate,
    Viewer,
    address_of,
    cookie_of,
    is_https,
    set_cookie,
    too_many,
)
from ingest_project.operations.dashboard.limits import ActionLimits, network_of
from ingest_project.operations.dashboard.oidc import SIGN_IN_SECONDS, Provider
from ingest_project.operations.dashboard.rendering import render, root_of

SIGN_IN_COOKIE = "ingest_sign_in"
CALLBACK = "oidc/callback"
MAX_ANSWER_CHARACTERS = 8_192
# Of one address: each has the provider asked, and takes the place of an older one.
SIGN_INS_PER_MINUTE = 30


class SignInPages:
    """One method for each route.

    Args:
        settings: with the provider, if any.
        gate: creates sessions.
    """

    def __init__(self, settings: Settings, gate: Gate) -> None:
        self._gate = gate
        self._provider = Provider(settings.oidc) if settings.oidc.issuer else None
        self._redirect_url = settings.oidc.redirect_url
        self._begun = ActionLimits(SIGN_INS_PER_MINUTE)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/login", self.form, methods=["GET"]),
            Route("/login", self.login, methods=["POST"]),
            Route("/logout", self.logout, methods=["POST"]),
            Route("/oidc/login", self.begin, methods=["GET"]),
            Route("/oidc/callback", self.finish, methods=["GET"]),
        ]

    async def form(self, request: Request) -> Response:
        """Return the form for the token, and the way to the provider."""
        if self._gate.is_stale(cookie_of(request)):
            return RedirectResponse(f"oidc/login{_next(_wanted(request))}", 303)
        if not self._gate.is_locked or self._gate.session_of(cookie_of(request)):
            return RedirectResponse(_address(request, _wanted(request)), 303)
        return self._form(request)

    async def login(self, request: Request) -> Response:
        """Check the token, and set a cookie for it."""
        form = parse_qs((await request.body()).decode("utf-8", "replace"))
        viewer = self._gate.try_token(form.get("token", [""])[0].strip(), address_of(request.scope))
        if viewer is None:
            return self._form(request, 401)
        answer = RedirectResponse(_address(request, _wanted(request)), 303)
        self._start_session(request, answer, viewer)
        return answer

    async def logout(self, request: Request) -> Response:
        """End the session and delete its cookie."""
        self._gate.end_session(cookie_of(request))
        answer = RedirectResponse(f"{root_of(request.scope)}login", 303)
        set_cookie(request, answer, "", 0)
        return answer

    async def begin(self, request: Request) -> Response:
        """Lead the browser to the provider; one whose session has to be confirmed comes back without a question."""
        if self._provider is None:
            raise HTTPException(404, "No provider is configured; see INGEST_OIDC_ISSUER.")
        if seconds := self._begun.take(network_of(address_of(request.scope))):
            raise too_many(seconds, "Too many sign-ins have begun.")
        redirect_url = self._redirect_url or _own_address(request)
        known = cookie_of(request)
        if silent := self._gate.is_stale(known):
            # It admits nobody any more; without it, a refusal ends at the form.
            self._gate.end_session(known)
        cookie, address = await run_in_threadpool(self._provider.begin, redirect_url, _wanted(request), silent=silent)
        answer = RedirectResponse(address, 303)
        set_cookie(request, answer, cookie, SIGN_IN_SECONDS, SIGN_IN_COOKIE)
        return answer

    async def finish(self, request: Request) -> Response:
        """Take the provider's answer, and set a cookie for the person."""
        if self._provider is None or len(request.url.query) > MAX_ANSWER_CHARACTERS:
            raise HTTPException(400, "This is no answer of a provider.")
        cookie = cookie_of(request, SIGN_IN_COOKIE)
        viewer, wanted = await run_in_threadpool(self._provider.finish, cookie, dict(request.query_params))
        if viewer is None:
            return RedirectResponse(f"{root_of(request.scope)}login{_next(wanted)}", 303)
        # A redirect would still count as coming from the provider, and then the browser keeps the new cookie back.
        answer = render(request, "opening.html", to=_address(request, wanted))
        self._start_session(request, answer, viewer, by_provider=True)
        set_cookie(request, answer, "", 0, SIGN_IN_COOKIE)
        return answer

    def _form(self, request: Request, status: int = 200) -> Response:
        return render(
            request,
            "login.html",
            status,
            refused=status != 200,  # noqa: PLR2004 - OK
            takes_tokens=self._gate.takes_tokens,
            provider=self._provider.host if self._provider else "",
            next=_next(_wanted(request)),
        )

    def _start_session(self, request: Request, answer: Response, viewer: Viewer, *, by_provider: bool = False) -> None:
        """Give the browser a new session; one that it had before, or that somebody gave it, ends."""
        self._gate.end_session(cookie_of(request))
        cookie = self._gate.new_session(viewer, by_provider=by_provider)
        set_cookie(request, answer, cookie, SESSION_SECONDS, COOKIE)


def _wanted(request: Request) -> str:
    """Return the address on this site to show after the sign-in; empty for the first page."""
    wanted = request.query_params.get("next", "")[:MAX_RETURN_CHARACTERS]
    return wanted if wanted.startswith("/") and wanted.isprintable() and "\\" not in wanted else ""


def _next(wanted: str) -> str:
    """Return the query that has a page of this site shown afterwards."""
    return f"?next={quote(wanted)}" if wanted else ""


def _address(request: Request, wanted: str) -> str:
    """Return the relative address of a page of this site, which cannot lead to another one."""
    root = root_of(request.scope)
    return f"{root}{quote(wanted.lstrip('/'), safe=_ADDRESS)}"


# All that an address may hold, an encoded part included.
_ADDRESS = "/?&=%:@!$'()*+,;~-._"


def _own_address(request: Request) -> str:
    scheme = "https" if is_https(request) else "http"
    host = request.headers.get("x-forwarded-host") or request.headers.get("host", "")
    return f"{scheme}://{host}/{CALLBACK}"
