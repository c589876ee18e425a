"""The commands that README and docs show work, on what a demo left."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from unittest import mock

import pytest

from ingest_project.cli.main import run
from ingest_project_tests.after_a_demo.finished_demo import Demo
from ingest_project_tests.test_documentation import PAGES, ROOT, blocks

# Declares a dataset first, and starts a system that has it: see `devstack/test_first_dataset.py`.
TESTED_ALONE = "first-dataset.md"
# Its first example is a profile that its commands name.
OF_PROFILES = "reader-profiles.md"


def commands(page: Path) -> list[str]:
    """The lines of a page that call `ingest`."""
    if page.name == TESTED_ALONE:
        return []
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("ingest ")]


@pytest.mark.usefixtures("dead_key")
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_of_a_page_works(
    page: Path, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    variables = {**demo.environment, "INGEST_LOCAL_ROOTS": f"{ROOT / 'dummy_data'},{tmp_path}"}
    if page.name == OF_PROFILES:
        (tmp_path / "profile.yaml").write_text(blocks(page, "yaml")[0], encoding="utf-8")
        variables["INGEST_READER_PROFILES"] = str(tmp_path / "profile.yaml")
    for command in commands(page):
        capsys.readouterr()
        # Each as in a process of its own: what a command sets for what it starts is not there for the next one.
        with mock.patch.dict(os.environ, variables):
            exit_code = run(shlex.split(command.replace("/data/halls", str(tmp_path)))[1:])
        assert exit_code == 0, f"{command}\n{capsys.readouterr()}"
