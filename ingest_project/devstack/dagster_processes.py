"""Run Dagster's code server, daemon and webserver as parts of the stack, and send GraphQL requests to the webserver.

    python -m ingest_project.devstack.dagster_processes MONITOR_PORT --host 127.0.0.1 --port 3000 …

is the webserver with the monitor in the same process. Deployed, each has its own.

The code server loads the definitions and starts the runs; the daemon and the webserver reach it through a socket that a
workspace file names. All three start concurrently, because none needs the others for its start.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import requests
import yaml

from ingest_project.core.errors import PermanentError
from ingest_project.core.logging import configure_logging, log_ignored
from ingest_project.core.settings import load_settings
from ingest_project.devstack import HOST, Child, Command, python_module, start
from ingest_project.devstack.state_folder import socket_folder
from ingest_project.platform.dagster.code_server import HEAVY_MODULES

LOCATION_NAME = "ingest_project"
CODE_SERVER, DAEMON = "code server", "daemon"
SOCKET_FOLDER = "run"
START_SECONDS = 120.0
REQUEST_SECONDS = 10.0
POLL_SECONDS = 0.2
# Time in which runs that got the stop signal write their last events, before the code server ends.
CODE_SERVER_GRACE_SECONDS = 10.0
# Modules for the launcher: the imports of run workers, and the slow ones of code server, daemon and webserver.
SHARED_MODULES = (
    *HEAVY_MODULES,
    "dagster._cli",
    "dagster._grpc.server_watcher",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.websockets.auto",
)
# Errors of `query_webserver` while the webserver does not listen yet, or cannot answer completely.
REQUEST_ERRORS = (OSError, ValueError, KeyError, TypeError)

_READINESS = """{
  workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError {
    __typename ... on PythonError { message } } } } }
  instance { daemonHealth { daemonStatus(daemonType: "SENSOR") { healthy } } }
}"""


@dataclass(frozen=True)
class DagsterHome:
    """DAGSTER_HOME and the addresses under which Dagster's processes find each other.

    Args:
        folder: DAGSTER_HOME.
        socket: socket of the code server.
        definitions_module: module that the code server loads.
        port: port of the webserver on the loopback interface.
    """

    folder: Path
    socket: Path
    definitions_module: str
    port: int

    @property
    def workspace(self) -> Path:
        """Return the file that tells daemon and webserver where the code server is."""
        return self.folder / "workspace.yaml"

    @property
    def version_file(self) -> Path:
        """Return the file with the version of Dagster that last migrated the storage."""
        return self.folder / "dagster.version"


def prepare_home(state_dir: Path, definitions_module: str, port: int) -> DagsterHome:
    """Write DAGSTER_HOME; replace the files of an earlier start."""
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
    """Return True if another version of Dagster wrote the storage. A new storage needs no migration."""
    return home.version_file.exists() and home.version_file.read_text("ascii").strip() != version("dagster")


def migrate_storage(home: DagsterHome, environ: Mapping[str, str], log_folder: Path) -> None:
    """Migrate Dagster's tables to the installed version.

    Raises:
        ServiceFailedError: the migration failed.
    """
    migration = start(python_module("dagster migration", ["dagster", "instance", "migrate"], environ), log_folder)
    migration.require_success("could not migrate Dagster's storage")
    home.version_file.write_text(version("dagster"), "ascii")


def code_server_command(home: DagsterHome, environ: Mapping[str, str]) -> Command:
    """Return the command of the process that loads the definitions, evaluates sensors and starts runs."""
    arguments = ["--module-name", home.definitions_module, "--socket", str(home.socket)]
    module = "ingest_project.platform.dagster.code_server"
    return replace(
        _server(CODE_SERVER, module, [*arguments, "--location-name", LOCATION_NAME], environ),
        grace_seconds=CODE_SERVER_GRACE_SECONDS,
        # By itself, a code server waits for its runs without a limit.
        stop_descendants=True,
        # If its guard was killed, it would also wait without a limit, and start further runs.
        orphan_signal=signal.SIGKILL,
    )


def daemon_command(home: DagsterHome, environ: Mapping[str, str]) -> Command:
    """Return the command of the process that ticks sensors and dequeues runs."""
    arguments = ["run", "--workspace", str(home.workspace)]
    return _server(DAEMON, "ingest_project.operations.daemon", arguments, environ)


def webserver_command(home: DagsterHome, environ: Mapping[str, str], monitor_port: int | None) -> Command:
    """Return the command of the UI, and of the monitor where that has a port."""
    arguments = ["--host", HOST, "--port", str(home.port), "--workspace", str(home.workspace)]
    alone = "ingest_project.platform.dagster.webserver"
    module, own = (alone, []) if monitor_port is None else (__name__, [str(monitor_port)])
    return _server("webserver", module, [*own, *arguments], environ)


def wait_for_code_server(home: DagsterHome, code_server: Child) -> None:
    """Wait until the definitions are loaded; the socket appears after that.

    Raises:
        ServiceFailedError: the server ended (the definitions do not load), or took longer than START_SECONDS.
    """
    code_server.wait_until(home.socket.exists, START_SECONDS, "did not load the definitions")


def wait_until_ready(home: DagsterHome, webserver: Child, others: Sequence[Child]) -> None:
    """Wait until the UI answers and shows the definitions, and the sensors tick.

    Raises:
        ServiceFailedError: one of the processes ended, or this took longer than START_SECONDS.
    """

    def ready() -> bool:
        for child in others:
            child.require_running()
        return _is_ready(home.port)

    webserver.wait_until(ready, START_SECONDS, "was not ready", POLL_SECONDS)
    home.version_file.write_text(version("dagster"), "ascii")


def query_webserver(port: int, query: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Send a GraphQL query or mutation to the webserver and return the data of its answer.

    Args:
        port: port of the webserver on the loopback interface.
        query: GraphQL query or mutation.
        variables: variables of the query.

    Raises:
        OSError: the webserver does not answer, or refuses.
        ValueError, KeyError, TypeError: the answer is not JSON, or has no data.
    """
    with requests.Session() as session:
        # A proxy from the environment cannot reach an address of this machine.
        session.trust_env = False
        content = {"query": query, "variables": dict(variables or {})}
        answer = session.post(f"http://{HOST}:{port}/graphql", json=content, timeout=REQUEST_SECONDS)
    answer.raise_for_status()
    data: dict[str, Any] = answer.json()["data"]
    return data


