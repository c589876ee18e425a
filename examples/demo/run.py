"""Run the demo: take the sample files, attachments and streams from message to stored row on this machine.

It follows the steps of a user, by commands and messages: start the system, publish a polling job, events with
attachments and the messages of two streams, fix and replay what failed, wait, and query what is stored.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import msgspec

from examples.demo.attachments import DemoAttachments, serving
from examples.demo.commands import CommandError, ingest, require_running, running_system, settings
from examples.demo.printing import note, say, show_table
from examples.demo.report import (
    DemoReport,
    attachment_outcomes,
    expected_files,
    file_outcomes,
    known_files,
    metrics_of,
    show_report,
)
from examples.demo.streams import DemoStreams, streaming
from ingest_project.core.console import escape_unencodable

GENEROUS_SECONDS = 300.0
# They check everything at once; their schedule would run them only at the next quarter of an hour.
CHECKS_JOBS = ("file_checks", "attachment_checks", "user_activity_checks", "crm_checks")
CHECKS_SECONDS = 60.0
POLL_SECONDS = 0.5
FINAL_STATUSES = ("SUCCESS", "FAILURE", "CANCELED")
FINISHED = ("ingested", "quarantined", "duplicate", "failed")


def main() -> None:
    """Run the demo as the only command of this process."""
    escape_unencodable()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the demo with these arguments; return its exit code."""
    options = _parse(arguments)
    try:
        return demo(keep=options.keep, timeout_seconds=options.timeout, as_json=options.json)
    except CommandError as error:
        note(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


def demo(*, keep: bool, timeout_seconds: float, as_json: bool) -> int:
    """Start everything, ingest the samples, and show the outcome of each; return the exit code.

    Files come from a folder; attachments from a web server of the demo's own, which lacks one at first: that one goes
    to the dead letters, and is stored after the server has it and it is replayed; user events and CRM messages come
    from two files. Exit code 1 when something is not finished in time. A second demo finds the stored samples.
    """
    origins = {one["setting"]: one["origin"] for one in ingest("config")}
    configured = settings()
    folder = Path(configured["polling.dummy_root"])
    if not (names := expected_files(folder)):
        raise CommandError(f"{folder} has no sample files. Run this in the project's folder, or set INGEST_DUMMY_ROOT.")
    quickly, streams = streaming(configured, chosen=origins["user_activity.hourly_refresh_seconds"] != "default")
    # Any free port, unless a person chose one: two demos may start at the same time.
    port = {"INGEST_MONITOR_PORT": "0"} if origins["monitor.port"] == "default" else {}
    with serving(configured) as (allowed, attachments), running_system(port | quickly | allowed) as process:
        report = ingest_samples(lambda: require_running(process), names, timeout_seconds, attachments, streams)
        if as_json:
            print(json.dumps(msgspec.to_builtins(report)))  # noqa: T201 - the result
        else:
            show_report(report)
            _conclude(report, configured, keep=keep)
        if keep:
            note("Ctrl-C stops everything.")
            _stay(lambda: require_running(process))
    return 0 if report.as_hoped else 1


def ingest_samples(
    check: Callable[[], None],
    names: Sequence[str],
    timeout_seconds: float,
    attachments: DemoAttachments | None = None,
    streams: DemoStreams | None = None,
) -> DemoReport:
    """Send everything, wait until it is processed, and evaluate the checks.

    Args:
        check: called repeatedly while the demo waits; an exception of it ends the wait.
        names: of the sample files.
        timeout_seconds: limit of the wait, without the checks.
        attachments: to send as well; None where they are left out.
        streams: likewise.

    Raises:
        CommandError: a command failed, or the system ended meanwhile.
    """
    running = settings()
    earlier = {one["file_key"] for one in known_files(names).values() if one["state"] in FINISHED}
    job = f"demo_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    ingest("send", "polling-job", "--dummy", "--job-id", job)
    note(f"Sent polling job {job}: look in {running['polling.dummy_root']} ({len(names)} files to be found).")
    deadline = time.monotonic() + timeout_seconds
    if streams:
        streams.send(running)
    if attachments:
        attachments.send()
        attachments.fix_and_replay(deadline, check)
    seconds = max(0.0, deadline - time.monotonic())
    # Exit code 1: it is not idle in time, which the report says.
    seen = ingest("status", "--wait-until-idle", f"{seconds:.1f}", accepted=(0, 1))
    check()
    unfinished = [*seen["going_on"], *seen["problems"]] or _unchecked(running["dagster.webserver_url"], check)
    files = file_outcomes(names, earlier)
    return DemoReport(
        files=files,
        metrics=metrics_of(files),
        attachments=attachment_outcomes(attachments) if attachments else (),
        streams=streams.report(running) if streams else None,
        going_on=tuple(unfinished),
    )


def run_jobs(site: str, jobs: Sequence[str], timeout_seconds: float, check: Callable[[], None]) -> list[str]:
    """Launch jobs, all at once, by Dagster's API, and wait for the end of each; return what went wrong.

    Args:
        site: address of the UI.
        jobs: that need no configuration.
        timeout_seconds: of all jobs together, time in the run queue included.
        check: called repeatedly; an exception of it ends the wait.
    """
    from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError  # imports for a second

    address, deadline = urlsplit(site), time.monotonic() + timeout_seconds
    client = DagsterGraphQLClient(address.hostname or "", address.port, use_https=address.scheme == "https")
    try:
        runs = {job: client.submit_job_execution(job) for job in jobs}
        for job, run_id in runs.items():
            while (status := client.get_run_status(run_id).value) not in FINAL_STATUSES:
                check()
                if time.monotonic() > deadline:
                    return [f"{job} was not done in time, run {run_id} is {status}"]
                time.sleep(POLL_SECONDS)
            if status != "SUCCESS":
                return [f"{job} ended with {status}, run {run_id}"]
    except DagsterGraphQLClientError as error:
        return [f"{', '.join(jobs)} were not launched: {error}"]
    return []


def _unchecked(site: str, check: Callable[[], None]) -> list[str]:
    """Evaluate the checks of all that is stored; return what prevented that."""
    note("Evaluating the checks of all that is stored …")
    return run_jobs(site, CHECKS_JOBS, CHECKS_SECONDS, check)


def _conclude(report: DemoReport, configured: Mapping[str, Any], *, keep: bool) -> None:
    folder = Path(configured["state_dir"]).absolute()
    if report.going_on:
        note(f"Not finished in time: {'; '.join(report.going_on)}. The logs are in {folder / 'logs'}.")
    if report.missing:
        note(f"Not as it should be: {', '.join(report.missing)}. The logs are in {folder / 'logs'}.")
    if earlier := sum(file.earlier for file in report.files):
        say(f"\n{earlier} files had been ingested by an earlier demo; they were not ingested again.")
    if report.streams and report.streams.earlier:
        stored = " and ".join(report.streams.earlier)
        say(f"{stored[0].upper()}{stored[1:]} had been stored by an earlier demo; they were not sent again.")
    where = ("Dagster UI", settings()["dagster.webserver_url"])
    command = own_command()
    again = ("Start it again", f"{command} dev (or make demo KEEP=1), then in another terminal:")
    show_table("Where to look", ["", ""], [where if keep else again, *_commands(report, command, folder)])


def _commands(report: DemoReport, command: str, folder: Path) -> list[tuple[str, str]]:
    example = next((f for f in report.files if f.state == "ingested" and f.rows_quarantined), report.files[0])
    pairs = [
        ("One file", f"{command} files show {example.file_key}"),
        ("What was refused", f"{command} quarantine list"),
        ("What failed for good", f"{command} dlq list"),
        *(("One attachment", f"{command} attachments show {one.attachment_key}") for one in report.attachments[-1:]),
        ("Another job", f"{command} send polling-job --dummy"),
        ("How far it is", f"{command} status"),
        ("State folder", f"{folder} (rows, files, logs; remove it to start over)"),
    ]
    if report.streams and report.streams.user_activity.hours:
        hour = report.streams.user_activity.hours[0].hour
        pairs[-3:-3] = [
            ("What users did", f"{command} activity hour {hour:%Y-%m-%d-%H:00}"),
            ("What is no CRM record", f"{command} crm unidentified list"),
        ]
    return pairs


def _stay(check: Callable[[], None]) -> None:
    try:
        while True:
            check()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        # The expected end.
        return


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


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


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    description = (demo.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=description)
    parser.add_argument("--keep", action="store_true", help="stay up with the UI afterwards, until Ctrl-C")
    parser.add_argument("--timeout", type=float, default=GENEROUS_SECONDS, help="how long it may take, once started")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(arguments)
