"""Capture log lines, whether or not another test of this process has configured logging."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest


@pytest.fixture
def logged(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], str]:
    """Return what this test has logged since it was last asked."""
    monkeypatch.setattr(logging.getLogger("ingest_project"), "propagate", True)

    def text() -> str:
        printed = capsys.readouterr()
        return printed.out + printed.err + caplog.text

    return text
