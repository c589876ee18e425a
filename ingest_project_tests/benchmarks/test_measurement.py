"""A benchmark ends with a result or with the reason for its failure."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.baselines import without_baselines
from benchmarks.measurement import Result, measured_once
from ingest_project.file_ingest import pipeline

OPTIONS = argparse.Namespace(keep=False)


def last_line(capsys: pytest.CaptureFixture[str]) -> Result:
    result: Result = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


@pytest.mark.parametrize(("exact", "code"), [(True, 0), (False, 1)])
def test_a_result_is_the_last_line_and_its_folder_is_removed(
    exact: bool,  # noqa: FBT001 - a parameter of the test
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders: list[Path] = []

    def measure(_: argparse.Namespace, folder: Path) -> Result:
        folders.append(folder)
        return {"exact": exact, "files_per_s": 7.0}

    assert measured_once(measure, OPTIONS) == code
    assert last_line(capsys) == {"exact": exact, "files_per_s": 7.0}
    assert not folders[0].exists()


@pytest.mark.parametrize("error", [TimeoutError("Not every file was stored."), KeyboardInterrupt()])
def test_without_a_result_the_last_line_says_why_and_the_logs_are_kept(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(_: argparse.Namespace, folder: Path) -> Result:
        (folder / "broker.log").write_text("Killed")
        raise error

    assert measured_once(measure, OPTIONS) == 1
    found = last_line(capsys)
    assert found["exact"] is False
    assert found["no_result"] == f"{type(error).__name__}: {error}"
    kept = Path(str(found["kept"]))
    assert (kept / "broker.log").read_text() == "Killed"
    shutil.rmtree(kept)


def test_files_are_ingested_without_baselines() -> None:
    with without_baselines():
        assert pipeline.baselines_of([], mock.Mock()) == {}
