"""Starts everything in order, keeps an eye on it, and ends it in reverse order."""

from __future__ import annotations

import itertools
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from ingest_project.cli.stack import broker, dagster_processes, postgres
from ingest_project.cli.stack.effective import child_environment, is_chosen, with_addresses
from ingest_project.cli.stack.monitor_process import HOST, start_monitor
from ingest_project.cli.stack.processes import free_port, listener_on, port_is_free
from ingest_project.cli.stack.state_folder import (
    LOGS,
    announced,
    exclusive,
    folder_failures,
    prepare,
    remove_socket_folder,
)
from ingest_project.errors import SettingsError
from ingest_project.private_files import keep_files_private

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from ingest_project.cli.stack.child import Child
    from ingest_project.settings import LoadedSettings, Settings

POLL_SECONDS = 0.5
BROKER, DATABASE, DAGSTER = "broker", "database", "Dagster"


class Listener(NamedTuple):
    """Something that people reach by a port.

    Args:
        name: for people.
        setting: its port's place in the tree.
        variable: the environment variable that sets it.
    """

    name: str
    setting: str
    variable: str


WEBSERVER = Listener("The UI", "dagster.webserver_port", "INGEST_WEBSERVER_PORT")
MONITOR = Listener("The monitor", "monitor.port", "INGEST_MONITOR_PORT")


class StepState(StrEnum):
    """What is told about a step."""

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
        loaded: the settings with the addresses of what was started in force.
        webserver_port: of the UI, on the loopback interface; None without one.
        monitor_port: of the monitor, likewise.
        children: what was started, in that order.
    """

    loaded: LoadedSettings
    webserver_port: int | None = None
    monitor_port: int | None = None
    children: list[Child] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.loaded.settings

    @property
    def webserver_url(self) -> str:
        """Where the Dagster UI is."""
        return self.settings.dagster.webserver_url

    @property
    def monitor_url(self) -> str:
        """Where the monitor is; empty without one."""
        return f"http://{HOST}:{self.monitor_port}" if self.monitor_port is not None else ""

    def require_running(self) -> None:
        """Raise ServiceFailed when one of the processes has ended."""
        for child in self.children:
            child.require_running()

    def wait(self, seconds: float | None = None) -> None:
        """Return after that time; without one, only an error ends it.

        Raises:
            ServiceFailed: one of the processes ended.
            KeyboardInterrupt: this process was told to stop.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            self.require_running()
            time.sleep(POLL_SECONDS if deadline is None else max(0.0, min(POLL_SECONDS, deadline - time.monotonic())))


@contextmanager
def running_stack(
    loaded: LoadedSettings,
    report: Report,
    *,
    dagster: bool = True,
    monitor: bool = False,
    definitions_module: str = "ingest_project.definitions",
) -> Iterator[Stack]:
    """Everything that the settings do not place elsewhere, running for as long as the `with` lasts.

    A setting that names a real broker or database replaces the embedded one. SIGTERM and SIGHUP end it as Ctrl-C does,
    by KeyboardInterrupt; call it from the main thread.

    Args:
        loaded: the settings as they were read; the state folder is among them.
        report: told about each step as it goes on.
        dagster: also start the code server, the daemon and the webserver.
        monitor: also start the monitor.
        definitions_module: what the code server loads.

    Raises:
        StateFolderInUse: another stack runs on the same state folder.
        StateFolderUnusable: that folder is a file, is another user's or cannot be written to.
        SettingsError: the port that was asked for is taken.
        ServiceFailed: something did not start; what had been started is ended.
    """
    keep_files_private()
    state_dir = loaded.settings.state_dir.absolute()
    log_folder = state_dir / LOGS
    stack = Stack(loaded)
    with _stopped_by_signals(), ExitStack() as on_exit:
        with folder_failures(state_dir):
            prepare(state_dir)
            on_exit.enter_context(exclusive(state_dir))
            port = stack.webserver_port = _port(loaded, WEBSERVER, report) if dagster else None
            stack.monitor_port = _port(loaded, MONITOR, report) if monitor else None
            on_exit.callback(_stop, stack, report)
            addresses = _start_services(stack, state_dir, log_folder, report)
            if port is not None and not is_chosen(loaded, "dagster.webserver_url"):
                addresses["dagster.webserver_url"] = f"http://127.0.0.1:{port}"
            stack.loaded = with_addresses(loaded, addresses)
            on_exit.enter_context(announced(state_dir, addresses))
            if port is not None:
                _start_dagster(
                    stack, dagster_processes.prepare_home(state_dir, definitions_module, port), log_folder, report
                )
            if stack.monitor_port is not None:
                environ = child_environment(stack.loaded, os.environ)
                stack.children.append(start_monitor(stack.monitor_port, environ, log_folder))
        yield stack


