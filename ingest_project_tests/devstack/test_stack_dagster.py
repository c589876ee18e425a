"""Dagster as part of the stack: it starts, it ticks, and its runs end with it."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ingest_project.core.settings import load_settings
from ingest_project.devstack import ServiceFailedError, dagster_processes, start
from ingest_project.devstack.dagster_processes import wait_until_ready
from ingest_project.devstack.supervisor import StepState, running_stack
from ingest_project_tests.cli.running import StackProcess, started_stack, wait_until_nothing_is_left

TINY = "ingest_project_tests.devstack.tiny_definitions"


@pytest.mark.long
def test_a_run_in_flight_ends_with_a_killed_stack_and_with_a_stopped_one_and_the_second_start_is_quick(
    tmp_path: Path,
) -> None:
    state_dir, started = tmp_path / "state", tmp_path / "started"
    environ = {"TINY_STARTED": str(started)}
    with started_stack(state_dir, TINY, environ=environ) as stack:
        with urllib.request.urlopen(f"{stack.addresses['webserver']}/server_info", timeout=10) as answer:  # noqa: S310 - loopback
            assert "dagster_version" in json.load(answer)
        _wait_for_file(started)
        stack.end(signal.SIGKILL)
    assert wait_until_nothing_is_left(state_dir) == {}

    begun = time.monotonic()
    with started_stack(state_dir, TINY, environ=environ) as stack:
        assert time.monotonic() - begun < 30  # half of that on a machine that does nothing else
        assert stack.end(signal.SIGINT) == 130
    assert wait_until_nothing_is_left(state_dir) == {}


@pytest.mark.long
def test_ctrl_c_interrupts_a_run_in_flight_and_lets_it_write_its_failure(tmp_path: Path) -> None:
    state_dir, started = tmp_path / "state", tmp_path / "started"
    with started_stack(state_dir, TINY, environ={"TINY_STARTED": str(started)}) as stack:
        _wait_for_file(started)
        assert stack.end(signal.SIGINT) == 130
    assert wait_until_nothing_is_left(state_dir) == {}
    assert "DagsterExecutionInterruptedError" in (state_dir / "logs" / "code-server.log").read_text()


@pytest.mark.long
def test_a_run_ends_at_once_with_the_guard_of_its_code_server_which_is_started_again(tmp_path: Path) -> None:
    state_dir, started = tmp_path / "state", tmp_path / "started"
    with started_stack(state_dir, TINY, environ={"TINY_STARTED": str(started)}) as stack:
        _wait_for_file(started)
        worker = psutil.Process(int(started.read_text()))
        (daemon,) = _guards(stack, "ingest_project.operations.daemon")
        (guard,) = _guards(stack, "ingest_project.platform.dagster.code_server")
        assert guard in worker.parents()
        guard.kill()
        worker.wait(10)
        # Both are there again, the daemon so that it finds the new code server.
        _wait_until(lambda: not daemon.is_running() and len(_guards(stack, "ingest_project.operations.daemon")) == 1)
        assert len(_guards(stack, "ingest_project.platform.dagster.code_server")) == 1
        assert stack.process.poll() is None
        assert stack.end(signal.SIGINT) == 130
    assert wait_until_nothing_is_left(state_dir) == {}


@pytest.mark.long
def test_a_run_ends_with_all_guards_killed_at_once(tmp_path: Path) -> None:
    state_dir, started = tmp_path / "state", tmp_path / "started"
    with started_stack(state_dir, TINY, environ={"TINY_STARTED": str(started)}) as stack:
        _wait_for_file(started)
        for process in (*_guards(stack), psutil.Process(stack.process.pid)):
            process.kill()
    assert wait_until_nothing_is_left(state_dir) == {}


@pytest.mark.long
def test_whichever_part_of_dagster_or_broker_is_killed_runs_again_with_the_monitor_and_the_sensors_tick(
    tmp_path: Path,
) -> None:
    notes: list[str] = []
    ports = {"INGEST_WEBSERVER_PORT": "0", "INGEST_MONITOR_PORT": "0"}
    loaded = load_settings({"INGEST_STATE_DIR": str(tmp_path / "state"), **ports}, tmp_path)
    with (
        pytest.MonkeyPatch.context() as environment,
        running_stack(loaded, lambda step, _state: notes.append(step), monitor=True, definitions_module=TINY) as stack,
    ):
        environment.setenv("TINY_STARTED", str(tmp_path / "started"))
        for name in ("webserver", "daemon", "code server", "broker"):
            command = psutil.Process(next(one for one in stack.children if one.name == name).guard.pid).children()[0]
            command.kill()
            command.wait(10)
            stack.wait(3)
            assert stack.home is not None
            webserver = next(child for child in stack.children if child.name == "webserver")
            wait_until_ready(stack.home, webserver, stack.children)
            with urllib.request.urlopen(f"{stack.monitor_url}/healthz", timeout=10) as answer:  # noqa: S310 - loopback
                assert answer.read() == b"ok\n"
            assert any(f"The {name} ended and is started again" in note for note in notes)
    assert wait_until_nothing_is_left(tmp_path / "state") == {}


@pytest.mark.long
def test_without_the_launcher_everything_runs_on_and_what_ends_is_started_as_a_new_program(tmp_path: Path) -> None:
    loaded = load_settings({"INGEST_STATE_DIR": str(tmp_path / "state"), "INGEST_WEBSERVER_PORT": "0"}, tmp_path)
    with running_stack(loaded, _silent, definitions_module=TINY) as stack:
        assert stack.launcher is not None
        (launcher,) = stack.launcher.pids
        psutil.Process(launcher).kill()
        before = [child.guard.pid for child in stack.children]
        stack.wait(2)
        assert [child.guard.pid for child in stack.children] == before
        webserver = next(child for child in stack.children if child.name == "webserver")
        psutil.Process(webserver.guard.pid).children()[0].kill()
        _wait_until(lambda: not webserver.running)
        stack.require_running()
        assert stack.home is not None
        wait_until_ready(stack.home, next(one for one in stack.children if one.name == "webserver"), stack.children)
    assert wait_until_nothing_is_left(tmp_path / "state") == {}


def _guards(stack: StackProcess, of: str = "") -> list[psutil.Process]:
    found = []
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if "process_guard.py" in command and of in command:
                found.append(process)
    return found


def test_definitions_that_do_not_load_are_shown_with_their_error(tmp_path: Path) -> None:
    home = dagster_processes.prepare_home(tmp_path, "no_such_definitions", port=0)
    code_server = start(
        dagster_processes.code_server_command(home, {**os.environ, "DAGSTER_HOME": str(home.folder)}), tmp_path
    )
    try:
        with pytest.raises(ServiceFailedError, match=r"(?s)code server.*No module named 'no_such_definitions'"):
            dagster_processes.wait_for_code_server(home, code_server)
    finally:
        code_server.stop()


@pytest.mark.long
def test_a_stack_whose_definitions_do_not_load_ends_with_their_error_and_leaves_nothing(tmp_path: Path) -> None:
    loaded = load_settings({"INGEST_STATE_DIR": str(tmp_path / "state"), "INGEST_WEBSERVER_PORT": "0"}, tmp_path)
    with (
        pytest.raises(ServiceFailedError, match=r"(?s)code server.*No module named 'no_such_definitions'"),
        running_stack(loaded, _silent, definitions_module="no_such_definitions"),
    ):
        pass
    assert wait_until_nothing_is_left(tmp_path / "state") == {}


def _silent(_step: str, _state: StepState) -> None:
    pass


def _wait_for_file(path: Path) -> None:
    # Until it has its content, too.
    _wait_until(lambda: path.exists() and bool(path.read_text()))


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
