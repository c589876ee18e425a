"""Run a script of ours over an untrusted file in a process of its own that may die without harm.

The process limits its memory, CPU time and output before the script begins (`main`), gets an environment without
secrets, and is killed when it exceeds its time.
"""

from __future__ import annotations

import os
import resource
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

# The variables that the process needs: no secret is near an untrusted file.
INHERITED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "TZ", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")
START_UP_SECONDS = 20.0
OUT_OF_MEMORY = 9
# SIGKILL and SIGXCPU, by which the kernel ends a process that exceeds its CPU time.
KILLED = frozenset({-9, -24})


@dataclass(frozen=True)
class ProcessLimits:
    """Limits of one process.

    Args:
        memory_bytes: of address space.
        cpu_seconds: of CPU time; twice as much wall-clock time.
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
    """Run a script and wait for its end.

    Args:
        script: path of a Python file.
        arguments: its command line.
        limits: in force before its first line.
        stdin: an open file that it reads.
        stdout: an open file that it writes.

    Returns:
        its exit code: OUT_OF_MEMORY if it reached that limit, negative if a signal ended it, see KILLED.

    Raises:
        TimeoutError: it was killed because it exceeded its time.
    """
    limit_arguments = [str(limits.memory_bytes), str(limits.cpu_seconds), str(limits.output_bytes)]
    command = [sys.executable, "-P", __file__, *limit_arguments, script, *arguments]
    environment = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    # One thread: every further one reserves address space, which is limited.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    with subprocess.Popen(  # noqa: S603 - our own script; the untrusted file is only an argument
        command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        try:
            return process.wait(limits.cpu_seconds * 2 + START_UP_SECONDS)
        except BaseException as error:
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"not finished within {error.timeout:g} s") from None
            raise


def main() -> None:
    """In the new process: set the limits of the command line, then run the script with the rest of it."""
    memory_bytes, cpu_seconds, output_bytes = map(int, sys.argv[1:4])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    del sys.argv[:4]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
