"""Two demos, one after the other, as a newcomer starts them; the second stays up to be looked at."""

from __future__ import annotations

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

import msgspec
import pytest

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
    """Two demos that have come to their end; the services and the UI of the second are up.

    Args:
        site: address of the UI.
        environment: variables with which a command finds the services.
        report: of the first demo: the outcome of each file and attachment.
        shown: file with the output of the second demo.
    """

    site: str
    environment: Mapping[str, str]
    report: DemoReport
    shown: Path

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
    """Run a demo in a folder, and a second one that is up inside the block. Neither leaves a process behind."""
    # A copy: pictures of the UI, which become documentation, should not show where this checkout is.
    dummy_data = shutil.copytree(REPOSITORY / "dummy_data", folder / "dummy_data")
    state_dir, shown = folder / "state", folder / "shown.txt"
    variables = {
        "INGEST_CONFIG_DIR": str(folder),
        "INGEST_STATE_DIR": str(state_dir),
        "INGEST_WEBSERVER_PORT": "0",
        "INGEST_DUMMY_ROOT": str(dummy_data),
    }
    report = _first_demo(folder, variables)
    assert wait_until_nothing_is_left(state_dir) == {}
    variables |= {"INGEST_LOCAL_ROOTS": str(dummy_data), "INGEST_ALLOWED_INTERNAL_HOSTS": "127.0.0.1"}
    with _second_demo(folder, variables, shown):
        yield Demo(load_settings(variables).settings.dagster.webserver_url, variables, report, shown)
    assert wait_until_nothing_is_left(state_dir) == {}


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


def _first_demo(folder: Path, variables: Mapping[str, str]) -> DemoReport:
    done = subprocess.run(
        [*COMMAND, "--json"],
        cwd=folder,
        env=_environment(variables),
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=DemoReport)


@contextmanager
def _second_demo(folder: Path, variables: Mapping[str, str], shown: Path) -> Iterator[None]:
    with (
        shown.open("w") as output,
        subprocess.Popen(
            [*COMMAND, "--keep"],
            cwd=folder,
            env=_environment(variables),
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        ) as demo,
    ):
        try:
            _read_until("Ctrl-C stops", demo)
            yield
            demo.send_signal(signal.SIGINT)
            _, said = demo.communicate(timeout=DEMO_SECONDS)
        finally:
            demo.kill()
    assert demo.returncode == 0, said


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    # Of this checkout, although it starts in another folder.
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}


def _read_until(text: str, process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        if text in line:
            return
        lines.append(line)
    pytest.fail(f"it ended without saying {text!r}: {''.join(lines)}")
