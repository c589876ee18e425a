"""Imported first by the process that run workers are forks of: nothing survives the code server.

A run worker must not go on when nobody can see or stop it. The kernel sees to that, whoever was killed and in whatever
order: this process ends with the code server, and each worker with this process. A polite request to stop is for the
workers alone; this process stays for as long as the code server does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
_own_pid = os.getpid()


def end_with_parent() -> None:
    """Have the kernel kill this process as soon as the one that started it has ended (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)


def _in_a_worker() -> None:
    # Also called in what a worker forks: that may come from a thread, with whose end it would be killed.
    if os.getppid() == _own_pid:
        end_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getppid() != _own_pid:
            os._exit(1)


def prepare() -> None:
    """Tie this process to the code server, and its forks to it."""
    end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.register_at_fork(after_in_child=_in_a_worker)


# Python starts that process with this program, and another process that imports the module is not changed.
if "from multiprocessing.forkserver import main" in sys.orig_argv[-1]:
    prepare()
