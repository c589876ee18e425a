"""Supervise the stack of `ingest dev`: start its parts in order, restart parts that end, and finally stop them all.

A setting that names a real broker or database replaces the embedded one. The addresses of started services become
settings of this process, of its children (through their environment), and of other commands (through `services.json`).
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any

from ingest_project.core.errors import SettingsError
from ingest_project.core.local_files import keep_files_private
from ingest_project.core.settings import LoadedSettings, Settings
from ingest_project.devstack import (
    HOST,
    Child,
    Command,
    Restarts,
    ServiceFailedError,
    dagster_processes,
    embedded_kafka,
    free_port,
    listener_on,
    port_is_free,
    postgres,
    start,
)
from ingest_project.devstack.launcher import Launcher
from ingest_project.devstack.state_folder import (
    LOGS,
    StateFolderUnusableError,
    announce,
    announced,
    child_environment,
    exclusive,
    folder_failures,
    is_chosen,
    prepare,
    remove_socket_folder,
    with_addresses,
)
from ingest_project.platform.dagster.records import require_records

POLL_SECONDS = 0.5
# PostgreSQL's crash recovery writes two log segments of 16 MiB each.
SPACE_TO_START_BYTES = 32 * 1024**2
BROKER, DATABASE, DAGSTER = "broker", "database", "Dagster"


class StepState(StrEnum):
    """The reported state of a step."""

    STARTING = "starting"
    READY = "ready"
    EXTERNAL = "external"
    NOTE = "note"
    STOPPING = "stopping"
    STOPPED = "stopped"


Report = Callable[[str, StepState], None]


@dataclass
class Stack:
    """The running system.

    Args:
        loaded: settings, with the addresses of the started services.
        report: called with each step.
        monitor_port: port of the monitor; None without a monitor.
        home: Dagster's home; None without Dagster.
        children: processes in the order of their start.
        addresses: addresses of the started services, by setting.
        launcher: launcher of Dagster's processes; None without Dagster.
        restarts: counts the ends of the parts.
    """

    loaded: LoadedSettings
    report: Report
    monitor_port: int | None = None
    home: dagster_processes.DagsterHome | None = None
    children: list[Child] = field(default_factory=list)
    addresses: dict[str, Any] = field(default_factory=dict)
    launcher: Launcher | None = None
    restarts: Restarts = field(default_factory=Restarts)

    @property
    def settings(self) -> Settings:
        """Return the effective settings."""
        return self.loaded.settings

    @property
    def state_dir(self) -> Path:
        """Return the state folder."""
        return self.settings.state_dir.absolute()

    @property
    def log_folder(self) -> Path:
        """Return the folder of the parts' logs."""
        return self.state_dir / LOGS

    @property
    def webserver_url(self) -> str:
        """Return the address of the Dagster UI."""
        return self.settings.dagster.webserver_url

    @property
    def monitor_url(self) -> str:
        """Return the address of the monitor; empty without one."""
        return f"http://{HOST}:{self.monitor_port}" if self.monitor_port is not None else ""

    def start(self, command: Command) -> Child:
        """Start a part that is a Python module, as a fork of the launcher if possible."""
        return start(command, self.log_folder, self.launcher.fork if self.launcher else None)

    def require_running(self) -> None:
        """Restart parts that have ended, and return when everything runs.

        Raises:
            ServiceFailedError: a part ended too often.
        """
        for child in list(self.children):
            # Check again: the restart of one part may have replaced others.
            if child in self.children and not child.running:
                with folder_failures(self.state_dir):
                    _restart(self, child)

    def wait(self, seconds: float | None = None) -> None:
        """Restart parts that end, for this time in seconds, or until an error for None.

        Raises:
            ServiceFailedError: a part ended too often.
            KeyboardInterrupt: this process received a stop signal.
        """
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.require_running()
            time.sleep(min(POLL_SECONDS, left))


