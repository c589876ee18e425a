"""A process that works as the daemon and its runs do, and is killed at a chosen step.

Its `main` waits for orders, one JSON object a line on its standard input, does each in a fork of its own, so that
nothing has to be imported again, and answers with the fork's exit code: -9 where it died as ordered.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance

CURSORS = "cursors.json"
FILES = "ingest_project_tests.journeys.system:System.drive"


@dataclass(frozen=True)
class KillPoint:
    """The end of a call after which the process is no more.

    Args:
        step: what has just happened, for people.
        target: module and name of the function or method.
        call: which call of it, counted from 1.
    """

    step: str
    target: str
    call: int = 1


class SavedCursors(dict[str, str | None]):
    """Cursors as Dagster keeps them: on record as soon as they are set."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / CURSORS
        super().__init__(json.loads(self._path.read_text()) if self._path.exists() else {})

    def __setitem__(self, sensor: str, cursor: str | None) -> None:
        """Set one, and save all."""
        super().__setitem__(sensor, cursor)
        unfinished = self._path.with_suffix(".new")
        unfinished.write_text(json.dumps(self))
        unfinished.replace(self._path)


class DeadlyProcess:
    """The process that takes orders, seen from the tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def drive(self, point: KillPoint, folder: Path, instance: str, environ: Mapping[str, str], way: str = FILES) -> int:
        """Let a fork drive the system until it dies; its exit code.

        Args:
            point: where.
            folder: of the system; its cursors are kept next to it.
            instance: reference to Dagster's instance, serialised.
            environ: settings of the system.
            way: how: module, and class and method of its system.
        """
        return self._ask(point=asdict(point), folder=str(folder), instance=instance, environ=dict(environ), way=way)

    def call(self, function: str, *arguments: str) -> int:
        """Let a fork call `module:function`, which kills it; its exit code."""
        return self._ask(function=function, arguments=arguments)

    def _ask(self, **order: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@pytest.fixture(scope="session")
def deadly_process() -> Iterator[DeadlyProcess]:
    """A process that a test may kill forks of. One for all tests: what it imports takes 5 s of a processor."""
    process = DeadlyProcess()
    yield process
    process.close()


def bury_the_dead(instance: DagsterInstance) -> None:
    """What Dagster's run monitoring does with runs whose process is gone."""
    from dagster import DagsterRunStatus, RunsFilter  # see `_drive`

    unfinished = [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED]
    for run in instance.get_runs(RunsFilter(statuses=unfinished)):
        instance.report_run_failed(run)


def main() -> None:
    """Take orders until the input ends."""
    answers = os.dup(1)
    os.dup2(2, 1)
    _import_all()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _obey(json.loads(line))
        _, status = os.waitpid(pid, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    # Deleting all that was imported would take a second.
    os._exit(0)


def _import_all() -> None:
    for name in (
        "ingest_project_tests.attachments.system",
        "ingest_project_tests.file_ingest.datasets.system",
        "pandera.strategies.base_strategies",
        "ingest_project_tests.streams.crm.system",
        "ingest_project_tests.streams.declared.system",
        "ingest_project.streams.contract",
        "ingest_project_tests.streams.user_activity.system",
        "ingest_project_tests.journeys.system",
        "ingest_project.file_ingest.warehouse.postgres",
        "pandera.polars",
        "upath",
    ):
        importlib.import_module(name)


def _obey(order: dict[str, Any]) -> None:
    try:
        if "function" in order:
            module, _, name = order["function"].partition(":")
            getattr(importlib.import_module(module), name)(*order["arguments"])
        else:
            _drive(order)
    except BaseException:  # noqa: BLE001 - a fork must never return into the loop of its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _drive(order: dict[str, Any]) -> None:
    # Imported here: the tests import this module without any of it.
    from dagster import DagsterInstance
    from dagster._core.instance import InstanceRef
    from dagster._serdes import deserialize_value

    from ingest_project.core.settings import load_settings

    os.environ.update(order["environ"])
    folder = Path(order["folder"])
    point = KillPoint(**order["point"])
    with DagsterInstance.from_ref(deserialize_value(order["instance"], InstanceRef)) as instance:
        module_name, _, names = order["way"].partition(":")
        class_name, _, method = names.partition(".")
        system_class = getattr(importlib.import_module(module_name), class_name)
        system = system_class(load_settings().settings, instance, folder, SavedCursors(folder.parent))
        _arm(point)
        getattr(system, method)()


def _arm(point: KillPoint) -> None:
    module_name, _, path = point.target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *owners, name = path.split(".")
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    calls = itertools.count(1)

    def deadly(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - stands for any function
        result = original(*arguments, **more)
        if next(calls) == point.call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)
