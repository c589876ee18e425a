"""The parts of the stack as one system: started in order, and started again when one of them ends by itself."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ingest_project.core.settings import LoadedSettings, Settings
from ingest_project.devstack import broker, dagster_processes, postgres
from ingest_project.devstack.child import Child, Restarts, ServiceFailedError, start
from ingest_project.devstack.processes import HOST, start_monitor
from ingest_project.devstack.runtime_settings import child_environment, is_chosen, with_addresses
from ingest_project.devstack.state_folder import LOGS, announce, folder_failures

POLL_SECONDS = 0.5
BROKER, DATABASE, DAGSTER = "broker", "database", "Dagster"


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
        report: told about each step as it goes on.
        webserver_port: of the UI, on the loopback interface; None without one.
        monitor_port: of the monitor, likewise.
        home: of Dagster; None where it is not part of the stack.
        children: what was started, in that order.
        addresses: settings that were replaced by what was started.
    """

    loaded: LoadedSettings
    report: Report
    webserver_port: int | None = None
    monitor_port: int | None = None
    home: dagster_processes.DagsterHome | None = None
    children: list[Child] = field(default_factory=list)
    addresses: dict[str, Any] = field(default_factory=dict)
    restarts: Restarts = field(default_factory=Restarts)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.loaded.settings

    @property
    def state_dir(self) -> Path:
        """The state folder."""
        return self.settings.state_dir.absolute()

    @property
    def log_folder(self) -> Path:
        """Where each part has its log."""
        return self.state_dir / LOGS

    @property
    def webserver_url(self) -> str:
        """Where the Dagster UI is."""
        return self.settings.dagster.webserver_url

    @property
    def monitor_url(self) -> str:
        """Where the monitor is; empty without one."""
        return f"http://{HOST}:{self.monitor_port}" if self.monitor_port is not None else ""

    def require_running(self) -> None:
        """Start again what has ended; returns when everything runs.

        Raises:
            ServiceFailedError: a part ended again and again.
        """
        for child in list(self.children):
            # To mend one part may have replaced others.
            if child in self.children and not child.running:
                with folder_failures(self.state_dir):
                    _mend(self, child)

    def wait(self, seconds: float | None = None) -> None:
        """Return after that time; without one, only an error ends it.

        Raises:
            ServiceFailedError: a part ended again and again.
            KeyboardInterrupt: this process was told to stop.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            self.require_running()
            time.sleep(POLL_SECONDS if deadline is None else max(0.0, min(POLL_SECONDS, deadline - time.monotonic())))


def start_services(stack: Stack) -> None:
    """Start broker and database beside each other, and take down their addresses."""
    loaded, report = stack.loaded, stack.report
    broker_child = database = None
    if is_chosen(loaded, "kafka.bootstrap_servers"):
        report(BROKER, StepState.EXTERNAL)
    else:
        report(BROKER, StepState.STARTING)
        broker_child = broker.start_broker(stack.log_folder, os.environ, loaded.settings.topics)
        stack.children.append(broker_child)
    missing = [path for path in postgres.DATABASE_OF if not is_chosen(loaded, path)]
    if missing:
        report(DATABASE, StepState.STARTING)
        database = postgres.start_postgres(stack.state_dir, stack.log_folder)
        stack.children.append(database.child)
    else:
        report(DATABASE, StepState.EXTERNAL)
    if broker_child:
        _take_down_broker(stack, broker_child)
        report(BROKER, StepState.READY)
    if database:
        postgres.wait_for_postgres(database)
        stack.addresses |= {path: database.url(postgres.DATABASE_OF[path]) for path in missing}
        report(DATABASE, StepState.READY)


def _take_down_broker(stack: Stack, child: Child) -> None:
    stack.addresses["kafka.bootstrap_servers"] = broker.wait_for_broker(child)
    # What was in the broker before is gone, and offsets begin again.
    stack.addresses["kafka.generation"] = str(uuid.uuid4())


def start_users(stack: Stack) -> None:
    """Start what uses broker and database: Dagster and the monitor, as far as they belong to the stack."""
    if stack.home is not None:
        _start_dagster(stack, stack.home)
    if stack.monitor_port is not None:
        stack.children.append(start_monitor(stack.monitor_port, _environment(stack), stack.log_folder))


def _environment(stack: Stack) -> dict[str, str]:
    home = {"DAGSTER_HOME": str(stack.home.folder)} if stack.home else {}
    return child_environment(stack.loaded, os.environ) | home


def _start_dagster(stack: Stack, home: dagster_processes.DagsterHome) -> None:
    report, log_folder = stack.report, stack.log_folder
    report(DAGSTER, StepState.STARTING)
    environ = _environment(stack)
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


def _mend(stack: Stack, ended: Child) -> None:
    """Start a part again that has ended by itself, with a pause that grows.

    Raises:
        ServiceFailedError: it ended too often, or could not be started as often.
    """
    failure = ended.failed(f"ended with exit code {ended.guard.returncode}")
    ended.stop()
    while True:
        pause = stack.restarts.pause_after_end(ended.name, time.monotonic())
        if pause is None:
            raise failure.repeated(stack.restarts.ends(ended.name))
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
    if ended.name == broker.NAME:
        _start_broker_again(stack, ended)
    elif ended.name == postgres.NAME:
        database = postgres.start_postgres(stack.state_dir, stack.log_folder)
        _replace(stack, ended, database.child, lambda: postgres.wait_for_postgres(database))
    elif ended.name == dagster_processes.CODE_SERVER and stack.home is not None:
        _start_code_server_again(stack, stack.home, ended)
    else:
        # One that finds its port taken ends soon, which counts as one more end.
        _replace(stack, ended, start(ended.command, stack.log_folder), lambda: None)


def _replace(stack: Stack, ended: Child, child: Child, wait: Callable[[], None]) -> None:
    """Put a new process in the place of one that ended, once it is ready."""
    try:
        wait()
    except BaseException:
        child.stop()
        raise
    stack.children[stack.children.index(ended)] = child


def _start_broker_again(stack: Stack, ended: Child) -> None:
    """Start the broker on the port it had, empty, and again whoever read from the one before.

    They stop first: to a reader that took the new log for the old one, offsets would mean other messages.
    """
    users = [child for child in stack.children if child.name not in (broker.NAME, postgres.NAME)]
    stop_all(users)
    stack.children = [child for child in stack.children if child not in users]
    # It runs already where it was its users that could not be started.
    if ended in stack.children:
        port = int(stack.addresses["kafka.bootstrap_servers"].rpartition(":")[2])
        child = broker.start_broker(stack.log_folder, os.environ, stack.settings.topics, port)
        _replace(stack, ended, child, lambda: _take_down_broker(stack, child))
        stack.loaded = with_addresses(stack.loaded, stack.addresses)
        announce(stack.state_dir, stack.addresses)
        stack.report("What was in the broker is lost; topics are read from their new beginning", StepState.NOTE)
    start_users(stack)


def _start_code_server_again(stack: Stack, home: dagster_processes.DagsterHome, ended: Child) -> None:
    home.socket.unlink(missing_ok=True)
    code_server = dagster_processes.start_code_server(home, _environment(stack), stack.log_folder)
    _replace(stack, ended, code_server, lambda: dagster_processes.wait_for_code_server(home, code_server))
    # A daemon that has lost the code server looks for it only after a minute.
    for number, child in enumerate(stack.children):
        if child.name == dagster_processes.DAEMON:
            child.stop()
            stack.children[number] = start(child.command, stack.log_folder)


def stop_all(children: Sequence[Child]) -> None:
    """End these parts and everything they started, in reverse order."""
    # Who uses the code server ends side by side; it goes after them, and broker and database last.
    for child in itertools.takewhile(lambda child: child.name != dagster_processes.CODE_SERVER, reversed(children)):
        child.ask_to_stop()
    for child in reversed(children):
        child.stop()
