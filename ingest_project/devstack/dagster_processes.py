"""Code server, daemon and webserver as processes of the stack, and GraphQL requests to the webserver.

The code server holds the definitions and starts the runs; the daemon and the webserver reach it through a socket that a
workspace file names. None of them needs the others to start, so all start at once and share the wait.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ingest_project.core.errors import PermanentError
from ingest_project.devstack.child import Child, Command, start
from ingest_project.devstack.state_folder import socket_folder

REQUEST_SECONDS = 10.0


def ask(port: int, query: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The data of the answer to a GraphQL query or mutation.

    Args:
        port: the webserver's, on the loopback interface.
        query: GraphQL.
        variables: of the query.

    Raises:
        OSError, http.client.HTTPException: the webserver does not answer.
        ValueError, KeyError, TypeError: what it answers is not JSON, or holds no data.
    """
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": query, "variables": dict(variables or {})}).encode(),
        {"Content-Type": "application/json"},
    )
    # A proxy from the environment must not be asked for an address of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=REQUEST_SECONDS) as response:
        data: dict[str, Any] = json.load(response)["data"]
    return data


LOCATION_NAME = "ingest_project"
CODE_SERVER, DAEMON = "code server", "daemon"
SOCKET_FOLDER = "run"
START_SECONDS = 120.0
POLL_SECONDS = 0.1
# Runs are asked to stop and write their last events before the code server goes.
CODE_SERVER_GRACE_SECONDS = 10.0

_READINESS = """{
  workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError {
    __typename ... on PythonError { message } } } } }
  instance { daemonHealth { daemonStatus(daemonType: "SENSOR") { healthy } } }
}"""


@dataclass(frozen=True)
class DagsterHome:
    """Where Dagster's processes find their configuration and each other.

    Args:
        folder: DAGSTER_HOME.
        socket: the code server's.
        definitions_module: what the code server loads.
        port: the webserver's, on the loopback interface.
    """

    folder: Path
    socket: Path
    definitions_module: str
    port: int

    @property
    def workspace(self) -> Path:
        """The file that tells daemon and webserver where the code server is."""
        return self.folder / "workspace.yaml"

    @property
    def version_file(self) -> Path:
        """Says which version of Dagster last brought the storage up to date."""
        return self.folder / "dagster.version"


def prepare_home(state_dir: Path, definitions_module: str, port: int) -> DagsterHome:
    """Write DAGSTER_HOME; what was written before is replaced."""
    folder = state_dir / "dagster_home"
    folder.mkdir(exist_ok=True)
    socket = socket_folder(state_dir, SOCKET_FOLDER) / "code.sock"
    socket.unlink(missing_ok=True)
    home = DagsterHome(folder, socket, definitions_module, port)
    shutil.copyfile(_configuration(), folder / "dagster.yaml")
    server = {"grpc_server": {"socket": str(socket), "location_name": LOCATION_NAME}}
    home.workspace.write_text(yaml.safe_dump({"load_from": [server]}), encoding="utf-8")
    return home


def storage_is_outdated(home: DagsterHome) -> bool:
    """Whether another version of Dagster wrote the storage. A new storage is made in its final form at once."""
    return home.version_file.exists() and home.version_file.read_text("ascii").strip() != version("dagster")


def migrate_storage(home: DagsterHome, environ: Mapping[str, str], log_folder: Path) -> None:
    """Bring Dagster's tables to the installed version's form.

    Raises:
        ServiceFailedError: it did not work.
    """
    migration = start(
        Command("dagster migration", [sys.executable, "-m", "dagster", "instance", "migrate"], environ), log_folder
    )
    try:
        if migration.guard.wait() != 0:
            raise migration.failed("could not bring Dagster's storage up to date")
    finally:
        migration.stop()
    home.version_file.write_text(version("dagster"), "ascii")


def start_code_server(home: DagsterHome, environ: Mapping[str, str], log_folder: Path) -> Child:
    """Start the process that loads the definitions and runs sensors and runs; does not wait."""
    arguments = [
        "ingest_project.platform.dagster.code_server",
        "--module-name",
        home.definitions_module,
        "--socket",
        str(home.socket),
    ]
    more = ["--location-name", LOCATION_NAME, "--log-format", "json"]
    command = Command(
        CODE_SERVER,
        [sys.executable, "-m", *arguments, *more],
        environ,
        grace_seconds=CODE_SERVER_GRACE_SECONDS,
        # Left alone, a code server waits for its runs to finish, however long they take.
        stop_descendants=True,
        # It would wait as long without a guard, and start further runs.
        orphan_signal=signal.SIGKILL,
    )
    return start(command, log_folder)


def start_daemon(home: DagsterHome, environ: Mapping[str, str], log_folder: Path) -> Child:
    """Start the process that ticks sensors and takes runs from the queue; does not wait."""
    arguments = ["ingest_project.operations.daemon", "run", "--workspace", str(home.workspace), "--log-format", "json"]
    return start(Command(DAEMON, [sys.executable, "-m", *arguments], environ), log_folder)


def start_webserver(home: DagsterHome, environ: Mapping[str, str], log_folder: Path) -> Child:
    """Start the UI; does not wait."""
    arguments = ["dagster_webserver", "--host", "127.0.0.1", "--port", str(home.port)]
    more = ["--workspace", str(home.workspace), "--log-format", "json"]
    return start(Command("webserver", [sys.executable, "-m", *arguments, *more], environ), log_folder)


def wait_for_code_server(home: DagsterHome, code_server: Child) -> None:
    """Return once the definitions are loaded: the socket appears after that.

    Raises:
        ServiceFailedError: it ended (the definitions do not load), or took longer than START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    while not home.socket.exists():
        code_server.require_running()
        if time.monotonic() > deadline:
            raise code_server.failed(f"did not load the definitions within {START_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)


def wait_until_ready(home: DagsterHome, webserver: Child, others: list[Child]) -> None:
    """Return once the UI answers, shows the definitions, and the sensors tick.

    Raises:
        ServiceFailedError: one of the processes ended, or it took longer than START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    while not _is_ready(home.port):
        for child in (*others, webserver):
            child.require_running()
        if time.monotonic() > deadline:
            raise webserver.failed(f"was not ready within {START_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    home.version_file.write_text(version("dagster"), "ascii")


def _is_ready(port: int) -> bool:
    try:
        answer = ask(port, _READINESS)
        entries = answer["workspaceOrError"]["locationEntries"]
        loaded = [entry["locationOrLoadError"] or {} for entry in entries]
        healthy = answer["instance"]["daemonHealth"]["daemonStatus"]["healthy"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return False  # not listening yet, or not yet able to answer all of it
    return bool(loaded and healthy and all(entry.get("__typename") == "RepositoryLocation" for entry in loaded))


def _configuration() -> Path:
    """The project's dagster.yaml: in an installed package beside the code, in a checkout at its root."""
    package = Path(str(files("ingest_project")))
    for place in (package / "dagster.yaml", package.parent / "dagster.yaml"):
        if place.exists():
            return place
    raise PermanentError(f"dagster.yaml is neither in {package} nor beside it. Install the package again.")
