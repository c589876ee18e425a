"""A browser, and its window on the Dagster UI of a finished demo. Both are made once for all tests of this folder."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ingest_project_tests.browser.programs import BrowserMissing, BrowserPrograms, browser_programs
from ingest_project_tests.browser.window import Window, open_browser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingest_project_tests.services.demo import Demo

KEEP_SCREENSHOTS = "KEEP_SCREENSHOTS"


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
def window(programs: BrowserPrograms, demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    """A window on the UI; its pictures are written to the folder KEEP_SCREENSHOTS as well, where that is set."""
    folder = tmp_path_factory.mktemp("browser")
    kept = os.environ.get(KEEP_SCREENSHOTS)
    with open_browser(programs, folder) as driver:
        yield Window(driver, demo.site, folder / "pictures", Path(kept) if kept else None)
