"""The whole system under `kill -9`: run worker, daemon, code server and database in the middle of many files."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from dagster import DagsterEventType, DagsterRunStatus, RunsFilter

from ingest_project.core.settings import load_settings
from ingest_project.file_ingest.tables import FileState
from ingest_project_tests.cli.running import left_behind, started_stack, wait_until_nothing_is_left
from ingest_project_tests.journeys.system import RAW, VALIDATED, System, environment, readings
from ingest_project_tests.services.dagster import instance_on
from ingest_project_tests.services.kafka import Server

pytestmark = pytest.mark.long

FILES = 200
ROWS = 20
PATIENCE_SECONDS = 120


def wait_until(holds: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.05)


def kill(state_dir: Path, *wanted: str) -> int:
    """Kill -9 those processes of the stack whose command line holds one of these words."""
    pids = [pid for pid, command in left_behind(state_dir).items() if any(word in command for word in wanted)]
    end_at_once(pids)
    return len(pids)


def end_at_once(pids: list[int]) -> None:
    """Kill -9 those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def workers(system: System) -> list[int]:
    """The processes of the runs that are under way, as each wrote them into its events."""
    under_way = system.instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.STARTED]))
    events = [
        event
        for run in under_way
        for event in system.instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
    ]
    pids = [found.group(1) for event in events if (found := re.search(r"steps in process \(pid: (\d+)", event.message))]
    return [int(pid) for pid in pids if Path(f"/proc/{pid}").exists()]


def test_whatever_is_killed_in_the_middle_of_many_files_each_is_stored_and_shown_once(
    kafka_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kafka_server.keeps_messages:
        pytest.skip("the embedded broker forgets its messages with the stack")
    state_dir, folder = tmp_path / "state", tmp_path / "in"
    folder.mkdir()
    environ = environment(kafka_server.bootstrap_servers, "", tmp_path) | {
        "INGEST_LAUNCH_GRACE_SECONDS": "10",
        "INGEST_BATCH_FILES": "50",
        "LOG_LEVEL": "INFO",
    }
    environ = {name: value for name, value in environ.items() if value}
    paths = []
    for number in range(FILES):
        paths.append(folder / f"{number:03d}.csv")
        paths[-1].write_text(readings(ROWS, f"device-{number}"))

    with _running(state_dir, environ, folder, monkeypatch) as system:
        system.send_files(*paths)
        wait_until(lambda: _is_in_the_middle(system), "no run ever began")
        assert kill(state_dir, "dagster", "multiprocessing", "postgres") > 5
    assert wait_until_nothing_is_left(state_dir) == {}

    with _running(state_dir, environ, folder, monkeypatch) as system:
        wait_until(lambda: bool(workers(system)), "no run worker was there to be killed")
        end_at_once(workers(system))
        assert _count(system, FileState.INGESTED) < FILES
        wait_until(lambda: _count(system, FileState.INGESTED) == FILES, "not all were ingested in the end")
        wait_until(lambda: len(system.checks()) == FILES, "not all were reported in the end")
        assert Counter(system.checks().values()) == {"SUCCEEDED": FILES}
        assert len(system.instance.get_materialized_partitions(RAW)) == FILES
        assert len(system.instance.get_materialized_partitions(VALIDATED)) == FILES
        assert system.services.warehouse.totals()[:2] == (FILES * ROWS, 0)
        counts = system.services.warehouse.file_counts([file.file_key for file in system.files().values()])
        assert {count.rows for count in counts.values()} == {ROWS}
    assert wait_until_nothing_is_left(state_dir) == {}


@contextmanager
def _running(
    state_dir: Path, environ: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[System]:
    """The whole system on this state folder, and its stores seen from here; killed at the end."""
    with (
        started_stack(state_dir, "ingest_project.definitions", environ=environ) as stack,
        monkeypatch.context() as patch,
        instance_on(str(stack.addresses["dagster"]), folder.parent, patch) as instance,
    ):
        addresses = {"DATABASE_URL": str(stack.addresses["database"])}
        system = System(load_settings(environ | addresses, folder.parent).settings, instance, folder)
        try:
            yield system
        finally:
            system.close()


def _is_in_the_middle(system: System) -> bool:
    """Whether a run works on files, and none is just being launched: those are given up after minutes only."""
    launching = [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING]
    return _count(system, FileState.INGESTING) > 0 and not system.instance.get_runs(RunsFilter(statuses=launching))


def _count(system: System, state: FileState) -> int:
    return system.services.files.counts_by_state()[state]
