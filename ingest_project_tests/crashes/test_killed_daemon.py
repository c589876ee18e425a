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
from ingest_project.operations.actions import ACTIONS
from ingest_project.platform.actions import ActionRequest, Performed, action_record, perform
from ingest_project_tests.cli.running import left_behind, started_stack, wait_until_nothing_is_left
from ingest_project_tests.journeys.system import RAW, VALIDATED, System, environment, readings
from ingest_project_tests.services.dagster import instance_on
from ingest_project_tests.services.kafka import Server

pytestmark = pytest.mark.long

FILES, FEW_FILES = 200, 6
ROWS = 20
PATIENCE_SECONDS = 120
# Several rounds of the run queue.
QUIET_SECONDS = 4


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


def workers(system: System, backfill_id: str = "") -> list[int]:
    """The processes of the runs that are under way, of one backfill or of all, as each wrote them into its events."""
    tags = {"dagster/backfill": backfill_id} if backfill_id else {}
    under_way = system.instance.get_runs(RunsFilter(tags=tags, statuses=[DagsterRunStatus.STARTED]))
    events = [
        event
        for run in under_way
        for event in system.instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
    ]
    pids = [found.group(1) for event in events if (found := re.search(r"steps in process \(pid: (\d+)", event.message))]
    return [int(pid) for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_kill_in_the_middle_of_many_files_leaves_each_stored_and_shown_once(
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


def test_a_backfill_of_reprocessed_files_outlives_worker_daemon_and_code_server_and_waits_while_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dir, folder = tmp_path / "state", tmp_path / "in"
    folder.mkdir()
    # The embedded broker belongs to the stack, which stays.
    environ = environment("", "", tmp_path) | {"INGEST_LAUNCH_GRACE_SECONDS": "10", "LOG_LEVEL": "INFO"}
    environ = {name: value for name, value in environ.items() if value}
    paths = [folder / f"{number}.csv" for number in range(FEW_FILES)]
    for path in paths:
        path.write_text(readings(ROWS, path.stem))
    with _running(state_dir, environ, folder, monkeypatch) as system:
        system.send_files(*paths)
        wait_until(lambda: _count(system, FileState.INGESTED) == FEW_FILES, "not all were ingested")
        wait_until(lambda: len(system.checks()) == FEW_FILES, "not all were reported")
        before = system.services.warehouse.totals()

        with _held_tables(system):
            reprocessed = _act(system, "reprocess-files")
            wait_until(lambda: bool(workers(system, reprocessed.action_id)), "no run of the backfill began")
            assert kill(state_dir, "ingest_project.operations.daemon") >= 1
            end_at_once(workers(system, reprocessed.action_id))
        with _held_tables(system):
            wait_until(lambda: bool(workers(system, reprocessed.action_id)), "its run was not run again")
            assert kill(state_dir, "ingest_project.platform.dagster.code_server") >= 1
        _wait_for_success(system, reprocessed.action_id)
        _assert_as_before(system, before)
        record = action_record(system.services.engine, reprocessed.action_id)
        assert record is not None
        assert (record.outcome, record.done, record.failed) == ("done", FEW_FILES, 0)

        with _held_tables(system):
            again = _act(system, "reprocess-files")
            wait_until(lambda: bool(workers(system, again.action_id)), "no run of the backfill began")
            _act(system, "pause-capability", capability="file_ingest")
        _wait_for_success(system, again.action_id)
        waiting = _act(system, "reprocess-files")
        (folder / "new.csv").write_text(readings(ROWS, "new"))
        system.send_files(folder / "new.csv")
        queued = RunsFilter(tags={"dagster/backfill": waiting.action_id}, statuses=[DagsterRunStatus.QUEUED])
        wait_until(lambda: bool(system.instance.get_runs(queued)), "the backfill has no run in the queue")
        time.sleep(QUIET_SECONDS)
        assert len(system.instance.get_runs(queued)) == 1, "it has begun though its capability is paused"
        assert len(system.services.files.list()) == FEW_FILES

        _act(system, "resume-capability", capability="file_ingest")
        _wait_for_success(system, waiting.action_id)
        wait_until(lambda: _count(system, FileState.INGESTED) == FEW_FILES + 1, "what had waited was not ingested")
        assert system.services.warehouse.totals().rows == before.rows + ROWS
    assert wait_until_nothing_is_left(state_dir) == {}


@contextmanager
def _held_tables(system: System) -> Iterator[None]:
    """While it lasts, a run that stores files is in the middle."""
    with system.services.engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE raw_sensor_data IN SHARE MODE")
        yield


def _act(system: System, action: str, **parameters: str) -> Performed:
    request = ActionRequest(parameters=parameters, reason="a test", who="test")
    return perform(system.services, ACTIONS[action], request)


def _wait_for_success(system: System, backfill_id: str) -> None:
    def state() -> tuple[str, object]:
        backfill = system.instance.get_backfill(backfill_id)
        assert backfill is not None
        return str(backfill.status.value), backfill.error

    wait_until(lambda: state()[0] != "REQUESTED", "the backfill never ended")
    assert state() == ("COMPLETED_SUCCESS", None)


def _assert_as_before(system: System, before: object) -> None:
    assert system.services.warehouse.totals() == before
    counts = system.services.warehouse.file_counts([file.file_key for file in system.files().values()])
    assert {count.rows for count in counts.values()} == {ROWS}
    assert set(system.states().values()) == {"ingested"}


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
        addresses = {
            "DATABASE_URL": str(stack.addresses["database"]),
            "KAFKA_BOOTSTRAP_SERVERS": str(stack.addresses["kafka"]),
            "DAGSTER_HOME": str(state_dir / "dagster_home"),
            "DAGSTER_POSTGRES_URL": str(stack.addresses["dagster"]),
        }
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
