"""A demo that stays up after its end, and a second one on the same system."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from examples.demo import run
from examples.demo.report import DemoAttachment, DemoFile, DemoReport
from ingest_project.attachments.tables import AttachmentState
from ingest_project.cli.operations import wait_for_idle
from ingest_project.cli.send import deliver
from ingest_project.contracts import encode
from ingest_project.contracts.attachments import DownloadTask, attachment_key
from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.platform.dagster.run_records import DagsterRecords
from ingest_project_tests.cli.running import wait_until_nothing_is_left

REPOSITORY = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "examples.demo")
DEMO_SECONDS = 240.0
# Inside some network, and never contacted.
REFUSED_ADDRESS = "http://10.0.0.8/late_contract.pdf"


@dataclass(frozen=True)
class Demo:
    """Two demos that have come to their end; their services and UI are up.

    Args:
        site: address of the UI.
        environment: variables with which a command finds the services.
        report: of the first demo: the outcome of each file and attachment.
        shown: output of the second demo.
    """

    site: str
    environment: Mapping[str, str]
    report: DemoReport
    shown: str

    def file(self, name: str) -> DemoFile:
        """Return the outcome of the file of that name."""
        return next(file for file in self.report.files if file.file_name == name)

    def attachment(self, name: str) -> DemoAttachment:
        """Return the outcome of the attachment of that name."""
        return next(one for one in self.report.attachments if one.file_name == name)

    def count(self, *states: str) -> int:
        """Count the files that ended in one of these states."""
        return sum(file.state in states for file in self.report.files)


@contextmanager
def finished_demo(folder: Path) -> Iterator[Demo]:
    """Run a demo in a folder, which stays up inside the block, and a second one on it. No process is left behind."""
    variables = variables_of(folder) | {"INGEST_ALLOWED_INTERNAL_HOSTS": "127.0.0.1"}
    variables["INGEST_LOCAL_ROOTS"] = variables["INGEST_DUMMY_ROOT"]
    with _kept_demo(folder, variables) as (process, report):
        shown = _demo_on(process, folder, variables)
        yield Demo(load_settings(variables).settings.dagster.webserver_url, variables, report, shown)
    assert wait_until_nothing_is_left(folder / "state") == {}


def whole_demo(folder: Path) -> DemoReport:
    """Run a demo in a folder from its start to its end, as a newcomer does."""
    done = subprocess.run(
        [*COMMAND, "--json"],
        cwd=folder,
        env=_environment(variables_of(folder)),
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert wait_until_nothing_is_left(folder / "state") == {}
    return msgspec.json.decode(done.stdout, type=DemoReport)


def variables_of(folder: Path) -> dict[str, str]:
    """Return the variables of a demo that keeps everything in a folder."""
    # A copy: pictures of the UI, which become documentation, should not show where this checkout is.
    dummy_data = shutil.copytree(REPOSITORY / "dummy_data", folder / "dummy_data", dirs_exist_ok=True)
    return {
        "INGEST_CONFIG_DIR": str(folder),
        "INGEST_STATE_DIR": str(folder / "state"),
        "INGEST_WEBSERVER_PORT": "0",
        "INGEST_DUMMY_ROOT": str(dummy_data),
    }


def dead_attachment(services: SystemResources) -> str:
    """Send an attachment whose address is refused; return its key when it is in the dead letters."""
    task = DownloadTask(trace_id=str(uuid.uuid4()), domain="legal", attachment_url=REFUSED_ADDRESS)
    key = attachment_key(task.trace_id, task.attachment_url)
    deliver(services, services.settings.topics.downloads_pending, key, encode(task), task.trace_id)
    settle(services)
    (record,) = services.attachments.get_many([key])
    assert record.state is AttachmentState.FAILED, record
    return key


def settle(services: SystemResources) -> None:
    """Wait until nothing is going on."""
    seen = wait_for_idle(services, DagsterRecords(services.settings), DEMO_SECONDS)
    assert seen.is_idle, seen


@contextmanager
def _kept_demo(folder: Path, variables: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[str], DemoReport]]:
    output = folder / "report.json"
    with (
        output.open("w") as report,
        subprocess.Popen(
            [*COMMAND, "--json", "--keep"],
            cwd=folder,
            env=_environment(variables),
            stdout=report,
            stderr=subprocess.PIPE,
            text=True,
        ) as demo,
    ):
        try:
            _read_until("Ctrl-C stops everything.", demo)
            yield demo, msgspec.json.decode(output.read_bytes(), type=DemoReport)
            demo.send_signal(signal.SIGINT)
            _, said = demo.communicate(timeout=DEMO_SECONDS)
        finally:
            demo.kill()
    assert demo.returncode == 0, said


def _demo_on(process: subprocess.Popen[str], folder: Path, variables: Mapping[str, str]) -> str:
    """Run a demo on the system of another one, which is up, and return what it prints."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, variables),
        contextlib.chdir(folder),
        mock.patch.object(run, "running_system", return_value=contextlib.nullcontext(process)),
        mock.patch.object(run, "_stay"),
        contextlib.redirect_stdout(printed),
    ):
        assert run.demo(keep=True, timeout_seconds=DEMO_SECONDS, as_json=False) == 0
    return printed.getvalue()


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    # Of this checkout, although it starts in another folder; and a report can be read as soon as it is printed.
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **variables}


def _read_until(text: str, process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        if text in line:
            return
        lines.append(line)
    pytest.fail(f"it ended without saying {text!r}: {''.join(lines)}")
