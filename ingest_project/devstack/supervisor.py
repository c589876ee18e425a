"""Run the stack: take the state folder and the ports, start the processes, and end all of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, NamedTuple

from ingest_project.core.errors import SettingsError
from ingest_project.core.files import keep_files_private
from ingest_project.core.settings import LoadedSettings
from ingest_project.devstack import dagster_processes, postgres
from ingest_project.devstack.processes import free_port, listener_on, port_is_free
from ingest_project.devstack.runtime_settings import is_chosen, with_addresses
from ingest_project.devstack.state_folder import announced, exclusive, folder_failures, prepare, remove_socket_folder
from ingest_project.devstack.system import Report, Stack, StepState, start_services, start_users, stop_all


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
    by KeyboardInterrupt; call it from the main thread. Whoever waits by the stack's `wait` or calls `require_running`
    has parts that ended by themselves started again.

    Args:
        loaded: the settings as they were read; the state folder is among them.
        report: told about each step as it goes on.
        dagster: also start the code server, the daemon and the webserver.
        monitor: also start the monitor.
        definitions_module: what the code server loads.

    Raises:
        StateFolderInUseError: another stack runs on the same state folder.
        StateFolderUnusableError: that folder is a file, is another user's or cannot be written to.
        SettingsError: the port that was asked for is taken.
        ServiceFailedError: something did not start; what had been started is ended.
    """
    keep_files_private()
    stack = Stack(loaded, report)
    state_dir = stack.state_dir
    with _stopped_by_signals(), ExitStack() as on_exit:
        with folder_failures(state_dir):
            prepare(state_dir)
            on_exit.enter_context(exclusive(state_dir))
            port = stack.webserver_port = _port(loaded, WEBSERVER, report) if dagster else None
            stack.monitor_port = _port(loaded, MONITOR, report) if monitor else None
            on_exit.callback(_stop, stack)
            start_services(stack)
            if port is not None and not is_chosen(loaded, "dagster.webserver_url"):
                stack.addresses["dagster.webserver_url"] = f"http://127.0.0.1:{port}"
            stack.loaded = with_addresses(loaded, stack.addresses)
            on_exit.enter_context(announced(state_dir, stack.addresses))
            if port is not None:
                stack.home = dagster_processes.prepare_home(state_dir, definitions_module, port)
            start_users(stack)
        yield stack


def _stop(stack: Stack) -> None:
    if stack.children:
        stack.report("everything", StepState.STOPPING)
    stop_all(stack.children)
    for name in (postgres.SOCKET_FOLDER, dagster_processes.SOCKET_FOLDER):
        remove_socket_folder(stack.state_dir, name)
    if stack.children:
        stack.report("everything", StepState.STOPPED)


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
