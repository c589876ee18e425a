"""Run a script of ours over a stranger's file in a process that may die without harm.

The process gets limits of memory, CPU time and output before the script begins (start.py), an environment without
secrets, and a wall-clock time after which it is killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from ingest_project.platform.sandbox import start

# What the process needs of our environment: nothing secret goes near a stranger's file.
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TZ", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")
START_UP_SECONDS = 20.0
# SIGKILL and SIGXCPU, by which the kernel ends a process over its CPU time.
KILLED = frozenset({-9, -24})


@dataclass(frozen=True)
class ProcessLimits:
    """What one process may take.

    Args:
        memory_bytes: of address space.
        cpu_seconds: of CPU time; twice as much by the clock.
        output_bytes: of each file that it writes.
    """

    memory_bytes: int
    cpu_seconds: int
    output_bytes: int


def run_confined(
    script: str,
    arguments: Sequence[str],
    limits: ProcessLimits,
    *,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
) -> int:
    """Run a script and wait for it.

    Args:
        script: path of a Python file.
        arguments: its command line.
        limits: in force before its first line.
        stdin: an open file that it reads.
        stdout: an open file that it writes.

    Returns:
        its exit code: `start.OUT_OF_MEMORY` where the limit stopped it, negative when a signal ended it, see `KILLED`.

    Raises:
        TimeoutError: it was killed because it took too long by the clock.
    """
    given = [str(limits.memory_bytes), str(limits.cpu_seconds), str(limits.output_bytes)]
    command = [sys.executable, "-P", start.__file__, *given, script, *arguments]
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    # One thread: every further one reserves address space, which is limited.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    with subprocess.Popen(  # noqa: S603 - our own script; the stranger's file is only an argument
        command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        try:
            return process.wait(limits.cpu_seconds * 2 + START_UP_SECONDS)
        except BaseException as error:
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"not finished within {error.timeout:g} s") from None
            raise