@contextmanager
def running_stack(
    loaded: LoadedSettings,
    report: Report,
    *,
    dagster: bool = True,
    monitor: bool = False,
    definitions_module: str = "ingest_project.definitions",
) -> Iterator[Stack]:
    """Run every service that the settings do not locate elsewhere until the `with` block ends.

    SIGTERM and SIGHUP raise KeyboardInterrupt, like Ctrl-C; call this from the main thread. The stack's `wait` and
    `require_running` restart parts that ended.

    Args:
        loaded: settings as loaded, including the state folder.
        report: called with each step.
        dagster: also start the code server, the daemon and the webserver.
        monitor: also serve the monitor, in the process of the webserver.
        definitions_module: module that the code server loads.

    Raises:
        StateFolderInUseError: another stack runs on the same state folder.
        StateFolderUnusableError: the state folder is a file, belongs to another user or cannot be written to.
        SettingsError: a configured port is in use.
        DagsterRecordsUnavailableError: the configured database for Dagster does not answer, or stopped.
        ServiceFailedError: a part did not start; the parts started before it are stopped.
    """
    keep_files_private()
    stack = Stack(loaded, report)
    state_dir = stack.state_dir
    with _stopped_by_signals(), failures_explained(stack), ExitStack() as on_exit:
        with folder_failures(state_dir):
            prepare(state_dir)
            on_exit.enter_context(exclusive(state_dir))
            port = choose_port(loaded, "The UI", "dagster.webserver_port", report) if dagster else None
            stack.monitor_port = choose_port(loaded, "The monitor", "monitor.port", report) if monitor else None
            if dagster:
                # The launcher imports while broker and database start.
                stack.launcher = on_exit.enter_context(closing(_launcher(stack)))
            on_exit.callback(_stop, stack)
            _start_services(stack)
            if port is not None and not is_chosen(loaded, "dagster.webserver_url"):
                stack.addresses["dagster.webserver_url"] = f"http://{HOST}:{port}"
            stack.loaded = with_addresses(loaded, stack.addresses)
            on_exit.enter_context(announced(state_dir, stack.addresses))
            if port is not None:
                stack.home = dagster_processes.prepare_home(state_dir, definitions_module, port)
                _start_dagster(stack, stack.home)
        yield stack


def _launcher(stack: Stack) -> Launcher:
    environ = child_environment(stack.loaded, os.environ)
    return Launcher(dagster_processes.SHARED_MODULES, environ, stack.log_folder / "launcher.log")


@contextmanager
def failures_explained(stack: Stack) -> Iterator[None]:
    """Raise the cause of a part's end if it is known: a full disk, or an unavailable database of Dagster."""
    try:
        yield
    except ServiceFailedError as failure:
        if full := _lack_of_space(stack):
            raise StateFolderUnusableError(stack.state_dir, f"{full}, and the {failure.name} needs more") from failure
        _require_records(stack)
        raise


def _lack_of_space(stack: Stack) -> str:
    """Return a phrase about a full disk and its free space; empty if there is enough space to start parts."""
    free = shutil.disk_usage(stack.state_dir).free
    return f"its disk is full ({free // 1024**2} MiB free)" if free < SPACE_TO_START_BYTES else ""


def _wait_for_space(stack: Stack, name: str) -> None:
    """Wait until the disk has the space that a part needs to start."""
    full = _lack_of_space(stack)
    if full:
        needed = f"once {SPACE_TO_START_BYTES // 1024**2} MiB are free"
        stack.report(f"{stack.state_dir}: {full}. The {name} ended and is started again {needed}", StepState.NOTE)
    while _lack_of_space(stack):
        time.sleep(POLL_SECONDS)


def _require_records(stack: Stack) -> None:
    if stack.home is not None and is_chosen(stack.loaded, "dagster.postgres_url"):
        require_records(stack.settings)