def _start_services(stack: Stack, state_dir: Path, log_folder: Path, report: Report) -> dict[str, Any]:
    """Start broker and database beside each other; the addresses of what was started."""
    loaded = stack.loaded
    addresses: dict[str, Any] = {}
    broker_child = database = None
    if is_chosen(loaded, "kafka.bootstrap_servers"):
        report(BROKER, StepState.EXTERNAL)
    else:
        report(BROKER, StepState.STARTING)
        broker_child = broker.start_broker(log_folder, os.environ, loaded.settings.topics)
        stack.children.append(broker_child)
    missing = [path for path in postgres.DATABASE_OF if not is_chosen(loaded, path)]
    if missing:
        report(DATABASE, StepState.STARTING)
        database = postgres.start_postgres(state_dir, log_folder)
        stack.children.append(database.child)
    else:
        report(DATABASE, StepState.EXTERNAL)
    if broker_child:
        addresses["kafka.bootstrap_servers"] = broker.wait_for_broker(broker_child)
        # What was in the broker before is gone, and offsets begin again.
        addresses["kafka.generation"] = str(uuid.uuid4())
        report(BROKER, StepState.READY)
    if database:
        postgres.wait_for_postgres(database)
        addresses |= {path: database.url(postgres.DATABASE_OF[path]) for path in missing}
        report(DATABASE, StepState.READY)
    return addresses


def _start_dagster(stack: Stack, home: dagster_processes.DagsterHome, log_folder: Path, report: Report) -> None:
    report(DAGSTER, StepState.STARTING)
    environ = child_environment(stack.loaded, os.environ) | {"DAGSTER_HOME": str(home.folder)}
    if dagster_processes.storage_is_outdated(home):
        report("Dagster's storage is brought up to date", StepState.NOTE)
        dagster_processes.migrate_storage(home, environ, log_folder)
    code_server = dagster_processes.start_code_server(home, environ, log_folder)
    stack.children.append(code_server)
    webserver = dagster_processes.start_webserver(home, environ, log_folder)
    stack.children.append(webserver)
    # A daemon that does not find the code server looks again only after a minute.
    dagster_processes.wait_for_code_server(home, code_server)
    stack.children.append(dagster_processes.start_daemon(home, environ, log_folder))
    dagster_processes.wait_until_ready(home, webserver, stack.children)
    report(DAGSTER, StepState.READY)


def _stop(stack: Stack, report: Report) -> None:
    if stack.children:
        report("everything", StepState.STOPPING)
    # Who uses the code server ends side by side; it goes after them, and broker and database last.
    for child in itertools.takewhile(
        lambda child: child.name != dagster_processes.CODE_SERVER, reversed(stack.children)
    ):
        child.ask_to_stop()
    for child in reversed(stack.children):
        child.stop()
    for name in (postgres.SOCKET_FOLDER, dagster_processes.SOCKET_FOLDER):
        remove_socket_folder(stack.settings.state_dir.absolute(), name)
    if stack.children:
        report("everything", StepState.STOPPED)


def _port(loaded: LoadedSettings, listener: Listener, report: Report) -> int:
    """The port that was asked for, or a free one when nobody asked."""
    section, _, name = listener.setting.partition(".")
    port: int = getattr(getattr(loaded.settings, section), name)
    if port == 0:
        return free_port()
    if port_is_free(port):
        return port
    holder = listener_on(port)
    taken = f"Port {port} is taken{f' (by {holder})' if holder else ''}."
    if is_chosen(loaded, listener.setting):
        raise SettingsError(f"{taken} Set {listener.variable} to another port, or to 0 for a free one.")
    chosen = free_port()
    report(f"{taken} {listener.name} takes port {chosen}; {listener.variable} chooses another", StepState.NOTE)
    return chosen


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Make a polite request to end look like Ctrl-C, so that there is one way out."""

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
