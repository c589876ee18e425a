"""Pages of operators' actions: the list, a form with a preview, and the records of what was done.

A person sends a form twice: for the preview, which changes nothing, and with a reason to act. The second form contains
the id of the action, so that a double click, or a form sent again, leads to the record of the first request.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ingest_project.core.errors import IngestError
from ingest_project.core.local_files import make_private_folder
from ingest_project.core.logging import to_json
from ingest_project.operations import SystemResources
from ingest_project.operations.actions import ACTIONS, action_named, actions_by_capability
from ingest_project.operations.dashboard.rendering import Console, render, root_of
from ingest_project.platform.actions import (
    DEFAULT_LIMIT,
    INTERRUPTED,
    Action,
    ActionRecord,
    ActionRefusedError,
    ActionRequest,
    AlreadyPerformedError,
    ItemOutcome,
    Performed,
    action_record,
    action_records,
    checked,
    items_of_action,
    perform,
    time_of,
)

RECORDS_A_PAGE = 50
SHOWN_EXAMPLES = 20
SHOWN_ITEMS = 500
# Age after which the upload of an unconfirmed preview is removed.
UPLOAD_SECONDS, MAX_UPLOADS = 3_600.0, 20
# Size of a form's other fields, in addition to the file.
FORM_BYTES = 1024**2
MAX_FILE_NAME_BYTES = 200
MAX_FORM_FIELDS = 100
_ACTION_ID = re.compile(r"[0-9a-f]{32}")


def routes(console: Console) -> list[Route]:
    """Return the routes of actions and of their records."""
    pages = ActionPages(console)
    return [
        Route("/actions", pages.listing),
        Route("/actions/{name}", pages.form, methods=["GET"]),
        Route("/actions/{name}", pages.send, methods=["POST"]),
        Route("/audit", pages.audit),
        Route("/audit/{action_id}", pages.record),
    ]


def uploads(max_file_bytes: int) -> dict[str, int]:
    """Return the paths that accept forms with a file, each with its maximum number of bytes."""
    taking = (action for action in ACTIONS.values() if any(one.kind == "file" for one in action.parameters))
    return {f"/actions/{action.name}": max_file_bytes + FORM_BYTES for action in taking}


class ActionPages:
    """One method for each route."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._uploads = Uploads(console.settings.state_dir / "uploads")

    async def listing(self, request: Request) -> Response:
        """List every action by capability."""
        return render(request, "actions.html", grouped=actions_by_capability())

    async def form(self, request: Request) -> Response:
        """Return the form of an action, filled with the values of the query."""
        action = _action(request)
        known = {parameter.name for parameter in action.parameters}
        values = {name: value for name, value in request.query_params.items() if name in known}
        return _form(request, action, values)

    async def send(self, request: Request) -> Response:
        """Show a preview, or perform the action and redirect to its record."""
        action = _action(request)
        async with request.form(max_files=1, max_fields=MAX_FORM_FIELDS) as form:
            texts, is_final = _texts(form), form.get("step") == "perform"
            action_id = texts.get("action_id", "") if is_final else uuid.uuid4().hex
            try:
                wanted = await self._request_of(request, action, form, action_id, is_final=is_final)
                done = await run_in_threadpool(perform, self._console.services, action, wanted)
            except AlreadyPerformedError as known:
                return _to_record(request, known.action_id)
            except IngestError as error:
                status = 400 if isinstance(error, ActionRefusedError) else 503
                if not is_final:
                    await run_in_threadpool(self._uploads.remove, action_id)
                elif not _wants_json(request):
                    return await run_in_threadpool(self._not_performed, request, action, texts, str(error), status)
                return _refused(request, action, texts, str(error), status)
        if is_final:
            await run_in_threadpool(self._uploads.remove, wanted.action_id)
        if _wants_json(request):
            return Response(to_json(done), media_type="application/json")
        if is_final:
            return _to_record(request, done.action_id)
        return _preview(request, action, checked(action, wanted), done)

    def _not_performed(
        self, request: Request, action: Action[SystemResources], texts: dict[str, str], problem: str, status: int
    ) -> Response:
        """Show why an action failed: on its record if there is one, else on the form with all entered values."""
        action_id = texts.get("action_id", "")
        with suppress(IngestError):
            if action_record(self._console.services.engine, action_id):
                return _to_record(request, action_id)
            if _ACTION_ID.fullmatch(action_id):
                entered = texts | {"reason": ""}
                wanted = self._wanted(action, entered, action_id, request.state.viewer.name, dry_run=True)
                done = perform(self._console.services, action, wanted)
                again = {"reason": texts.get("reason", ""), "problem": problem}
                return _preview(request, action, checked(action, wanted), done, status, **again)
        return _refused(request, action, texts, problem, status)

    async def audit(self, request: Request) -> Response:
        """List the records of actions, newest first, in pages."""
        query = request.query_params
        chosen = {"action": query.get("action", "")[:100], "who": query.get("who", "")[:200]}
        before, after = (query.get(name, "")[:100] or None for name in ("before", "after"))
        found = await run_in_threadpool(
            lambda: action_records(
                self._console.services.engine, **chosen, limit=RECORDS_A_PAGE + 1, before=before, after=after
            )
        )
        more = len(found) > RECORDS_A_PAGE
        records = found[-RECORDS_A_PAGE:] if after else found[:RECORDS_A_PAGE]
        given = {name: value for name, value in chosen.items() if value}
        has_newer, has_older = (more, True) if after else (before is not None, more)
        return render(
            request,
            "audit.html",
            records=records,
            actions=sorted(ACTIONS),
            chosen=chosen,
            newer=urlencode({**given, "after": records[0].action_id}) if records and has_newer else None,
            older=urlencode({**given, "before": records[-1].action_id}) if records and has_older else None,
        )

    async def record(self, request: Request) -> Response:
        """Show one record, and the outcome for each item."""
        action_id = request.path_params["action_id"]
        record, items = await run_in_threadpool(self._record, action_id)
        if record is None:
            raise HTTPException(404, "There is no such record.")
        action = ACTIONS.get(record.action)
        left_out = max(0, record.selected - len(items))
        again = None
        if action and record.outcome == INTERRUPTED:
            # The person has to choose a file again.
            values = {name: value for name, value in record.parameters.items() if name not in _files(action)}
            again = urlencode(values)
        return render(request, "record.html", record=record, items=items, action=action, left_out=left_out, again=again)

    def _record(self, action_id: str) -> tuple[ActionRecord | None, tuple[ItemOutcome, ...]]:
        engine = self._console.services.engine
        return action_record(engine, action_id), items_of_action(engine, action_id, SHOWN_ITEMS)

    async def _request_of(
        self, request: Request, action: Action[SystemResources], form: FormData, action_id: str, *, is_final: bool
    ) -> ActionRequest:
        """Return the request in a form.

        Raises:
            ActionRefusedError: a field is invalid.
        """
        if not _ACTION_ID.fullmatch(action_id):
            raise ActionRefusedError("The form is incomplete: begin again with the preview.")
        for name in _files(action):
            given = form.get(name)
            if isinstance(given, UploadFile) and given.filename:
                await run_in_threadpool(self._uploads.keep, action_id, given)
        return self._wanted(action, _texts(form), action_id, request.state.viewer.name, dry_run=not is_final)

    def _wanted(
        self, action: Action[SystemResources], texts: dict[str, str], action_id: str, who: str, *, dry_run: bool
    ) -> ActionRequest:
        values = {one.name: texts[one.name] for one in action.parameters if one.kind != "file" and one.name in texts}
        if path := self._uploads.find(action_id):
            values |= dict.fromkeys(_files(action), str(path))
        limit = texts.get("limit", "").strip() or str(DEFAULT_LIMIT)
        if not (limit.isascii() and limit.isdecimal()) or len(limit) > 9:  # noqa: PLR2004 - far more than any limit
            raise ActionRefusedError(f"The limit is a whole number, not {limit[:20]!r}.")
        return ActionRequest(
            parameters=values,
            limit=int(limit),
            reason=texts.get("reason", ""),
            who=who,
            dry_run=dry_run,
            action_id=action_id,
        )


