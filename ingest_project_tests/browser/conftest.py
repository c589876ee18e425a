"""A finished demo, and a browser window on its Dagster UI. Both are made once for all tests of this folder."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ingest_project.cli.demo import SOURCE, ingest_samples
from ingest_project.cli.demo_report import expected_files
from ingest_project.cli.stack.supervisor import running_stack
from ingest_project.settings import load_settings
from ingest_project_tests.browser.programs import BrowserMissing, BrowserPrograms, browser_programs
from ingest_project_tests.browser.window import Window, open_browser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingest_project.cli.demo_report import DemoFile, DemoReport

DUMMY_DATA = Path(__file__).parents[2] / "dummy_data"
DEMO_SECONDS = 180.0
KEEP_SCREENSHOTS = "KEEP_SCREENSHOTS"


@dataclass(frozen=True)
class Demo:
    """A demo that has come to its end, and whose UI is up.

    Args:
        site: address of the UI.
        report: what became of each file.
    """

    site: str
    report: DemoReport

    def file(self, name: str) -> DemoFile:
        """What became of the file of that name."""
        return next(file for file in self.report.files if file.file_name == name)

    def count(self, *states: str) -> int:
        """How many files ended in one of these states."""
        return sum(file.state in states for file in self.report.files)


@pytest.fixture(scope="session")
def programs(pytestconfig: pytest.Config) -> BrowserPrograms:
    """Where the browser is. Without one the test fails in continuous integration, and is skipped elsewhere."""
    try:
        return browser_programs(partial(_say, pytestconfig))
    except BrowserMissing as missing:
        reason = str(missing)
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _say(config: pytest.Config, sentence: str) -> None:
    """Print at once, although the output of tests is captured: installing takes a while."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        config.get_terminal_writer().line(sentence)


@pytest.fixture(scope="session")
def demo(programs: BrowserPrograms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The whole system in a folder of its own, with the sample files ingested."""
    del programs  # no system is started where nobody could look at it
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "INGEST_CONFIG_DIR": str(folder),
            "INGEST_STATE_DIR": str(folder / "state"),
            "INGEST_WEBSERVER_PORT": "0",
            "INGEST_DUMMY_ROOT": str(DUMMY_DATA),
            "INGEST_LOCAL_ROOTS": str(DUMMY_DATA),
        }.items():
            environment.setenv(name, value)
        loaded = load_settings()
        with running_stack(loaded, lambda _step, _state: None) as stack:
            report = ingest_samples(stack, expected_files(SOURCE, loaded.settings), DEMO_SECONDS)
            assert report.as_hoped, report
            yield Demo(stack.webserver_url, report)


@pytest.fixture(scope="session")
def window(programs: BrowserPrograms, demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    """A window on the UI; its pictures are written to the folder KEEP_SCREENSHOTS as well, where that is set."""
    folder = tmp_path_factory.mktemp("browser")
    kept = os.environ.get(KEEP_SCREENSHOTS)
    with open_browser(programs, folder) as driver:
        yield Window(driver, demo.site, folder / "pictures", Path(kept) if kept else None)
