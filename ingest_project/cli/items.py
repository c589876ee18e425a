"""`ingest find`, `show` and `trace`: find any item by any of its ids, and show its data and history."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated

import typer

from ingest_project.core.console import AsJson, Rows, add_row, complain, print_json, show, show_list, table
from ingest_project.core.errors import PermanentError
from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.operations.items import SEARCHED, describe, find, trace
from ingest_project.platform.items import KINDS, Content, ItemRef, print_item, table_of_hits

NOT_FOUND = 1
BROKER_SECONDS = 3.0
Text = Annotated[list[str], typer.Argument(metavar="TEXT", help=f"Id to search for: {SEARCHED}.")]


def find_items(text: Text, *, as_json: AsJson = False) -> None:
    """Find files, attachments, events, messages and polling jobs by any of their ids.

    Exit code 1 if nothing is found.
    """
    found = find(_services_for_search(), " ".join(text))
    if as_json:
        print_json(found)
    elif found.hits:
        show_list(table_of_hits(found.hits), "items", more=False)
        if found.more:
            complain(f"The first {len(found.hits)}; search for more of the name.")
    _complain_all(found.problems)
    if not found.hits:
        complain(f"Nothing is called {found.searched!r}. Searched were {SEARCHED}.")
        raise typer.Exit(NOT_FOUND)


def show_item(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.")],
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of the item, as listed by `ingest find`.")],
    *,
    rows: Rows = 10,
    content: Annotated[
        str | None, typer.Option("--bytes", metavar="NAME", help="Write bytes to stdout: landed, stored, message …")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show everything recorded about one item: facts, history, rows, related items, and where its bytes are.

    Exit code 1 if there is no record of it.
    """
    ref = ItemRef.of(kind, key)
    if ref.kind not in KINDS:
        raise typer.BadParameter(f"There is no kind {kind!r}: {', '.join(KINDS)}.")
    services = SystemResources(load_settings().settings)
    view = describe(services, ref)
    if view is None:
        complain(f"Nothing is on record of the {ref.kind.replace('_', ' ')} {ref.key}. See: ingest find.")
        raise typer.Exit(NOT_FOUND)
    if content is not None:
        if content not in view.contents:
            raise PermanentError(f"There are no bytes {content!r}; there are: {', '.join(view.contents) or 'none'}.")
        _write(view.contents[content])
    else:
        print_item(view, services.settings, rows, as_json=as_json)


def show_trace(
    text: Annotated[list[str], typer.Argument(metavar="ID", help="Trace id, or any id that `ingest find` accepts.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show all recorded moments of one trace, in time order."""
    history = trace(_services_for_search(), wanted := " ".join(text))
    if as_json:
        print_json({"trace_id": history.trace_id, "moments": history.moments, "problems": history.problems})
    elif history.moments:
        shown = table("Time", "What", "Happened", "Detail")
        for moment in history.moments:
            add_row(shown, moment.at, moment.subject, moment.what, moment.detail)
        show(shown)
    _complain_all(history.problems)
    if not history.moments:
        complain(f"Nothing is on record of the trace {wanted}, nor of an item with that id.")
        raise typer.Exit(NOT_FOUND)


def _services_for_search() -> SystemResources:
    settings = load_settings().settings
    # Wait only briefly for Kafka: a person waits, and most items are in the database.
    kafka = settings.kafka.model_copy(
        update={"request_timeout_seconds": min(settings.kafka.request_timeout_seconds, BROKER_SECONDS)}
    )
    return SystemResources(settings.model_copy(update={"kafka": kafka}))


def _complain_all(problems: tuple[str, ...]) -> None:
    for problem in problems:
        complain(problem)


def _write(content: Content) -> None:
    opened = content.open()
    if isinstance(opened, bytes):
        sys.stdout.buffer.write(opened)
        return
    with opened as path, path.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
