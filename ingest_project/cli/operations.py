"""Commands of operators: `ingest status`, `retention` and `monitor`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

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
from ingest_project.core.logging import printable
from ingest_project.core.settings import load_settings
from ingest_project.operations import CAPABILITIES, SystemResources
from ingest_project.operations.snapshot import SystemSnapshot, WarehouseState, take_snapshot, with_dead_letters
from ingest_project.platform.capability import OldestEntry
from ingest_project.platform.dagster.records import RunRecords

PAUSE_SECONDS = 0.5
# A person waits for the answer, which names who has locked what.
LOCK_TIMEOUT_SECONDS = 5
# Without a terminal, unchanged progress is repeated at this interval.
REPEAT_SECONDS = 30.0


def purge(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Purge expired partitions, runs, landed bytes and message ids, like the nightly job."""
    from ingest_project.operations.definitions import plan_purge  # imports dagster: one second
    from ingest_project.platform.dagster.control import open_instance  # the same

    settings = load_settings().settings
    with open_instance(settings) as instance:
        steps = plan_purge(SystemResources(settings), instance, datetime.now(UTC))
        if not dry_run:
            for step in steps:
                step.remove()
    if as_json:
        removals = [{"what": one.what, "number": one.number, "examples": list(one.examples)} for one in steps]
        print_json({"dry_run": dry_run, "removals": removals})
        return
    number = "Would be removed" if dry_run else "Removed"
    shown = table(number, "What", "For example", numbers=[number])
    for step in steps:
        add_row(shown, step.number, step.what, ", ".join(step.examples[:3]))
    show(shown)


def monitor(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on; INGEST_MONITOR_HOST by default.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 picks a free one. INGEST_MONITOR_PORT by default.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on other interfaces even if no token is set.")
    ] = False,
) -> None:
    """Serve /metrics, /healthz, /readyz and a dashboard until Ctrl-C.

    To listen beyond this machine, it requires a token or a sign-in provider.
    """
    from ingest_project.core.logging import configure_logging, log_ignored  # with the next
    from ingest_project.operations.dashboard import serve  # only this command serves

    loaded = load_settings()
    settings = loaded.settings
    configure_logging(settings.logging)
    log_ignored(loaded.ignored)
    chosen_port = settings.monitor.port if port is None else port
    serve(
        settings,
        host or settings.monitor.host,
        chosen_port,
        lambda address: complain(f"The monitor is at {address} (Ctrl-C ends it)."),
        insecure=insecure,
    )


