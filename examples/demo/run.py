"""Run the demo: take the sample files, attachments and streams from message to stored row on this machine.

It follows the steps of a user: start the system, publish a polling job, events with attachments and the messages of
two streams, fix and replay what failed, wait, and query what is stored.
"""

from __future__ import annotations

import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from examples.demo.attachments import DemoAttachments, serving
from examples.demo.report import DemoReport, expected_files, report_of, show_report
from examples.demo.streams import DemoStreams, streaming
from ingest_project.cli.dev import printed
from ingest_project.cli.main import run_app, run_process
from ingest_project.cli.operations import wait_for_idle
from ingest_project.cli.send import DUMMY_PATH, deliver
from ingest_project.contracts import encode
from ingest_project.contracts.files import PollingJob
from ingest_project.core.console import AsJson, complain, counted, print_json, say, show_facts, stdout
from ingest_project.core.errors import PermanentError, SourceNotFoundError
from ingest_project.core.items import hour_key
from ingest_project.core.settings import load_settings
from ingest_project.devstack.dagster_processes import JobIncompleteError, run_jobs
from ingest_project.devstack.supervisor import Stack, running_stack
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project.platform.dagster.run_records import DagsterRecords

SOURCE = {"source_type": "dummy", "path": DUMMY_PATH}
GENEROUS_SECONDS = 300.0
# They check everything at once; their schedule would run them only at the next quarter of an hour.
CHECKS_JOBS = ("file_checks", "attachment_checks", "user_activity_checks", "crm_checks")
CHECKS_SECONDS = 60.0


