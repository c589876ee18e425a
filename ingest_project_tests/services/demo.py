"""A finished demo of the whole system, up until the last test that asked for it: made once a test run."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ingest_project.cli.demo import SOURCE, ingest_samples
from ingest_project.cli.demo_report import expected_files
from ingest_project.cli.stack.supervisor import running_stack
from ingest_project.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ingest_project.cli.demo_report import DemoFile, DemoReport

DUMMY_DATA = Path(__file__).parents[2] / "dummy_data"
DEMO_SECONDS = 180.0


@dataclass(frozen=True)
class Demo:
    """A demo that has come to its end, and whose services and UI are up.

    Args:
        site: address of the UI.
        environment: variables with which a command finds the services.
        report: what became of each file.
    """

    site: str
    environment: Mapping[str, str]
    report: DemoReport

    def file(self, name: str) -> DemoFile:
        """What became of the file of that name."""
        return next(file for file in self.report.files if file.file_name == name)

    def count(self, *states: str) -> int:
        """How many files ended in one of these states."""
        return sum(file.state in states for file in self.report.files)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The whole system in a folder of its own, with the sample files ingested."""
    folder = tmp_path_factory.mktemp("demo")
    # A copy: pictures of the UI, which become documentation, should not show where this checkout is.
    dummy_data = shutil.copytree(DUMMY_DATA, folder / "dummy_data")
    variables = {
        "INGEST_CONFIG_DIR": str(folder),
        "INGEST_STATE_DIR": str(folder / "state"),
        "INGEST_WEBSERVER_PORT": "0",
        "INGEST_DUMMY_ROOT": str(dummy_data),
        "INGEST_LOCAL_ROOTS": str(dummy_data),
    }
    with ExitStack() as running:
        # Set no longer than it starts: the demo stays up while other tests look for settings of their own.
        with pytest.MonkeyPatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            loaded = load_settings()
            stack = running.enter_context(running_stack(loaded, lambda _step, _state: None))
        report = ingest_samples(stack, expected_files(SOURCE, loaded.settings), DEMO_SECONDS)
        assert report.as_hoped, report
        yield Demo(stack.webserver_url, variables, report)
