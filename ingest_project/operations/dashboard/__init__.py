"""The monitor as a web application: the page and its data, metrics and health, and the server that serves them."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ingest_project.core.errors import IngestError, SettingsError
from ingest_project.core.logging import get_logger, printable
from ingest_project.core.settings import Settings
from ingest_project.operations import RunningTotals, SystemResources
from ingest_project.operations.alerts import require_usable
from ingest_project.operations.alerts.conditions import require_known_names
from ingest_project.operations.alerts.watch import AlertWatch, Watcher
from ingest_project.operations.dashboard import actions, dead_letters, items
from ingest_project.operations.dashboard.auth import Gate, Guarded, problem
from ingest_project.operations.dashboard.data import WINDOWS, Histories, dashboard
from ingest_project.operations.dashboard.limits import server_config
from ingest_project.operations.dashboard.oidc import SignInPages
from ingest_project.operations.dashboard.rendering import Console, page_file, render
from ingest_project.operations.metrics import CONTENT_TYPE_LATEST, exposition
from ingest_project.operations.monitor import Line, Monitor, readiness
from ingest_project.platform.http import is_loopback

logger = get_logger(__name__)

FIRST_POLL_SECONDS = 10.0
# The page first shows the parts that have answered, and the others a moment later.
FIRST_POLL_OF_PAGE_SECONDS = 0.5
STATIC = {
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "charts.js": "text/javascript",
    "mark.svg": "image/svg+xml",
}
# Each page module defines its own routes.
PAGE_ROUTES: tuple[Callable[[Console], list[Route]], ...] = (items.routes, dead_letters.routes, actions.routes)


def monitor_app(settings: Settings, *, local_only: bool) -> ASGIApp:
    """Create the application, which connects and polls only once it is started.

    Args:
        settings: settings of the system, with the tokens.
        local_only: answer only requests that are addressed to this machine's own names.
    """
    gate = Gate.of(settings, local_only=local_only)
    console = Console(Monitor(settings))
    answers = Answers(console)
    pages = [route for routes in PAGE_ROUTES for route in routes(console)]
    routes = [
        Route("/", answers.page),
        Route("/dashboard.json", answers.data),
        Route("/metrics", answers.metrics),
        Route("/healthz", answers.alive),
        Route("/readyz", answers.ready),
        Route("/static/{name}", answers.static),
        *SignInPages(settings, gate).routes(),
        *pages,
    ]
    app = Starlette(
        routes=routes,
        lifespan=answers.polling,
        exception_handlers={HTTPException: problem, IngestError: problem, OSError: file_problem},
    )
    return Guarded(
        app,
        gate,
        local_only=local_only,
        actions_per_minute=settings.monitor.actions_per_minute,
        uploads=actions.uploads(settings.file_ingest.max_file_bytes),
    )


def serve(settings: Settings, host: str, port: int, started: Callable[[str], None], *, insecure: bool = False) -> None:
    """Serve the monitor until SIGTERM or Ctrl-C, then shut down in order.

    Args:
        settings: settings of the system, with the tokens.
        host: address to listen on.
        port: port to listen on; 0 picks a free one.
        started: called with the address once the server listens.
        insecure: listen beyond this machine without a token.

    Raises:
        SettingsError: the monitor would be open to others without a token, the port is in use, or an address or a rule
            of alerts is invalid.
    """
    require_protection(settings, host, insecure=insecure)
    server = _server(settings, local_only=is_loopback(host) and not _is_protected(settings))
    shown = f"[{host}]" if ":" in host else host
    with _listen(host, port) as listener:
        started(f"http://{shown}:{listener.getsockname()[1]}/")
        server.run(sockets=[listener])


@contextmanager
def serving(settings: Settings, port: int) -> Iterator[None]:
    """Serve only this machine, in a thread, until the `with` block ends. If the server ends before, end the process.

    Raises:
        SettingsError: the port is in use, or an address or a rule of alerts is invalid.
        Exception: the server failed; raised at the end of the block.
    """
    server, stopped = _server(settings, local_only=not _is_protected(settings)), threading.Event()
    with _listen("127.0.0.1", port) as listener, ThreadPoolExecutor(1, "monitor") as thread:
        served = thread.submit(server.run, sockets=[listener])
        try:
            served.add_done_callback(lambda _: stopped.is_set() or os.kill(os.getpid(), signal.SIGTERM))  # type: ignore[func-returns-value]
            yield
        finally:
            stopped.set()
            server.should_exit = True
            served.result()


def _server(settings: Settings, *, local_only: bool) -> uvicorn.Server:
    require_usable(settings)
    require_known_names(SystemResources(settings))
    return uvicorn.Server(server_config(monitor_app(settings, local_only=local_only)))


def file_problem(request: Request, error: Exception) -> Response:
    """Log an unusable folder or file of this process, and return the response for it."""
    path = getattr(error, "filename", None) or "a file"
    reason = getattr(error, "strerror", None) or type(error).__name__
    logger.error("file_not_usable", path=str(path), reason=reason)
    detail = (
        f"The monitor cannot use {path}: {reason}. Its state folder must be writable, and local stores must be mounted "
        "where the runs have them."
    )
    return problem(request, HTTPException(503, detail))


def require_protection(settings: Settings, host: str, *, insecure: bool) -> None:
    """Raise SettingsError if everybody on the network could read the monitor."""
    if is_loopback(host) or _is_protected(settings) or insecure:
        return
    raise SettingsError(
        f"The monitor would be open to everybody who reaches {host}. Set INGEST_MONITOR_TOKEN, "
        "INGEST_MONITOR_OPERATOR_TOKEN or INGEST_OIDC_ISSUER, or pass --insecure where something else protects it."
    )


class Answers:
    """Handlers of the routes of the dashboard, its data, metrics and health."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._monitor = monitor = console.monitor
        self._histories = Histories(lambda: RunningTotals(monitor.services.engine))

    @asynccontextmanager
    async def polling(self, _app: Starlette) -> AsyncIterator[None]:
        """Poll and send alerts while the application runs."""
        monitor = self._monitor
        watcher = Watcher(AlertWatch(monitor.settings, monitor.alert_stores), monitor.snapshot)
        monitor.start()
        if "alerts" not in monitor.settings.dagster.disabled_capabilities:
            watcher.start()
        try:
            yield
        finally:
            await run_in_threadpool(watcher.stop)
            await run_in_threadpool(self._monitor.stop)

    async def page(self, request: Request) -> Response:
        """Return the dashboard."""
        data = await run_in_threadpool(self._data, next(iter(WINDOWS)))
        # No text in the data can end the element that contains it.
        first = data.decode().replace("<", "\\u003c")
        return render(request, "dashboard.html", dagster_url=self._console.dagster_url, first=first)

    async def data(self, request: Request) -> Response:
        """Return the data of the dashboard for `?window=1h`, `24h` or `7d`."""
        window = request.query_params.get("window", "1h")
        if window not in WINDOWS:
            return PlainTextResponse(f"There is no window {window[:20]!r}: {', '.join(WINDOWS)}.\n", 400)
        return Response(await run_in_threadpool(self._data, window), media_type="application/json")

    async def metrics(self, _request: Request) -> Response:
        """Return the metrics in Prometheus's text format."""
        return Response(await run_in_threadpool(self._metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def alive(self, _request: Request) -> Response:
        """Answer without contacting any service."""
        return PlainTextResponse("ok\n")

    async def ready(self, request: Request) -> Response:
        """Return 200 if everything is ready, otherwise 503."""
        lines = await run_in_threadpool(self._ready)
        status = 200 if all(line.ok for line in lines) else 503
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse([{"name": line.name, "ok": line.ok, "detail": line.detail} for line in lines], status)
        return PlainTextResponse("".join(f"{printable(line)}\n" for line in lines), status)

    async def static(self, request: Request) -> Response:
        """Return a script or style sheet of the page."""
        name = request.path_params["name"]
        if name not in STATIC:
            return PlainTextResponse("Not found.\n", 404)
        return Response(page_file(name), media_type=STATIC[name], headers={"Cache-Control": "no-cache"})

    def _data(self, window: str) -> bytes:
        self._monitor.wait_for_first(FIRST_POLL_OF_PAGE_SECONDS)
        snapshot = self._monitor.snapshot()
        try:
            history = None if snapshot.warehouse.problem else self._histories.of(window)
        except IngestError:
            history = None
        return dashboard(snapshot, history, window)

    def _metrics(self) -> bytes:
        self._monitor.wait_for_first(FIRST_POLL_SECONDS)
        return exposition(self._monitor.snapshot())

    def _ready(self) -> tuple[Line, ...]:
        self._monitor.wait_for_first(FIRST_POLL_SECONDS)
        return readiness(self._monitor.snapshot())


def _is_protected(settings: Settings) -> bool:
    return bool(settings.monitor.token or settings.monitor.operator_token or settings.oidc.issuer)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Listen before announcing the address: a client that connects immediately waits instead of being refused.
        listener.listen()
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"The monitor cannot listen on {host}:{port}: {error.strerror or error}. "
            "Set INGEST_MONITOR_PORT to another port, or to 0 for a free one."
        ) from error
    return listener
