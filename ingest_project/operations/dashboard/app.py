"""The monitor as a web application: the page and its data, metrics, health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from ingest_project.core.errors import IngestError
from ingest_project.core.settings import Settings
from ingest_project.core.terminal_text import printable
from ingest_project.operations.dashboard.auth import (
    COOKIE,
    SESSION_SECONDS,
    Gate,
    Guarded,
    TooManyAttemptsError,
    address_of,
    cookie_of,
)
from ingest_project.operations.dashboard.data import dashboard
from ingest_project.operations.dashboard.history import WINDOWS, Histories
from ingest_project.operations.metric_rollup import RunningTotals
from ingest_project.operations.metrics import CONTENT_TYPE_LATEST, exposition
from ingest_project.operations.readiness import Line, readiness
from ingest_project.operations.snapshot import SystemSnapshot

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

FIRST_LOOK_SECONDS = 10.0
# The page shows what is there, and the rest a moment later.
FIRST_LOOK_OF_PAGE_SECONDS = 1.0
MOST_FORM_BYTES = 4_096
FORM_SECONDS = 10.0
PAGES = files("ingest_project.operations.dashboard") / "pages"
STATIC = {"dashboard.css": "text/css", "dashboard.js": "text/javascript", "charts.js": "text/javascript"}


def monitor_app(settings: Settings, *, local_only: bool) -> ASGIApp:
    """The application; it begins to look when it is started, and connects to nothing before.

    Args:
        settings: where everything is, and the token.
        local_only: answer only what was addressed to this machine's own names.
    """
    token = settings.monitor.token
    gate = Gate(token.get_secret_value() if token else "")
    answers = Answers(SystemSnapshot(settings), gate)
    routes = [
        Route("/", answers.page),
        Route("/dashboard.json", answers.data),
        Route("/metrics", answers.metrics),
        Route("/healthz", answers.alive),
        Route("/readyz", answers.ready),
        Route("/login", answers.login_form, methods=["GET"]),
        Route("/login", answers.login, methods=["POST"]),
        Route("/logout", answers.logout, methods=["POST"]),
        Route("/static/{name}", answers.static),
    ]
    return Guarded(Starlette(routes=routes, lifespan=answers.looking), gate, local_only=local_only)


class Answers:
    """What each address answers."""

    def __init__(self, system: SystemSnapshot, gate: Gate) -> None:
        self._system = system
        self._gate = gate
        self._histories = Histories(lambda: RunningTotals(system.services.engine))

    @asynccontextmanager
    async def looking(self, _app: Starlette) -> AsyncIterator[None]:
        """Look for as long as the application runs."""
        self._system.start()
        try:
            yield
        finally:
            await run_in_threadpool(self._system.stop)

    async def page(self, _request: Request) -> Response:
        """The dashboard."""
        return HTMLResponse(_page("dashboard.html"))

    async def data(self, request: Request) -> Response:
        """Its data, of `?window=1h`, `24h` or `7d`."""
        window = request.query_params.get("window", "1h")
        if window not in WINDOWS:
            return PlainTextResponse(f"There is no window {window[:20]!r}: {', '.join(WINDOWS)}.\n", 400)
        return Response(await run_in_threadpool(self._data, window), media_type="application/json")

    async def metrics(self, _request: Request) -> Response:
        """Prometheus's text."""
        return Response(await run_in_threadpool(self._metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def alive(self, _request: Request) -> Response:
        """This process answers; nothing else is asked."""
        return PlainTextResponse("ok\n")

    async def ready(self, request: Request) -> Response:
        """Whether everything is there: 200, or 503 when something is not."""
        lines = await run_in_threadpool(self._ready)
        status = 200 if all(line.ok for line in lines) else 503
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse([{"name": line.name, "ok": line.ok, "detail": line.detail} for line in lines], status)
        return PlainTextResponse("".join(f"{printable(line)}\n" for line in lines), status)

    async def login_form(self, _request: Request) -> Response:
        """Asks a person for the token."""
        return HTMLResponse(_page("login.html")) if self._gate.is_locked else RedirectResponse("./", 303)

    async def login(self, request: Request) -> Response:
        """A cookie for the token."""
        form = bytearray()
        try:
            async with asyncio.timeout(FORM_SECONDS):
                async for piece in request.stream():
                    form += piece
                    if len(form) > MOST_FORM_BYTES:
                        return PlainTextResponse("The form is too large.\n", 413)
        except TimeoutError:
            return PlainTextResponse("The form took too long.\n", 408)
        given = parse_qs(form.decode("utf-8", "replace")).get("token", [""])[0]
        try:
            is_token = self._gate.try_token(given.strip(), address_of(request.scope))
        except TooManyAttemptsError as refusal:
            return refusal.answer()
        if not is_token:
            return HTMLResponse(_page("login.html").replace("hidden", ""), 401)
        answer = RedirectResponse("./", 303)
        answer.set_cookie(COOKIE, self._gate.new_session(), SESSION_SECONDS, **_cookie_attributes(request))
        return answer

    async def logout(self, request: Request) -> Response:
        """End the session, and take its cookie away."""
        self._gate.end_session(cookie_of(request.headers))
        answer = RedirectResponse("login", 303)
        answer.delete_cookie(COOKIE, **_cookie_attributes(request))
        return answer

    async def static(self, request: Request) -> Response:
        """A script or style sheet of the page."""
        name = request.path_params["name"]
        if name not in STATIC:
            return PlainTextResponse("Not found.\n", 404)
        return Response(_page(name), media_type=STATIC[name], headers={"Cache-Control": "no-cache"})

    def _data(self, window: str) -> bytes:
        self._system.wait_for_first_look(FIRST_LOOK_OF_PAGE_SECONDS)
        try:
            history = None if self._system.ledger.seen.problem else self._histories.of(window)
        except IngestError:
            history = None
        return dashboard(self._system, history, window)

    def _metrics(self) -> bytes:
        self._system.wait_for_first_look(FIRST_LOOK_SECONDS)
        return exposition(self._system)

    def _ready(self) -> tuple[Line, ...]:
        self._system.wait_for_first_look(FIRST_LOOK_SECONDS)
        return readiness(self._system, datetime.now(UTC))


def _cookie_attributes(request: Request) -> dict[str, Any]:
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    return {"httponly": True, "samesite": "strict", "secure": secure}


def _page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")