def main() -> None:
    """Run the demo as the only command of this process."""
    run_process(lambda: run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the demo with these arguments; return its exit code."""
    return run_app(_app, arguments, "python -m examples.demo")


def _app() -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(demo)
    return app


def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up with the UI afterwards, until Ctrl-C.")] = False,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long it may take, once started.")
    ] = GENEROUS_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Start everything, ingest the samples, and show the outcome of each.

    Files come from a folder; attachments from a web server of the demo's own, which lacks one at first: that one goes
    to the dead letters, and is stored after the server has it and it is replayed; user events and CRM messages come
    from two files. Exit code 1 when something is not finished in time. A second demo finds the stored samples.
    """
    loaded = load_settings()
    try:
        expected = expected_files(SOURCE, loaded.settings)
    except SourceNotFoundError as error:
        raise PermanentError(f"{error} Run this in the project's folder, or set INGEST_DUMMY_ROOT.") from error
    started = printed(Console(stderr=True))
    loaded, streams = streaming(loaded)
    with serving(loaded) as (loaded, attachments), running_stack(loaded, started) as stack:
        report = ingest_samples(stack, expected, timeout, attachments, streams)
        if as_json:
            print_json(report)
        else:
            show_report(report)
            _conclude(report, stack, keep=keep)
        if keep:
            _stay(stack)
    if not report.as_hoped:
        raise typer.Exit(1)


def ingest_samples(
    stack: Stack,
    expected: Mapping[str, str],
    timeout_seconds: float,
    attachments: DemoAttachments | None = None,
    streams: DemoStreams | None = None,
) -> DemoReport:
    """Send everything, wait until it is processed, and evaluate the checks.

    Args:
        stack: the running system.
        expected: the files, partition key to name.
        timeout_seconds: limit of the wait, without the checks.
        attachments: to send as well; None where they are left out.
        streams: likewise.

    Raises:
        ServiceFailedError: a part of the stack ended meanwhile.
    """
    services, records = SystemResources(stack.settings), DagsterRecords(stack.settings)
    earlier = {record.file_key for record in services.files.get_many(list(expected)) if record.state.finished}
    job = PollingJob(
        job_id=f"demo_{datetime.now(UTC):%Y%m%d_%H%M%S}", source_config=dict(SOURCE), trace_id=str(uuid.uuid4())
    )
    deliver(services, stack.settings.topics.polling_queue, job.job_id, encode(job), job.trace_id)
    complain(f"Sent polling job {job.job_id}: look in {DUMMY_PATH} ({counted(len(expected), 'file')} to be found).")
    deadline = time.monotonic() + timeout_seconds
    if streams:
        streams.send(services)
    if attachments:
        attachments.send(services)
        attachments.fix_and_replay(services, deadline, stack.require_running)
    seen = wait_for_idle(services, records, deadline - time.monotonic(), stack.require_running)
    unfinished = [*seen.going_on, *seen.problems] or _unchecked(stack)
    return report_of(services, expected, earlier, unfinished, attachments.expected if attachments else {}, streams)


def _unchecked(stack: Stack) -> list[str]:
    """Evaluate the checks of all that is stored; return what prevented that."""
    if stack.webserver_port is None:
        return []
    complain("Evaluating the checks of all that is stored …")
    try:
        run_jobs(stack.webserver_port, CHECKS_JOBS, CHECKS_SECONDS, stack.require_running)
    except JobIncompleteError as error:
        return [error.what]
    return []


def _conclude(report: DemoReport, stack: Stack, *, keep: bool) -> None:
    out = stdout()
    logs = stack.settings.state_dir.absolute() / "logs"
    if report.going_on:
        complain(f"Not finished in time: {'; '.join(report.going_on)}. The logs are in {logs}.")
    if report.missing:
        complain(f"Not as it should be: {', '.join(report.missing)}. The logs are in {logs}.")
    earlier = sum(file.earlier for file in report.files)
    if earlier:
        out.print()
        say(f"{counted(earlier, 'file')} had been ingested by an earlier demo; they were not ingested again.")
    if report.streams and report.streams.earlier:
        stored = " and ".join(report.streams.earlier)
        say(f"{stored[0].upper()}{stored[1:]} had been stored by an earlier demo; they were not sent again.")
    show_facts(_where_to_look(report, stack, keep=keep), "Where to look")


def _where_to_look(report: DemoReport, stack: Stack, *, keep: bool) -> list[tuple[str, object]]:
    command = own_command()
    example = next((f for f in report.files if f.state is FileState.INGESTED and f.rows_quarantined), report.files[0])
    pairs: list[tuple[str, object]] = [
        ("One file", f"{command} files show {example.file_key}"),
        ("What was refused", f"{command} quarantine list"),
        ("What failed for good", f"{command} dlq list"),
        *(("One attachment", f"{command} attachments show {one.attachment_key}") for one in report.attachments[-1:]),
        *_streams_to_look_at(report, command),
        ("Another job", f"{command} send polling-job --path {DUMMY_PATH}"),
        ("How far it is", f"{command} status"),
        ("State folder", f"{stack.settings.state_dir.absolute()} (rows, files, logs; remove it to start over)"),
    ]
    if keep:
        return [("Dagster UI", stack.webserver_url), *pairs]
    return [("Start it again", f"{command} dev (or make demo KEEP=1), then in another terminal:"), *pairs]


def _streams_to_look_at(report: DemoReport, command: str) -> list[tuple[str, object]]:
    if report.streams is None or not report.streams.user_activity.hours:
        return []
    hour = hour_key(report.streams.user_activity.hours[0].hour)
    return [
        ("What users did", f"{command} activity hour {hour}"),
        ("What is no CRM record", f"{command} crm unidentified list"),
    ]


def _stay(stack: Stack) -> None:
    complain("Ctrl-C stops everything.")
    try:
        stack.wait()
    except KeyboardInterrupt:
        # The expected end.
        return


def own_command() -> str:
    """Return how to call `ingest` from this folder: by its name where PATH has it, else by its path."""
    program = Path(sys.executable).with_name("ingest")
    on_path = shutil.which("ingest")
    if not program.exists() or (on_path and Path(on_path).samefile(program)):
        return "ingest"
    try:
        return str(program.relative_to(Path.cwd()))
    except ValueError:
        return str(program)
