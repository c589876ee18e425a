"""`ingest status`: how far everything is, and, when asked to, wait until nothing goes on any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.text import Text

from ingest_project.attachments.tables import AttachmentState
from ingest_project.cli.system_status import RetryTier, SystemStatus, described, for_scripts, look
from ingest_project.core.console import (
    AsJson,
    add_row,
    complain,
    counted,
    length_of,
    print_json,
    say,
    show,
    show_facts,
    stderr,
    stdout,
    table,
)
from ingest_project.core.settings import load_settings
from ingest_project.core.terminal_text import printable
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.dagster.run_records import DagsterRecords
from ingest_project.platform.work_queue.queue import JobState

if TYPE_CHECKING:
    from rich.table import Table

State = TypeVar("State", FileState, JobState, AttachmentState)

PAUSE_SECONDS = 0.5
# Without a terminal, what goes on is said again at this distance even if it stays the same.
REPEAT_SECONDS = 30.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    *,
    wait_until_idle: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Wait until nothing goes on; exit code 1 if that takes longer."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what waits on the topics, everything by state, the retry tiers, and runs in flight.

    Exit code 1 when some part does not answer, when a disk is nearly full, and when it is not idle in time.
    """
    settings = load_settings().settings
    services, records = SystemResources(settings), DagsterRecords(settings)
    seen = look(services, records) if wait_until_idle is None else wait_for_idle(services, records, wait_until_idle)
    if as_json:
        print_json(for_scripts(seen))
    else:
        print_status(seen)
    late = wait_until_idle is not None and not seen.idle
    if late and not as_json:
        complain(f"Not idle after {wait_until_idle:g} s: {'; '.join(seen.going_on)}.")
    if late or seen.problems or any(lag.waiting is None for lag in seen.topics):
        raise typer.Exit(1)


def wait_for_idle(
    services: SystemResources,
    records: DagsterRecords,
    seconds: float,
    check: Callable[[], None] = lambda: None,
) -> SystemStatus:
    """Look again and again until nothing goes on or the time is over, and tell on stderr what is waited for.

    Args:
        services: what to look at.
        records: the same.
        seconds: how long to wait.
        check: called each time; what it raises ends the wait.

    Returns:
        what was seen last.
    """
    deadline = time.monotonic() + seconds
    console = stderr()
    teller = _Teller()
    with console.status(Text("Looking …")) as line:
        while True:
            check()
            seen = look(services, records)
            left = deadline - time.monotonic()
            if seen.idle or left <= 0:
                return seen
            going_on = "; ".join(seen.going_on)
            if console.is_terminal:
                line.update(Text(f"{printable(going_on)} …"))
            else:
                teller.tell(going_on)
            time.sleep(min(PAUSE_SECONDS, left))


def print_status(seen: SystemStatus) -> None:
    """Print a status for a person."""
    show(_topics(seen))
    stdout().print()
    oldest = seen.oldest_unfinished
    runs = seen.runs
    found = seen.attachments
    show_facts(
        [
            ("Polling jobs", _states(seen.polling_jobs)),
            ("Files", _states(seen.files)),
            ("Attachment events", _states(found.events if found else None)),
            ("Attachments", _states(found.attachments if found else None)),
            *_streams(seen),
            ("Waiting for their time", _later(seen)),
            ("Not yet in Delta", (found.uncommitted_results or None) if found else None),
            ("Not yet in Dagster", seen.unreported or None),
            ("Oldest unfinished", described(oldest, seen.at) if oldest else None),
            ("Runs", f"{runs.queued:,} queued, {runs.started:,} started" if runs else "unknown"),
        ]
    )
    if found and any(tier.waiting for tier in found.retry_tiers):
        show(_retry_tiers(found.retry_tiers), "Downloads to be tried again")
    problems = dict.fromkeys([*(lag.problem for lag in seen.topics if lag.problem), *seen.problems])
    for problem in problems:
        complain(problem)
    if seen.idle:
        say(f"Idle: nothing is due and nothing runs{_but_later(seen)}.", style="green")


def _topics(seen: SystemStatus) -> Table:
    made = table("Topic", "Waiting", "Read by", "Measured from", numbers=["Waiting"])
    for lag in seen.topics:
        add_row(made, lag.topic, "unknown" if lag.waiting is None else lag.waiting, lag.sensor, lag.measured_from or "")
    return made


def _retry_tiers(tiers: Sequence[RetryTier]) -> Table:
    made = table("Retry topic", "Waiting", "Due", "Next at", numbers=["Waiting", "Due"])
    for tier in tiers:
        add_row(made, tier.topic, tier.waiting, tier.due, tier.next_due_at)
    return made


def _streams(seen: SystemStatus) -> Iterator[tuple[str, str | None]]:
    if seen.streams is None:
        yield "Streams", "unknown"
        return
    for topic, counts in seen.streams.stored.items():
        yield f"Stored of {topic}", ", ".join(f"{number:,} {name}" for name, number in counts.items()) or None
    for topic, number in seen.streams.lost.items():
        yield f"Lost of {topic}", counted(number, "message") if number else None
    due = seen.streams.hours_due
    yield "Hours to be counted", f"{due:,}" if due else None


def _later(seen: SystemStatus) -> str | None:
    found = seen.attachments
    if not found or not found.later or not found.next_due_at:
        return None
    return f"{counted(found.later, 'attachment')}, the next in {length_of(found.next_due_at - seen.at)}"


def _but_later(seen: SystemStatus) -> str:
    found = seen.attachments
    if not found or not found.later:
        return ""
    return f"; {counted(found.later, 'attachment waits for its time', 'attachments wait for their time')}"


def _states(numbers: Mapping[State, int] | None, counted_to: int | None = None) -> str:
    if numbers is None:
        return "unknown"
    shown = {state: f"{number:,}{' or more' * (number == counted_to)}" for state, number in numbers.items() if number}
    return ", ".join(f"{number} {state}" for state, number in shown.items()) or "none"


class _Teller:
    """Says what goes on when it changes, and now and then when it does not."""

    def __init__(self) -> None:
        self._said = ""
        self._at = 0.0

    def tell(self, text: str) -> None:
        now = time.monotonic()
        if text != self._said or now - self._at > REPEAT_SECONDS:
            complain(f"{text} …")
            self._said, self._at = text, now
