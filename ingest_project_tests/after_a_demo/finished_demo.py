"""A finished demo of the whole system, which stays up to be looked at."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.demo.attachments import serving
from examples.demo.report import DemoAttachment, DemoFile, DemoReport, expected_files
from examples.demo.run import SOURCE, ingest_samples
from examples.demo.streams import streaming
from ingest_project.attachments.tables import AttachmentState
from ingest_project.cli.send import deliver
from ingest_project.cli.status import wait_for_idle
from ingest_project.contracts.attachments import DownloadTask, attachment_key
from ingest_project.contracts.decoding import encode
from ingest_project.core.settings import Settings, load_settings
from ingest_project.devstack.supervisor import running_stack
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.dagster.run_records import DagsterRecords

DUMMY_DATA = Path(__file__).parents[2] / "dummy_data"
DEMO_SECONDS = 180.0
# Inside some network, and never contacted.
REFUSED_ADDRESS = "http://10.0.0.8/late_contract.pdf"


@dataclass(frozen=True)
class Demo:
    """A demo that has come to its end, and whose services and UI are up.

    Args:
        site: address of the UI.
        environment: variables with which a command finds the services.
        report: what became of each file and attachment.
        dead_key: of an attachment whose address is refused, which the documentation looks at and replays.
    """

    site: str
    environment: Mapping[str, str]
    report: DemoReport
    dead_key: str

    def file(self, name: str) -> DemoFile:
        """What became of the file of that name."""
        return next(file for file in self.report.files if file.file_name == name)

    def attachment(self, name: str) -> DemoAttachment:
        """What became of the attachment of that name."""
        return next(one for one in self.report.attachments if one.file_name == name)

    def count(self, *states: str) -> int:
        """How many files ended in one of these states."""
        return sum(file.state in states for file in self.report.files)


@contextmanager
def finished_demo(folder: Path) -> Iterator[Demo]:
    """Run a demo in a folder; it is up inside the block."""
    # A copy: pictures of the UI, which become documentation, should not show where this checkout is.
    dummy_data = shutil.copytree(DUMMY_DATA, folder / "dummy_data")
    variables = {
        "INGEST_CONFIG_DIR": str(folder),
        "INGEST_STATE_DIR": str(folder / "state"),
        "INGEST_WEBSERVER_PORT": "0",
        "INGEST_DUMMY_ROOT": str(dummy_data),
        "INGEST_LOCAL_ROOTS": str(dummy_data),
        "INGEST_ALLOWED_INTERNAL_HOSTS": "127.0.0.1",
    }
    with ExitStack() as running:
        # Set no longer than it starts: the demo stays up while other tests look for settings of their own.
        with pytest.MonkeyPatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            loaded, streams = streaming(load_settings())
            loaded, attachments = running.enter_context(serving(loaded))
            stack = running.enter_context(running_stack(loaded, lambda _step, _state: None))
        report = ingest_samples(stack, expected_files(SOURCE, loaded.settings), DEMO_SECONDS, attachments, streams)
        assert report.as_hoped, report
        yield Demo(stack.webserver_url, variables, report, _dead_attachment(stack.settings))


def settle(services: SystemResources) -> None:
    """Wait until nothing is going on."""
    seen = wait_for_idle(services, DagsterRecords(services.settings), DEMO_SECONDS)
    assert seen.is_idle, seen


def _dead_attachment(settings: Settings) -> str:
    services = SystemResources(settings)
    task = DownloadTask(trace_id=str(uuid.uuid4()), domain="legal", attachment_url=REFUSED_ADDRESS)
    key = attachment_key(task.trace_id, task.attachment_url)
    deliver(services, settings.topics.downloads_pending, key, encode(task), task.trace_id)
    settle(services)
    (record,) = services.attachments.get_many([key])
    assert record.state is AttachmentState.FAILED, record
    return key
