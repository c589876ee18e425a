"""Pages to find an item and show everything recorded about it, and the download of its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import quote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from ingest_project.core.console import data_text
from ingest_project.core.errors import DatabaseUnavailableError, IngestError
from ingest_project.core.local_files import PIECE_BYTES
from ingest_project.operations import SystemResources
from ingest_project.operations.actions import ACTIONS
from ingest_project.operations.dashboard.rendering import Console, item_path, render, root_of
from ingest_project.operations.items import SEARCHED, describe, find
from ingest_project.platform.actions import Action
from ingest_project.platform.items import KINDS, MAX_SEARCH_LENGTH, Content, ItemRef, ItemView, RowPage

# Parameter of an action that takes keys of items.
KEY = "key"
ROWS_A_PAGE = 25
# Last row of a list that a page can show: later pages cost more.
LAST_ROW = 100_000
MAX_SHOWN_VALUE = 2_000
MAX_SHOWN_MOMENTS = 500


class WarehouseAwayError(IngestError):
    """The warehouse did not answer when the monitor polled it last."""


class ShownRows(msgspec.Struct, frozen=True):
    """A page of one of the lists of rows.

    Args:
        first: number of rows before the page.
        problem: why the list cannot be read.
    """

    name: str
    total: int | None
    first: int
    page: RowPage
    problem: str | None = None

    @property
    def previous(self) -> int | None:
        """Return the number of rows before the previous page."""
        return max(0, self.first - ROWS_A_PAGE) if self.first else None

    @property
    def next(self) -> int | None:
        """Return the number of rows before the next page."""
        return self.first + ROWS_A_PAGE if self.page.more and not self.is_last_shown else None

    @property
    def is_last_shown(self) -> bool:
        """Return True if no later page can be shown, even if there are more rows."""
        return self.first + ROWS_A_PAGE > LAST_ROW


def routes(console: Console) -> list[Route]:
    """Return the routes of search, items and their bytes."""
    pages = ItemPages(console)
    return [
        Route("/search", pages.search),
        Route("/items/{kind}/{key:path}", pages.item),
        Route("/bytes/{name}/{kind}/{key:path}", pages.download),
    ]


class ItemPages:
    """One method for each route."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def search(self, request: Request) -> Response:
        """Redirect to the only matching item, or list all matches."""
        text = request.query_params.get("q", "")[:MAX_SEARCH_LENGTH]
        try:
            self._require_database()
            broker_problem = self._console.monitor.broker.sample.problem
            found = await run_in_threadpool(find, self._console.services, text, broker_problem)
        except (DatabaseUnavailableError, WarehouseAwayError) as away:
            return render(request, "search.html", 503, found=None, problem=str(away), searched=text, what=SEARCHED)
        if len(found.hits) == 1 and not found.more:
            return RedirectResponse(f"{root_of(request.scope)}items/{item_path(found.hits[0].ref)}", 303)
        return render(request, "search.html", found=found, problem=None, searched=text, what=SEARCHED)

    async def item(self, request: Request) -> Response:
        """Show everything recorded about an item."""
        ref = ItemRef.of(request.path_params["kind"], request.path_params["key"])
        if ref.kind not in KINDS:
            return _missing(request, ref)
        try:
            first = min(LAST_ROW, max(0, int(request.query_params.get("first", "0"))))
        except ValueError:
            first = 0
        chosen = request.query_params.get("rows", "")
        try:
            self._require_database()
            view, lists = await run_in_threadpool(self._described, ref, chosen, first)
        except (DatabaseUnavailableError, WarehouseAwayError) as away:
            return render(request, "missing.html", 503, ref=ref, problem=str(away))
        if view is None:
            return _missing(request, ref)
        moments = view.history
        actions = [one for one in ACTIONS.values() if one.kind == ref.kind and takes_key(one)]
        # For messages, offer these actions only if there is a dead letter.
        shown = actions if ref.kind != "message" or view.state == "dead letter" else []
        return render(
            request,
            "item.html",
            view=view,
            facts={name: value for name, value in view.facts.items() if value is not None},
            moments=moments[-MAX_SHOWN_MOMENTS:],
            left_out=max(0, len(moments) - MAX_SHOWN_MOMENTS),
            lists=lists,
            actions=shown,
            dagster_url=self._console.dagster_url,
        )

    async def download(self, request: Request) -> Response:
        """Send bytes of an item, a piece at a time."""
        ref = ItemRef.of(request.path_params["kind"], request.path_params["key"])
        opened = ExitStack()
        try:
            self._require_database()
            view = await run_in_threadpool(describe, self._console.services, ref) if ref.kind in KINDS else None
            content = view.contents.get(request.path_params["name"]) if view else None
            if content is None:
                return PlainTextResponse("There are no such bytes.\n", 404)
            pieces, size = await run_in_threadpool(_opened, content, opened)
        except IngestError as error:
            opened.close()
            return PlainTextResponse(f"{error}\n", 503)
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(content.file_name, safe='')}",
            # The bytes are untrusted: sandbox them if a browser opens them anyway.
            "Content-Security-Policy": "sandbox; default-src 'none'",
        }
        return StreamingResponse(
            pieces, headers=headers | {"Content-Length": str(size)}, media_type="application/octet-stream"
        )

    def _require_database(self) -> None:
        """Raise the last poll's database error immediately: each further attempt would take seconds."""
        if problem := self._console.monitor.warehouse.sample.problem:
            raise WarehouseAwayError(problem)

    def _described(self, ref: ItemRef, chosen: str, first: int) -> tuple[ItemView | None, list[ShownRows]]:
        view = describe(self._console.services, ref, self._console.monitor.broker.sample.problem)
        if view is None:
            return None, []
        return view, [_shown(view, name, first if name == chosen else 0) for name in view.rows]


def takes_key(action: Action[SystemResources]) -> bool:
    """Return True if an action accepts the key of an item."""
    return any(parameter.name == KEY for parameter in action.parameters)


def _shown(view: ItemView, name: str, first: int) -> ShownRows:
    listed = view.rows[name]
    try:
        return ShownRows(name, listed.total, first, _bounded(listed.page(first, ROWS_A_PAGE)))
    except IngestError as error:
        return ShownRows(name, listed.total, first, RowPage((), (), more=False), str(error))


def _bounded(page: RowPage) -> RowPage:
    rows = tuple(tuple(data_text(value)[:MAX_SHOWN_VALUE] for value in row) for row in page.rows)
    return RowPage(page.columns, rows, page.more)


def _missing(request: Request, ref: ItemRef) -> Response:
    return render(request, "missing.html", 404, ref=ref, problem=None)


def _opened(content: Content, stack: ExitStack) -> tuple[Iterator[bytes], int]:
    """Open an item's bytes; the iterator closes their file at its end."""
    opened = content.open()
    if isinstance(opened, bytes):
        return iter([opened]), len(opened)
    path = stack.enter_context(opened)
    file = stack.enter_context(path.open("rb"))

    def pieces() -> Iterator[bytes]:
        with stack:
            while piece := file.read(PIECE_BYTES):
                yield piece

    return pieces(), path.stat().st_size