def choose_port(loaded: LoadedSettings, user: str, path: str, report: Report) -> int:
    """Return the configured port, or a free one if the port is 0 or is a default that is in use.

    Args:
        loaded: the settings.
        user: user of the port, for messages.
        path: path of the setting.
        report: called if another port is chosen.

    Raises:
        SettingsError: the port is in use, and a person chose it.
    """
    setting = next(setting for setting in loaded.each() if setting.path == path)
    port, variable = int(str(setting.value)), setting.env_names[0]
    if port == 0:
        return free_port()
    if port_is_free(port):
        return port
    holder = listener_on(port)
    taken = f"Port {port} is taken{f' (by {holder})' if holder else ''}."
    if is_chosen(loaded, path):
        raise SettingsError(f"{taken} Set {variable} to another port, or to 0 for a free one.")
    free = free_port()
    report(f"{taken} {user} takes port {free}; {variable} chooses another", StepState.NOTE)
    return free


def _stop(stack: Stack) -> None:
    if stack.children:
        stack.report("everything", StepState.STOPPING)
    _stop_all(stack.children)
    for name in (postgres.SOCKET_FOLDER, dagster_processes.SOCKET_FOLDER):
        remove_socket_folder(stack.state_dir, name)
    if stack.children:
        stack.report("everything", StepState.STOPPED)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Handle stop signals like Ctrl-C, so that every stop takes the same path."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous: Mapping[int, Any] = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start_services(stack: Stack) -> None:
    """Start broker and database concurrently, and record their addresses."""
    loaded, report = stack.loaded, stack.report
    broker_child = database = None
    if is_chosen(loaded, "kafka.bootstrap_servers"):
        report(BROKER, StepState.EXTERNAL)
    else:
        report(BROKER, StepState.STARTING)
        broker_child = _start_broker(stack)
        stack.children.append(broker_child)
    missing = [path for path in postgres.DATABASE_OF if not is_chosen(loaded, path)]
    if missing:
        report(DATABASE, StepState.STARTING)
        database = postgres.start_postgres(stack.state_dir, stack.log_folder)
        stack.children.append(database.child)
    else:
        report(DATABASE, StepState.EXTERNAL)
    if broker_child:
        _note_broker(stack, broker_child)
        report(BROKER, StepState.READY)
    if database:
        postgres.wait_for_postgres(database)
        stack.addresses |= {path: database.url(postgres.DATABASE_OF[path]) for path in missing}
        report(DATABASE, StepState.READY)


def _start_broker(stack: Stack, port: int = 0) -> Child:
    topics = stack.settings.topics.model_dump().values()
    return embedded_kafka.start_broker(stack.log_folder, os.environ, topics, port)


def _note_broker(stack: Stack, child: Child) -> None:
    stack.addresses["kafka.bootstrap_servers"] = embedded_kafka.wait_for_broker(child)
    # A new start of the broker has lost the earlier messages and begins with new offsets.
    stack.addresses["kafka.generation"] = str(uuid.uuid4())


def _environment(stack: Stack) -> dict[str, str]:
    own = {"DAGSTER_HOME": str(stack.home.folder)} if stack.home else {}
    if stack.monitor_url and not stack.settings.monitor.url:
        own["INGEST_MONITOR_URL"] = stack.monitor_url
    return child_environment(stack.loaded, os.environ) | own


def _start_dagster(stack: Stack, home: dagster_processes.DagsterHome) -> None:
    report = stack.report
    report(DAGSTER, StepState.STARTING)
    _require_records(stack)
    environ = _environment(stack)
    if dagster_processes.storage_is_outdated(home):
        report("Dagster's storage is migrated", StepState.NOTE)
        dagster_processes.migrate_storage(home, environ, stack.log_folder)
    code_server = stack.start(dagster_processes.code_server_command(home, environ))
    stack.children.append(code_server)
    webserver = stack.start(dagster_processes.webserver_command(home, environ, stack.monitor_port))
    stack.children.append(webserver)
    # A daemon that does not find the code server retries only after a minute.
    dagster_processes.wait_for_code_server(home, code_server)
    stack.children.append(stack.start(dagster_processes.daemon_command(home, environ)))
    dagster_processes.wait_until_ready(home, webserver, stack.children)
    report(DAGSTER, StepState.READY)


