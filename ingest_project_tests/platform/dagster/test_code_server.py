"""Run workers as forks of a warm process: none of them survives the code server, however that ends."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from dagster._grpc import server as grpc_server
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.server import DagsterApiServer

from ingest_project.platform.dagster import code_server
from ingest_project_tests.services.loaded_definitions import LoadedDefinitions

# Starts a worker as the code server does, says which process it is, and waits for it.
SERVER = """
import os, sys, time
from ingest_project.platform.dagster import code_server

def work():
    print(os.getpid(), "colorsys" in sys.modules, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    code_server.HEAVY_MODULES = ("colorsys",)
    code_server.warm_workers()
    import multiprocessing
    worker = multiprocessing.get_context("spawn").Process(target=work)
    worker.start()
    worker.join()
"""


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process, psutil.Process]]:
    """A server, its worker and the process that the worker is a fork of."""
    (folder / "server.py").write_text(SERVER)
    with subprocess.Popen([sys.executable, str(folder / "server.py")], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            pid, has_its_modules = server.stdout.readline().split()
            assert has_its_modules == "True"
            worker = psutil.Process(int(pid))
            parent = worker.parent()
            assert parent is not None
            yield server, worker, parent
        finally:
            server.kill()


@pytest.mark.parametrize("victim", ["the code server", "the process that workers are forks of"])
def test_a_worker_ends_at_once_when_its_server_or_parent_is_killed(victim: str, tmp_path: Path) -> None:
    with started(tmp_path) as (server, worker, parent):
        (server if victim == "the code server" else parent).kill()
        psutil.wait_procs([worker, parent], timeout=10)
        assert not worker.is_running()
        assert not parent.is_running()


def test_a_worker_starts_with_its_modules_and_a_request_to_stop_is_for_the_workers_alone(tmp_path: Path) -> None:
    with started(tmp_path) as (server, worker, parent):
        parent.send_signal(signal.SIGTERM)
        with pytest.raises(psutil.TimeoutExpired):
            parent.wait(0.3)
        worker.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


def test_the_forkserver_has_no_polars_threads(loaded_definitions: LoadedDefinitions) -> None:
    assert not {"polars-0", "tokio-rt-worker"} & {*loaded_definitions.threads}, loaded_definitions.threads


def test_a_reload_ends_the_server_so_that_its_supervisor_starts_it_with_what_is_declared_now(tmp_path: Path) -> None:
    socket = tempfile.mktemp(dir="/tmp", suffix=".sock")  # noqa: S306 - a short path, which a socket needs
    module = "ingest_project_tests.devstack.tiny_definitions"
    # Its workers' imports are not what this is about.
    program = "import sys; from ingest_project.platform.dagster import code_server as it; it.HEAVY_MODULES = (); "
    command = [sys.executable, "-c", f"{program}it.main(sys.argv[1:])", "--module-name", module, "--socket", socket]
    with subprocess.Popen(command, env={**os.environ, "DAGSTER_HOME": str(tmp_path)}) as server:
        client = DagsterGrpcClient(socket=socket)
        deadline = time.monotonic() + 60
        while not Path(socket).exists() or client.health_check_query() != "SERVING":  # type: ignore[no-untyped-call]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        client.reload_code(timeout=30)
        assert server.wait(30) == 0


def test_a_server_whose_records_were_away_looks_for_ended_workers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DagsterApiServer, "_check_for_orphaned_runs", DagsterApiServer._check_for_orphaned_runs)
    code_server.look_for_ended_runs_again()
    looked = threading.Semaphore(0)

    class Worker:
        def is_alive(self) -> bool:
            looked.release()
            return False

    server = object.__new__(DagsterApiServer)
    server._logger = logging.getLogger("code server")
    server._execution_lock = threading.Lock()
    server._server_termination_event = threading.Event()
    # Nothing can be recorded of it.
    server._executions = {"run": (Worker(), None)}  # type: ignore[dict-item]
    monkeypatch.setattr(grpc_server, "CLEANUP_TICK", 0.01)
    thread = threading.Thread(target=server._cleanup_thread, daemon=True)
    thread.start()
    try:
        assert all(looked.acquire(timeout=10) for _ in range(3))
        assert "run" in server._executions
    finally:
        server._server_termination_event.set()
        thread.join()