def _server(name: str, module: str, arguments: Sequence[str], environ: Mapping[str, str]) -> Command:
    return python_module(name, [module, *arguments, "--log-format", "json"], environ)


def _is_ready(port: int) -> bool:
    try:
        answer = query_webserver(port, _READINESS)
        entries = answer["workspaceOrError"]["locationEntries"]
        loaded = [entry["locationOrLoadError"] or {} for entry in entries]
        healthy = answer["instance"]["daemonHealth"]["daemonStatus"]["healthy"]
    except REQUEST_ERRORS:
        return False
    return bool(loaded and healthy and all(entry.get("__typename") == "RepositoryLocation" for entry in loaded))


def _configuration() -> Path:
    """Return the project's dagster.yaml: next to the code in an installed package, at the root of a checkout."""
    package = Path(str(files("ingest_project")))
    for path in (package / "dagster.yaml", package.parent / "dagster.yaml"):
        if path.exists():
            return path
    raise PermanentError(f"dagster.yaml is neither in {package} nor next to it. Install the package again.")


def main(monitor_port: str, *arguments: str) -> Any:  # noqa: ANN401 - never returns: it ends the process
    """Serve the monitor and Dagster's UI until stopped, in one process: what both import is in memory once."""
    from ingest_project.operations.dashboard import serving  # imports Dagster
    from ingest_project.platform.dagster import webserver  # likewise

    loaded = load_settings()
    configure_logging(loaded.settings.logging)
    log_ignored(loaded.ignored)
    with serving(loaded.settings, int(monitor_port)):
        return webserver.main([*arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
