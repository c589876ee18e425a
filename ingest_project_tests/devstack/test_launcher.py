"""Processes forked by the launcher behave as in a new interpreter."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from ingest_project.devstack import Child, ForkedGuard, python_module, start
from ingest_project.devstack.dagster_processes import SHARED_MODULES
from ingest_project.devstack.launcher import Launcher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no launcher")

# What a process is like for others and for itself; then it does what its argument says.
PART = """
import atexit, json, os, signal, sys, time
if __name__ == "__main__":
    print(json.dumps({
        "argv": sys.argv[1:], "orig": sys.orig_argv, "environ": os.environ["PART"], "others": "OTHER" in os.environ,
        "stdin": sys.stdin.read(), "session": os.getsid(0) == os.getpid(), "umask": os.umask(0o077),
        "shared": "tomllib" in sys.modules, "child": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
        "name": __name__, "files": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
    }), flush=True)
    atexit.register(print, "in good order")
    if sys.argv[1] == "stay":
        time.sleep(600)
    sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "some_part.py").write_text(PART)
    (tmp_path / "starts_a_thread.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=[60], daemon=True).start()\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path), "PART": "mine"}


@pytest.fixture
def launcher(tmp_path: Path, environ: dict[str, str]) -> Iterator[Launcher]:
    # As long as the real list: forks show their command lines in the place of the launcher's.
    modules = ["tomllib", *["collections.abc"] * 40]
    with closing(Launcher(modules, {**environ, "OTHER": "1"}, tmp_path / "launcher.log")) as launcher:
        yield launcher


def started(launcher: Launcher, folder: Path, environ: dict[str, str], argument: str) -> Child:
    return start(python_module("part", ["some_part", argument], environ), folder, launcher.fork)


def exit_code(child: Child) -> int:
    try:
        return child.guard.wait(60)
    finally:
        child.stop()


def test_a_fork_is_like_a_new_program_and_its_exit_code_is_that_of_its_module(
    launcher: Launcher, tmp_path: Path, environ: dict[str, str]
) -> None:
    def output_of(child: Child) -> dict[str, object]:
        assert exit_code(child) == 7, child.log_path.read_text()
        said, at_exit = child.log_path.read_text().splitlines()
        assert at_exit == "in good order"
        found: dict[str, object] = json.loads(said)
        return found

    forked = started(launcher, tmp_path, environ, "7")
    assert isinstance(forked.guard, ForkedGuard)
    as_fork = output_of(forked)
    assert as_fork["shared"] is True
    cold = output_of(start(python_module("part", ["some_part", "7"], environ), tmp_path))
    assert as_fork == cold | {"shared": True}


def test_it_shows_its_own_command_line_and_ends_with_its_guard_and_with_the_stack(
    launcher: Launcher, tmp_path: Path, environ: dict[str, str]
) -> None:
    children, parts = [], []
    for name in ("killed", "stopped"):
        (tmp_path / name).mkdir()
        children.append(child := started(launcher, tmp_path / name, environ, "stay"))
        child.wait_until(child.log_path.read_text, 30, "said nothing")
        guard = psutil.Process(child.guard.pid)
        (part,) = guard.children()
        assert "process_guard.py" in " ".join(guard.cmdline())
        assert " ".join(part.cmdline()).startswith(f"{sys.executable} -m some_part stay")
        parts.append(part)
    # Neither depends on the launcher.
    launcher.close()
    killed, stopped = children
    killed.guard.kill()
    assert killed.guard.wait(10) == -signal.SIGKILL
    stopped.stop()
    assert stopped.guard.returncode == 128 + signal.SIGTERM
    assert psutil.wait_procs(parts, timeout=10)[1] == []


def test_a_launcher_whose_imports_start_a_thread_or_fail_forks_nothing(tmp_path: Path, environ: dict[str, str]) -> None:
    for module, reason in (("starts_a_thread", "started threads"), ("no_such_module", "No module named")):
        log_path = tmp_path / "launcher.log"
        with closing(Launcher([module], environ, log_path)) as launcher:
            child = started(launcher, tmp_path, environ, "7")
            assert not isinstance(child.guard, ForkedGuard)
            assert exit_code(child) == 7
        assert reason in log_path.read_text()


def test_the_stacks_shared_imports_can_be_forked_and_read_no_settings_and_no_files(tmp_path: Path) -> None:
    reads = tmp_path / "reads_settings.py"
    reads.write_text(
        "import sys\nfrom ingest_project.core.settings import current_settings\n"
        "if __name__ == '__main__':\n    sys.exit(current_settings.cache_info().currsize)\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with closing(Launcher(SHARED_MODULES, environ, tmp_path / "launcher.log")) as launcher:
        child = start(python_module("part", ["reads_settings"], environ), tmp_path, launcher.fork)
        assert isinstance(child.guard, ForkedGuard), (tmp_path / "launcher.log").read_text()
        assert exit_code(child) == 0
        # Of the files that it has read: programs, and libraries of a hundred megabytes.
        assert psutil.Process(launcher.pids[0]).memory_info().shared < 20_000_000
