"""Tie the parent process of the run workers to the code server, so that no worker survives it.

The process that run workers are forked from imports this module first. A run worker must not continue once nobody can
see or stop it. The kernel ensures that, in whatever order processes are killed: this process ends with the code server,
and each worker with this process. SIGTERM ends the workers alone; this process runs as long as the code server does.
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
    # Also called in forks of a worker. A thread may have forked them, and they would be killed when it ends.
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
