"""The programs of a browser, found or installed once a test run."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial

import pytest

from ingest_project_tests.browser.programs import BrowserMissingError, BrowserPrograms, browser_programs


@pytest.fixture(scope="session")
def programs(pytestconfig: pytest.Config) -> BrowserPrograms:
    """Where the browser is. Without one the test fails in continuous integration, and is skipped elsewhere."""
    try:
        return browser_programs(partial(_say, pytestconfig))
    except BrowserMissingError as missing:
        reason = str(missing)
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _say(config: pytest.Config, sentence: str) -> None:
    """Print at once, although the output of tests is captured: installing takes a while."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        config.get_terminal_writer().line(sentence)
