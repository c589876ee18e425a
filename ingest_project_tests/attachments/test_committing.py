"""Two processes that commit the same results: each is in the Delta table once, in any order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project_tests.attachments.samples import NOW, arrival, dead, stored
from ingest_project_tests.platform.delta.delta_log_reader import rows_of

pytestmark = pytest.mark.long

COMMIT = """
import sys
from ingest_project.attachments.results import commit_results
from ingest_project.operations import SystemResources
from ingest_project.core.settings import load_settings
services = SystemResources(load_settings().settings)
import deltalake, pyarrow
print("ready", flush=True)
for line in sys.stdin:
    commit_results(services)
"""
LOTS, IN_A_LOT = 8, 15


@pytest.fixture
def environ(postgres_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": postgres_url,
        "INGEST_STATE_DIR": str(tmp_path / "state"),
        "INGEST_CONFIG_DIR": str(tmp_path),
    }


@pytest.fixture
def services(environ: dict[str, str], tmp_path: Path) -> Iterator[SystemResources]:
    services = SystemResources(load_settings(environ, tmp_path).settings)
    yield services
    services.engine.dispose()


@contextmanager
def committer(environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that commits once for each line it is sent."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMIT],
        env=os.environ | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process
    finally:
        process.communicate()


def end(services: SystemResources, keys: Sequence[str]) -> None:
    """Attempts at these have ended, and their results are published but not committed."""
    services.attachments.record([arrival(key, offset) for offset, key in enumerate(keys)], NOW)
    services.attachments.begin(keys, "run", NOW)
    outcomes = [dead(key) if number % 3 else stored(key) for number, key in enumerate(keys)]
    services.attachments.finish_attempts(outcomes, "run", NOW)
    services.outcomes.mark_published(outcomes, NOW + timedelta(seconds=1))


def test_two_processes_that_commit_at_once_commit_each_result_once(
    services: SystemResources, environ: dict[str, str]
) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(committer(environ)) for _ in range(2)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for lot in range(LOTS):
            end(services, [f"{lot}-{number}" for number in range(IN_A_LOT)])
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("commit\n")
                process.stdin.flush()
    assert [process.returncode for process in processes] == [0, 0]

    rows = Counter(rows_of(Path(services.attachment_results.url))["attachment_key"].to_pylist())
    assert len(rows) == LOTS * IN_A_LOT
    assert set(rows.values()) == {1}
    assert services.outcomes.committed() == LOTS * IN_A_LOT
    assert services.outcomes.open_commits() == ()