def status(
    *,
    wait_until_idle: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Wait until the system is idle; exit code 1 if that takes longer."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show messages waiting on topics, entries by state, retry tiers, and runs in flight.

    Exit code 1 if a part does not answer, a disk is nearly full, a reader profile or a declaration is invalid, or the
    system is not idle in time.
    """
    from ingest_project.platform.dagster.run_records import DagsterRecords  # imports Dagster

    settings = load_settings().settings
    services, records = SystemResources(settings), DagsterRecords(settings)
    services.lock_timeout_seconds = LOCK_TIMEOUT_SECONDS
    if wait_until_idle is None:
        snapshot = take_snapshot(services, records)
    else:
        snapshot = wait_for_idle(services, records, wait_until_idle)
    snapshot = with_dead_letters(services, snapshot)
    if as_json:
        print_json(as_record(snapshot))
    else:
        print_status(snapshot)
    late = wait_until_idle is not None and not snapshot.is_idle
    if late and not as_json:
        complain(f"Not idle after {wait_until_idle:g} s: {'; '.join(snapshot.going_on)}.")
    if late or snapshot.problems:
        raise typer.Exit(1)


def wait_for_idle(services: SystemResources, records: RunRecords, seconds: float) -> SystemSnapshot:
    """Take snapshots until the system is idle or the time is over, and print unfinished work on stderr.

    Args:
        services: resources of the system.
        records: Dagster's records.
        seconds: longest wait.

    Returns:
        the last snapshot.
    """
    deadline = time.monotonic() + seconds
    console = stderr()
    printed, printed_at = "", 0.0
    with console.status(Text("Reading …")) as line:
        while True:
            snapshot = take_snapshot(services, records)
            left = deadline - time.monotonic()
            if snapshot.is_idle or left <= 0:
                return snapshot
            going_on = "; ".join(snapshot.going_on)
            if console.is_terminal:
                line.update(Text(f"{printable(going_on)} …"))
            elif going_on != printed or time.monotonic() - printed_at > REPEAT_SECONDS:
                complain(f"{going_on} …")
                printed, printed_at = going_on, time.monotonic()
            time.sleep(min(PAUSE_SECONDS, left))


def as_record(snapshot: SystemSnapshot) -> dict[str, object]:
    """Return the status for JSON: parts that could not be read are null, and `problems` names them."""
    warehouse, dagster = snapshot.warehouse.present, snapshot.dagster.present
    work = warehouse.work.values() if warehouse else ()
    counts = {queue.kind: queue.counts for queue in warehouse.queues} if warehouse else {}
    return {
        "idle": snapshot.is_idle,
        "going_on": snapshot.going_on,
        "at": snapshot.at,
        "topics": snapshot.topics,
        **{f"{queue.kind}s": counts.get(queue.kind) for capability in CAPABILITIES for queue in capability.queues},
        "retry_tiers": warehouse.retry_tiers if warehouse else None,
        "later": sum(one.later for one in work),
        "next_due_at": _next_due(warehouse),
        **{name.lower().replace(" ", "_"): number for one in work for name, number in one.facts.items()},
        "unreported": snapshot.unreported,
        "oldest_unfinished": snapshot.oldest_unfinished,
        "runs": dagster.runs if dagster else None,
        "dead_letters": snapshot.dead_letters,
        "paused": snapshot.paused,
        "problems": snapshot.problems,
    }


def print_status(snapshot: SystemSnapshot) -> None:
    """Print a status for a person."""
    show(_topics(snapshot))
    stdout().print()
    show_facts([*_facts(snapshot)])
    warehouse = snapshot.warehouse.present
    if warehouse and any(tier.waiting for tier in warehouse.retry_tiers):
        show(_retry_tiers(warehouse), "Downloads to be tried again")
    for pause in snapshot.paused:
        say(f"{pause}.", style="yellow")
    for problem in snapshot.problems:
        complain(problem)
    if snapshot.is_idle:
        later = sum(one.later for one in warehouse.work.values()) if warehouse else 0
        waiting = counted(later, "attachment waits for its time", "attachments wait for their time")
        say(f"Idle: nothing is due and nothing runs{f'; {waiting}' if later else ''}.", style="green")
    if letters := snapshot.dead_letters:
        on = ", ".join(f"{number:,} on {topic}" for topic, number in letters.items())
        say(f"Dead letters are kept: {on}. `ingest dlq list {next(iter(letters))}` shows why.", style="yellow")


def _facts(snapshot: SystemSnapshot) -> Iterator[tuple[str, object]]:
    warehouse, runs = snapshot.warehouse.present, snapshot.dagster.present and snapshot.dagster.present.runs
    counts = {queue.kind: queue.counts for queue in warehouse.queues} if warehouse else {}
    for queue in (queue for capability in CAPABILITIES for queue in capability.queues):
        shown = [f"{number:,} {state}" for state, number in counts.get(queue.kind, {}).items() if number]
        yield f"{queue.noun.capitalize()}s", (", ".join(shown) or "none") if warehouse else "unknown"
    if warehouse:
        yield "Waiting for their time", _later(warehouse, snapshot.at)
        for work in warehouse.work.values():
            yield from _further_facts(work.facts)
    yield "Not yet in Dagster", snapshot.unreported or None
    oldest = snapshot.oldest_unfinished
    yield "Oldest unfinished", _description(oldest, snapshot.at) if oldest else None
    yield "Runs", f"{runs.queued:,} queued, {runs.started:,} started" if runs else "unknown"


def _further_facts(facts: Mapping[str, int | Mapping[str, Mapping[str, int]]]) -> Iterator[tuple[str, object]]:
    for name, value in facts.items():
        if isinstance(value, int):
            yield name, value or None
            continue
        for thing, counts in value.items():
            yield f"{name} of {thing}", ", ".join(f"{number:,} {what}" for what, number in counts.items()) or None


def _topics(snapshot: SystemSnapshot) -> Table:
    made = table("Topic", "Waiting", "Read by", "Measured from", numbers=["Waiting"])
    for lag in snapshot.topics:
        add_row(made, lag.topic, "unknown" if lag.waiting is None else lag.waiting, lag.sensor, lag.measured_from or "")
    return made


def _retry_tiers(warehouse: WarehouseState) -> Table:
    made = table("Retry topic", "Waiting", "Due", "Next at", numbers=["Waiting", "Due"])
    for tier in warehouse.retry_tiers:
        add_row(made, tier.topic, tier.waiting, tier.due, tier.next_due_at)
    return made


def _later(warehouse: WarehouseState, now: datetime) -> str | None:
    later, due = sum(one.later for one in warehouse.work.values()), _next_due(warehouse)
    return f"{counted(later, 'attachment')}, the next in {length_of(due - now)}" if later and due else None


def _next_due(warehouse: WarehouseState | None) -> datetime | None:
    each = [work.next_due_at for work in warehouse.work.values()] if warehouse else []
    return min((moment for moment in each if moment), default=None)


def _description(entry: OldestEntry, now: datetime) -> str:
    attempts = counted(entry.attempts, "attempt")
    text = f"{entry.key} is {entry.state} since {length_of(now - entry.since)}, {attempts}"
    if entry.next_attempt_at > now:
        text += f", next in {length_of(entry.next_attempt_at - now)}"
    return f"{text}: {entry.reason}" if entry.reason else f"{text}."
