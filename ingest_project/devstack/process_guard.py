"""Run one command so that it and all its descendants end with the process that requested it.

The guard runs as a script, with only the standard library so that it starts in milliseconds, or as a fork of the
launcher (`launcher`). Its standard input is a pipe from the requesting process: when that process writes to the pipe,
or is killed, which closes the pipe, the command gets the stop signal, a grace period, and SIGKILL. On Linux the guard
adopts orphans, so that it also ends run workers, which outlive the server that started them.

    process_guard.py '{"arguments": ["…"], "stop_signal": 15, "grace_seconds": 10, "abandoned_grace_seconds": 3,
                       "orphan_signal": null, "stop_descendants": false, "run_as": null}'
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Any

ON_LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_SET_CHILD_SUBREAPER, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 28, 36, 47, 2
# Keep capabilities across the change of user, also for programs that check access before they read a file.
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
ORPHAN_GRACE_SECONDS = 2.0
POLL_SECONDS = 0.05


def main() -> int:
    """Run the command until it ends or the pipe closes; return its exit code, 128 + signal if a signal ended it."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    command = fork_command(spec)
    if command == 0:
        _execute(spec["arguments"])
    return watch(command, spec)


def fork_command(spec: dict[str, Any]) -> int:
    """Fork this process, which becomes the guard; return the new process's id, and 0 in the new process.

    The new process has dropped its privileges, has no input, and gets a signal from the kernel if this one dies.
    """
    os.umask(0o077)
    if ON_LINUX:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
    guard = os.getpid()
    if command := os.fork():
        return command
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if spec["run_as"]:
        drop_privileges(spec["run_as"])
    if ON_LINUX:
        _prctl(PR_SET_PDEATHSIG, spec["orphan_signal"] or spec["stop_signal"])
        if os.getppid() != guard:
            os._exit(1)
    return 0


def _execute(arguments: list[str]) -> None:
    """Replace this process by the command."""
    # Python ignores these signals, and the program would inherit that.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(arguments[0], arguments)  # noqa: S606 - the command comes from our own stack
    except OSError as error:
        sys.stderr.write(f"{arguments[0]}: {error.strerror}\n")
        sys.stderr.flush()
    os._exit(127)


def watch(pid: int, spec: dict[str, Any]) -> int:
    """Wait until the command has ended or must end; then end its remaining descendants, and return its exit code."""
    wake = _wake_on(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    command = _Command(pid)
    reason = None
    while not command.has_ended() and reason is None:
        reason = _wait_for_reason_to_stop(wake)
        _collect_orphans(pid)
    _end_command(command, spec, spec["abandoned_grace_seconds" if reason == "abandoned" else "grace_seconds"])
    _end_orphans()
    return 128 - command.code if command.code < 0 else command.code


class _Command:
    """A child process; `code` is its exit code once it has ended, negative if a signal ended it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code = 0
        self._ended = False

    def has_ended(self, options: int = os.WNOHANG) -> bool:
        if not self._ended:
            ended, status = os.waitpid(self.pid, options)
            if ended:
                self._ended, self.code = True, os.waitstatus_to_exitcode(status)
        return self._ended

    def ends_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True


def _wake_on(*signals: int) -> int:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    signal.set_wakeup_fd(writing)
    for number in signals:
        signal.signal(number, lambda _number, _frame: None)
    return reading


def _wait_for_reason_to_stop(wake: int) -> str | None:
    """Sleep until an event; return "stop" or "abandoned" if the command must end."""
    readable, _, _ = select.select([0, wake], [], [])
    if 0 in readable:
        return "stop" if os.read(0, 1024) else "abandoned"
    return "stop" if any(number != signal.SIGCHLD for number in os.read(wake, 1024)) else None


def drop_privileges(user: dict[str, Any]) -> None:
    """Drop root privileges: set uid and gid, and keep the right to traverse folders if `reach_all_folders`."""
    keep = user["reach_all_folders"] and ON_LINUX
    if keep:
        _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setgid(user["gid"])
    os.setuid(user["uid"])
    if keep:
        _keep_folder_access()


def _keep_folder_access() -> None:
    """Keep only root's right to traverse folders (such as a project below /root)."""
    # The narrower capability is enough, but containers often have only the wider one.
    capability = CAP_DAC_READ_SEARCH if _has_capability(CAP_DAC_READ_SEARCH) else CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    bits = 1 << capability
    data = (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)
    ctypes.CDLL(None).capset(header, data)
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def _has_capability(capability: int) -> bool:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - no pathlib: quick start
        permitted = next((int(line.split()[1], 16) for line in file if line.startswith("CapPrm:")), 0)
    return bool(permitted >> capability & 1)


def _end_command(command: _Command, spec: dict[str, Any], grace_seconds: float) -> None:
    if not command.has_ended():
        for pid in _descendants(command.pid) if spec["stop_descendants"] else []:
            _signal(pid, spec["stop_signal"])
        _signal(command.pid, spec["stop_signal"])
        if not command.ends_within(grace_seconds):
            _signal(command.pid, signal.SIGKILL)
            command.has_ended(0)


def _collect_orphans(command_pid: int) -> None:
    """Reap adopted processes that have ended; `_Command` reaps the command itself."""
    while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if ended.si_pid == command_pid:
            return
        os.waitpid(ended.si_pid, 0)


def _end_orphans() -> None:
    """Stop the command's remaining descendants, which have become children of this process."""
    started = time.monotonic()
    while orphans := _children():
        overdue = time.monotonic() - started > ORPHAN_GRACE_SECONDS
        for pid in orphans:
            _signal(pid, signal.SIGKILL if overdue else signal.SIGTERM)
        # An orphan may leave orphans itself: repeat until none is left.
        deadline = time.monotonic() + (POLL_SECONDS if overdue else ORPHAN_GRACE_SECONDS)
        while time.monotonic() < deadline and set(orphans) & set(_children()):
            time.sleep(POLL_SECONDS)


def _children() -> list[int]:
    """Return the child processes of this one; reap those that have ended."""
    if not ON_LINUX:
        return []
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            return []
    own = os.getpid()
    return [pid for pid, parent in _parents().items() if parent == own]


def _descendants(ancestor: int) -> list[int]:
    parents = _parents() if ON_LINUX else {}
    found = [ancestor]
    for pid in found:  # the list grows during the loop: generation after generation
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _parents() -> dict[int, int | None]:
    names = os.listdir("/proc")  # noqa: PTH208 - no pathlib: quick start
    return {int(name): _parent(name) for name in names if name.isdigit()}


def _parent(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - no pathlib: quick start
            # The process name in parentheses may contain spaces and parentheses.
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _prctl(option: int, *arguments: int) -> None:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    ctypes.CDLL(None).prctl(option, *values)


if __name__ == "__main__":
    sys.exit(main())
