"""Run workers as forks of a warm process: none of them survives the code server, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from dagster._grpc.client import DagsterGrpcClient

from ingest_project.platform.dagster import code_server

# Starts a worker as the code server does, says which process it is, and waits for it.
SERVER = """
import os, time
from ingest_project.platform.dagster import code_server

def work():
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    code_server.HEAVY_MODULES = ()
    code_server.warm_workers()
    import multiprocessing
    worker = multiprocessing.get_context("spawn").Process(target=work)
    worker.start()
    worker.join()
"""


@pytest.mark.parametrize("victim", ["the code server", "the process that workers are forks of"])
def test_a_worker_ends_at_once_when_nobody_can_see_it_any_more(victim: str, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    with subprocess.Popen([sys.executable, str(tmp_path / "server.py")], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        worker = psutil.Process(int(server.stdout.readline()))
        parent = worker.parent()
        assert parent is not None
        (server if victim == "the code server" else parent).kill()
        psutil.wait_procs([worker, parent], timeout=10)
        assert not worker.is_running()
        assert not parent.is_running()
        server.kill()


def test_a_request_to_stop_is_for_the_workers_alone(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    with subprocess.Popen([sys.executable, str(tmp_path / "server.py")], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        worker = psutil.Process(int(server.stdout.readline()))
        parent = worker.parent()
        assert parent is not None
        parent.send_signal(signal.SIGTERM)
        with pytest.raises(psutil.TimeoutExpired):
            parent.wait(0.3)
        worker.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


def test_a_worker_starts_with_its_modules_imported(tmp_path: Path) -> None:
    warm = SERVER.replace("code_server.HEAVY_MODULES = ()", 'code_server.HEAVY_MODULES = ("colorsys",)')
    warm = warm.replace("os.getpid(), flush=True)", '"colorsys" in sys.modules, flush=True)')
    (tmp_path / "server.py").write_text(f"import sys{warm}")
    with subprocess.Popen([sys.executable, str(tmp_path / "server.py")], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "True\n"
        server.kill()


def test_what_workers_are_forked_from_has_no_threads_of_polars() -> None:
    program = (
        "import importlib, os\n"
        "from ingest_project.platform.dagster.code_server import HEAVY_MODULES\n"
        "for name in HEAVY_MODULES: importlib.import_module(name)\n"
        "for task in os.listdir('/proc/self/task'): print(open(f'/proc/self/task/{task}/comm').read(), end='')"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"polars-0", "tokio-rt-worker"} & set(said), said


def test_a_reload_ends_the_server_so_that_its_supervisor_starts_it_with_what_is_declared_now(tmp_path: Path) -> None:
    socket = tempfile.mktemp(dir="/tmp", suffix=".sock")  # noqa: S306 - a short path, which a socket needs
    module = "ingest_project_tests.devstack.tiny_definitions"
    arguments = ["-m", code_server.__name__, "--module-name", module, "--socket", socket]
    with subprocess.Popen([sys.executable, *arguments], env={**os.environ, "DAGSTER_HOME": str(tmp_path)}) as server:
        client = DagsterGrpcClient(socket=socket)
        deadline = time.monotonic() + 60
        while not Path(socket).exists() or client.health_check_query() != "SERVING":  # type: ignore[no-untyped-call]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        client.reload_code(timeout=30)
        assert server.wait(30) == 0
