"""Every name in `conftest.py` exists: a wrong one would silently skip tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ingest_project_tests.conftest import COLLECTED, KEPT, WHOLE_SYSTEMS

HERE = Path(__file__).parent


def test_every_test_and_instance_that_is_named_exists(pytestconfig: pytest.Config) -> None:
    collected = pytestconfig.stash[COLLECTED]
    gone = {name: missing for name in collected if (missing := set(KEPT[name]) - collected[name])}
    assert gone == {}, "instances of tests that were collected"
    # In a run of a few files the other tests are not collected: they are looked for by their names alone.
    sources = [path.read_text(encoding="utf-8") for path in HERE.rglob("test_*.py")]
    defined = {name for source in sources for name in re.findall(r"^ *def (test_\w+)\(", source, re.MULTILINE)}
    assert set(KEPT) - defined == set()


def test_every_module_that_starts_the_whole_system_exists() -> None:
    assert [path for path in WHOLE_SYSTEMS if not [*HERE.glob(f"{path}*")]] == []
