"""The page of dead letters: their number by topic, the newest ones with their reasons, and the form to redrive them."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ingest_project.core.errors import IngestError
from ingest_project.operations import SystemResources
from ingest_project.operations.dashboard.rendering import Console, render
from ingest_project.operations.redrive import (
    NAME,
    InspectedLetter,
    LetterFilter,
    Redriver,
    dead_letter_topics,
    failed_last,
)
from ingest_project.operations.topics import DeadLetters, dead_letters_on
from ingest_project.platform.actions import ActionRefusedError, ActionRequest

SHOWN_LETTERS = 50
MAX_SHOWN_REASON = 500
MAX_TOPIC_LENGTH = 249


def routes(console: Console) -> list[Route]:
    """Return the route of the page."""

    async def page(request: Request) -> Response:
        chosen = request.query_params.get("topic", "")[:MAX_TOPIC_LENGTH]
        counts: list[tuple[DeadLetters, str]] = []
        letters: list[InspectedLetter] = []
        problem, status = "", 200
        try:
            counts = await run_in_threadpool(_counted, console.services)
            topics = [chosen] if chosen else [count.topic for count, _ in counts if count.kept]
            letters = await run_in_threadpool(_newest, console.services, topics)
        except ActionRefusedError as unknown:
            problem, status = str(unknown), 404
        except IngestError as away:
            problem, status = str(away), 503
        return render(
            request,
            "dead_letters.html",
            status,
            counts=counts,
            letters=letters[:SHOWN_LETTERS],
            more=len(letters) > SHOWN_LETTERS,
            chosen=chosen,
            problem=problem,
            action=NAME,
            longest=MAX_SHOWN_REASON,
        )

    return [Route("/dead-letters", page)]


def _counted(services: SystemResources) -> list[tuple[DeadLetters, str]]:
    return [
        (dead_letters_on(services, topic), ", ".join(one.topic for one in origins))
        for topic, origins in dead_letter_topics(services).items()
    ]


def _newest(services: SystemResources, topics: list[str]) -> list[InspectedLetter]:
    wanted = LetterFilter.of(ActionRequest())
    found = [one for topic in topics for one in Redriver(services, topic).newest(wanted.includes, SHOWN_LETTERS + 1)]
    return sorted(found, key=failed_last, reverse=True)
