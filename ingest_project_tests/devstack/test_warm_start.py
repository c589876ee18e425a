"""Parts as forks of one process: as they are when they start cold."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ingest_project.devstack import Child, python_module, start, warm_start
from ingest_project.devstack.warm_start import Forked, WarmStart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parts start cold elsewhere")

# Says what it is, and waits.
PART = """
import os, sys, time
print(__name__, sys.argv[1:], os.environ["MARK"], os.getsid(0) == os.getpid(), "colorsys" in sys.modules, flush=True)
if sys.argv[1] == "exit":
    sys.exit(7)
time.sleep(600)
"""


@pytest.fixture
def warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WarmStart]:
    name = warm_start.__name__
    program = f"import {name} as warm; warm.MODULES = ('colorsys',); warm.main()"
    monkeypatch.setattr(warm_start, "PROGRAM", program)
    (tmp_path / "part_of_test.py").write_text(PART)
    warm = WarmStart({**os.environ, "PYTHONPATH": str(tmp_path)}, tmp_path / "warm-start.log")
    yield warm
    warm.close()


def started(warm: WarmStart | None, folder: Path, what: str) -> Child:
    environ = {**os.environ, "PYTHONPATH": str(folder), "MARK": "mine"}
    return start(python_module("part", ["part_of_test", what], environ), folder, warm)


def wait_for_log(child: Child) -> str:
    child.wait_until(child.log_path.read_text, 60, "said nothing")
    return child.log_path.read_text()


def test_a_part_is_the_child_of_its_guard_which_is_a_child_of_ours(warm: WarmStart, tmp_path: Path) -> None:
    child = started(warm, tmp_path, "wait")
    assert isinstance(child.guard, Forked)
    try:
        assert wait_for_log(child) == "__main__ ['wait'] mine True True\n"
        guard = psutil.Process(child.pid)
        (part,) = guard.children()
        assert guard.ppid() == os.getpid()
        assert "process_guard" in " ".join(guard.cmdline())
        assert " ".join(part.cmdline()).endswith("-m part_of_test wait")
    finally:
        child.stop()
    assert not part.is_running()


def test_a_part_ends_with_its_own_exit_code(warm: WarmStart, tmp_path: Path) -> None:
    child = started(warm, tmp_path, "exit")
    assert child.guard.wait(60) == 7
    assert not child.running
    child.stop()


def test_a_part_ends_with_its_guard(warm: WarmStart, tmp_path: Path) -> None:
    child = started(warm, tmp_path, "wait")
    wait_for_log(child)
    (part,) = psutil.Process(child.pid).children()
    child.guard.kill()
    part.wait(10)
    assert child.guard.wait(10) == -signal.SIGKILL
    child.stop()


def test_a_part_goes_on_without_the_process_it_was_forked_from_and_the_next_one_starts_cold(
    warm: WarmStart, tmp_path: Path
) -> None:
    child = started(warm, tmp_path, "wait")
    wait_for_log(child)
    warm.close()
    time.sleep(0.1)
    assert child.running
    child.stop()
    cold = started(warm, tmp_path, "exit")
    assert cold.guard.wait(60) == 7
    assert not isinstance(cold.guard, Forked)
    cold.stop()
