"""A worker without free descriptors or memory may end in any way; no file is blamed, lost or doubled."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._serdes import serialize_value

from ingest_project.core.settings import load_settings
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint, SavedCursors, bury_the_dead
from ingest_project_tests.journeys.system import System, environment, readings
from ingest_project_tests.services.kafka import Server

pytestmark = pytest.mark.long

FILES, ROWS = 5, 3_000
PATIENCE_SECONDS = 30
WAY = f"{__name__}:LimitedSystem.one_batch"
# No process lives to see so many calls.
NEVER = KillPoint("nothing", "ingest_project.file_ingest.file_queue:FileQueue.record", 10**9)


class LimitedSystem(System):
    """The system in a process that may have no more than this."""

    def one_batch(self) -> None:
        """Do the first batch within the limits that the environment names, next to what is in use already."""
        (request,) = self.requests()
        # Without memory for another thread it may also wait for ever: the test ends it.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE_SECONDS)
        kind, _, more = os.environ["TEST_LIMIT"].partition("=")
        if kind == "files":
            descriptors = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors + int(more),) * 2)
        else:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(more),) * 2)
        self.execute("file_batch", request)


@pytest.fixture
def environ(kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path) -> dict[str, str]:
    """The settings of the system that is limited and of the one that goes on."""
    del instance
    return environment(kafka_server.bootstrap_servers, postgres_url, tmp_path) | {
        "INGEST_LAUNCH_GRACE_SECONDS": "0",
        "DAGSTER_POSTGRES_URL": os.environ["DAGSTER_POSTGRES_URL"],
    }


@pytest.mark.parametrize("limit", ["files=0", "files=4", "files=12", "memory=0", "memory=4000000", "memory=40000000"])
def test_a_worker_at_its_limits_blames_loses_and_doubles_no_file(
    limit: str, deadly_process: DeadlyProcess, environ: dict[str, str], instance: DagsterInstance, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    system = System(load_settings(environ, tmp_path).settings, instance, folder)
    system.send_files(*(system.write(f"{number}.csv", readings(ROWS, f"d{number}")) for number in range(FILES)))
    ref = serialize_value(instance.get_ref())
    deadly_process.drive(NEVER, folder, ref, environ | {"TEST_LIMIT": limit}, WAY)
    bury_the_dead(instance)
    assert not {"quarantined", "failed"} & set(system.states().values())

    system.cursors = SavedCursors(tmp_path)
    system.drive()
    assert set(system.states().values()) == {"ingested"}
    assert system.services.warehouse.totals().rows == FILES * ROWS
    system.close()