def _restart(stack: Stack, ended: Child) -> None:
    """Restart a part that has ended, after a growing pause; on a full disk, once there is space.

    Raises:
        ServiceFailedError: the part ended, or failed to start, too often.
    """
    failure = ended.failed(f"ended with exit code {ended.guard.returncode}")
    ended.stop()
    while True:
        _wait_for_space(stack, ended.name)
        pause = stack.restarts.pause_after_end(ended.name, time.monotonic())
        if pause is None:
            raise failure.repeated()
        stack.report(
            f"The {ended.name} ended and is started again in {pause:g} s. See {ended.log_path}", StepState.NOTE
        )
        time.sleep(pause)
        try:
            _start_again(stack, ended)
        except ServiceFailedError as again:
            failure = again
            continue
        stack.report(ended.name, StepState.READY)
        return


def _start_again(stack: Stack, ended: Child) -> None:
    if ended.name == embedded_kafka.NAME:
        _start_broker_again(stack, ended)
    elif ended.name == postgres.NAME:
        database = postgres.start_postgres(stack.state_dir, stack.log_folder)
        _replace(stack, ended, database.child, lambda: postgres.wait_for_postgres(database))
    elif ended.name == dagster_processes.CODE_SERVER and stack.home is not None:
        _start_code_server_again(stack, stack.home, ended)
    else:
        # If its port is in use, it ends soon, which counts as another end.
        _replace(stack, ended, stack.start(ended.command), lambda: None)


def _replace(stack: Stack, ended: Child, child: Child, wait: Callable[[], None]) -> None:
    """Replace a process that ended by a new one, once the new one is ready."""
    try:
        wait()
    except BaseException:
        child.stop()
        raise
    stack.children[stack.children.index(ended)] = child


def _start_broker_again(stack: Stack, ended: Child) -> None:
    """Restart the broker on its port, without messages, and restart all of its users.

    The users stop first: a reader that mistook the new log for the old one would read other messages at its offsets.
    """
    users = [child for child in stack.children if child.name not in (embedded_kafka.NAME, postgres.NAME)]
    _stop_all(users)
    stack.children = [child for child in stack.children if child not in users]
    # The broker already runs if only its users could not be started.
    if ended in stack.children:
        port = int(stack.addresses["kafka.bootstrap_servers"].rpartition(":")[2])
        child = _start_broker(stack, port)
        _replace(stack, ended, child, lambda: _note_broker(stack, child))
        stack.loaded = with_addresses(stack.loaded, stack.addresses)
        announce(stack.state_dir, stack.addresses)
        stack.report("The messages in the broker are lost; topics are read from their new beginning", StepState.NOTE)
    if stack.home is not None:
        _start_dagster(stack, stack.home)


def _start_code_server_again(stack: Stack, home: dagster_processes.DagsterHome, ended: Child) -> None:
    home.socket.unlink(missing_ok=True)
    code_server = stack.start(dagster_processes.code_server_command(home, _environment(stack)))
    _replace(stack, ended, code_server, lambda: dagster_processes.wait_for_code_server(home, code_server))
    # A daemon that has lost the code server retries only after a minute.
    for number, child in enumerate(stack.children):
        if child.name == dagster_processes.DAEMON:
            child.stop()
            stack.children[number] = stack.start(child.command)


def _stop_all(children: Sequence[Child]) -> None:
    """Stop these parts and all their descendants, in reverse order."""
    # The code server's users stop concurrently; it stops after them, and broker and database last.
    for child in itertools.takewhile(lambda child: child.name != dagster_processes.CODE_SERVER, reversed(children)):
        child.request_stop()
    for child in reversed(children):
        child.stop()