class Uploads:
    """Files that were uploaded with a form, kept from the preview until the action.

    Args:
        folder: folder with one subfolder per action, named by its id.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, action_id: str, upload: UploadFile) -> None:
        """Store a file, and remove files that are no longer needed.

        Raises:
            ActionRefusedError: too many uploads wait for their action.
        """
        make_private_folder(self._folder)
        waiting = sorted(self._folder.iterdir())
        expired = [one for one in waiting if _age_seconds(one) > UPLOAD_SECONDS]
        for one in expired:
            shutil.rmtree(one, ignore_errors=True)
        if len(waiting) - len(expired) >= MAX_UPLOADS:
            raise ActionRefusedError("Too many uploads wait for their action. Try again later.")
        own = self._folder / action_id
        make_private_folder(own)
        with (own / _safe_file_name(upload.filename or "")).open("wb") as kept:
            shutil.copyfileobj(upload.file, kept)

    def find(self, action_id: str) -> Path | None:
        """Return the file of an action."""
        with suppress(OSError):
            return next(iter((self._folder / action_id).iterdir()), None)
        return None

    def remove(self, action_id: str) -> None:
        """Remove the file of an action. Idempotent."""
        shutil.rmtree(self._folder / action_id, ignore_errors=True)


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _safe_file_name(name: str) -> str:
    """Return the last part of a name without unsafe characters; keep its extension, which selects the reader."""
    last = re.split(r"[/\\]", name)[-1]
    cleaned = "".join(character if character.isprintable() else "_" for character in last).lstrip(".")
    return cleaned.encode()[-MAX_FILE_NAME_BYTES:].decode("utf-8", "ignore") or "upload"


def _action(request: Request) -> Action[SystemResources]:
    try:
        return action_named(request.path_params["name"])
    except ActionRefusedError as error:
        raise HTTPException(404, str(error)) from error


def _texts(form: FormData) -> dict[str, str]:
    """Return the text fields of a form, with normalised line ends."""
    return {name: value.replace("\r\n", "\n") for name, value in form.items() if isinstance(value, str)}


def _wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def _to_record(request: Request, action_id: str) -> Response:
    return RedirectResponse(f"{root_of(request.scope)}audit/{action_id}", 303)


def _refused(
    request: Request, action: Action[SystemResources], values: dict[str, str], problem: str, status: int
) -> Response:
    if _wants_json(request):
        return Response(to_json({"error": problem}), status, media_type="application/json")
    return _form(request, action, values, problem, status)


def _form(
    request: Request, action: Action[SystemResources], values: dict[str, str], problem: str = "", status: int = 200
) -> Response:
    has_file = any(parameter.kind == "file" for parameter in action.parameters)
    times = {one.name for one in action.parameters if one.kind == "time"}
    shown = {name: _field_of_time(value) if name in times else value for name, value in values.items()}
    return render(
        request, "action.html", status, action=action, values=shown, problem=problem, done=None, has_file=has_file
    )


def _field_of_time(text: str) -> str:
    """Convert a time in the query, in any form that the command line accepts, to the form of the input field."""
    with suppress(ActionRefusedError):
        return f"{time_of(text):%Y-%m-%dT%H:%M:%S}"
    return ""


def _preview(  # noqa: PLR0913, PLR0917 - the last three are of a step that failed
    request: Request,
    action: Action[SystemResources],
    wanted: ActionRequest,
    done: Performed,
    status: int = 200,
    reason: str = "",
    problem: str = "",
) -> Response:
    hidden = {name: value for name, value in wanted.parameters.items() if name not in _files(action)}
    return render(
        request,
        "preview.html",
        status,
        action=action,
        problem=problem,
        reason=reason,
        hidden=hidden,
        shown={one.label: wanted.parameters[one.name] for one in action.parameters if one.name in hidden},
        file_name=next((Path(wanted.parameters[name]).name for name in _files(action)), None),
        action_id=wanted.action_id,
        # Limit the action to the items that the preview showed.
        limit=max(1, len(done.keys) + len(done.failed) + len(done.in_progress)),
        asked_limit=wanted.limit,
        done=done,
        examples=done.keys[:SHOWN_EXAMPLES],
        refused=list(done.failed.items())[:SHOWN_EXAMPLES],
        in_progress=list(done.in_progress.items())[:SHOWN_EXAMPLES],
    )


def _files(action: Action[Any]) -> Iterable[str]:
    return [parameter.name for parameter in action.parameters if parameter.kind == "file"]
