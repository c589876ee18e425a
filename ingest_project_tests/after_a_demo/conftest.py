"""Two finished demos on a running system, and a browser on its UI, shared by all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project_tests.after_a_demo.finished_demo import Demo, dead_attachment, finished_demo
from ingest_project_tests.browser.programs import BrowserPrograms
from ingest_project_tests.browser.window import Window, open_browser

KEEP_SCREENSHOTS = "KEEP_SCREENSHOTS"


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The whole system in a folder of its own, with the sample files ingested, attachments and streams stored."""
    with finished_demo(tmp_path_factory.mktemp("demo")) as demo:
        yield demo


@pytest.fixture(scope="package")
def dead_key(demo: Demo) -> str:
    """Key of an attachment whose address is refused, which the documentation looks at and replays."""
    with mock.patch.dict(os.environ, demo.environment):
        return dead_attachment(SystemResources(load_settings().settings))


@pytest.fixture
def services(demo: Demo) -> Iterator[SystemResources]:
    """The services of the demo."""
    with mock.patch.dict(os.environ, demo.environment):
        yield SystemResources(load_settings().settings)


@pytest.fixture(scope="package")
def window(programs: BrowserPrograms, demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    """A window on the UI; its pictures are written to the folder KEEP_SCREENSHOTS as well, where that is set."""
    folder = tmp_path_factory.mktemp("browser")
    kept = os.environ.get(KEEP_SCREENSHOTS)
    with open_browser(programs, folder) as driver:
        yield Window(driver, demo.site, folder / "pictures", Path(kept) if kept else None)
