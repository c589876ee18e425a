"""Run one of our scripts on an untrusted file in a separate process, whose crash does no harm.

The process limits its memory, CPU time and output before the script starts (`main`), gets an environment without
secrets, and is killed when it exceeds its time. A worker that rejects a file reports the reason, see `Confinement`.
"""

from __future__ import annotations

import json
import math
import os
import resource
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO

from ingest_project.core.errors import FileRejectedError, LimitExceededError

# The only variables that the process gets: no secret is in reach of an untrusted file.
INHERITED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "TZ", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")
START_UP_SECONDS = 20.0
OUT_OF_MEMORY = 9
# Exit code of a worker that rejected the file and wrote the reason.
REJECTED = 3
NEEDS_MEMORY = "Reading it needs more memory than allowed"
# Exit codes of a process that the kernel ended because it exceeded its CPU time (SIGKILL, SIGXCPU).
KILLED = frozenset({-9, -24})


@dataclass(frozen=True)
class ProcessLimits:
    """Limits of one process.

    Args:
        memory_bytes: address space in bytes.
        cpu_seconds: CPU time; the limit of wall-clock time is twice as much.
        output_bytes: size of each file that it writes.
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
        limits: limits that are in force before the script's first line.
        stdin: open file for its standard input.
        stdout: open file for its standard output.

    Returns:
        the exit code: OUT_OF_MEMORY if it reached the memory limit, negative if a signal ended it, see KILLED.

    Raises:
        TimeoutError: the process exceeded its time and was killed.
    """
    limit_arguments = [str(limits.memory_bytes), str(limits.cpu_seconds), str(limits.output_bytes)]
    command = [sys.executable, "-P", __file__, *limit_arguments, script, *arguments]
    environment = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    # Use one thread: each further one reserves address space, which is limited.
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


class ContentRejectedError(Exception):
    """Raised in the confined process to reject the file.

    Args:
        rule: see `FileRejectedError`.
        detail: one sentence.
        limit: the limit that was exceeded, a name in `Confinement.settings`.
    """

    def __init__(self, rule: str, detail: str, limit: str | None = None) -> None:
        self.reason = {"rule": rule, "detail": detail, "limit": limit}
        super().__init__(detail)


@dataclass(frozen=True)
class Confinement:
    """A kind of files that a confined process converts.

    Args:
        worker: module that calls `convert_file` when it runs as a script.
        what: noun for such a file, e.g. `workbook`.
        settings: name of the setting for each limit: `memory`, `seconds`, and those that the worker reports.
    """

    worker: ModuleType
    what: str
    settings: Mapping[str, str]

    def convert(
        self, rows: Path, options: Mapping[str, object], *, memory_bytes: int, seconds: float, output_bytes: int
    ) -> None:
        """Convert a file.

        Args:
            rows: file that the worker writes; it writes the reason of a rejection next to it.
            options: further keyword arguments of the worker's function.
            memory_bytes: limit of the process's address space.
            seconds: limit of its CPU time.
            output_bytes: limit of the size of each file that it writes.

        Raises:
            FileRejectedError: the file is damaged, or exceeds a limit.
        """
        reason = rows.with_name("reason.json")
        arguments = [str(reason), json.dumps({"rows": str(rows), **options})]
        limits = ProcessLimits(memory_bytes, math.ceil(seconds), output_bytes)
        try:
            code = run_confined(str(self.worker.__file__), arguments, limits)
        except TimeoutError:
            code = min(KILLED)
        if code == 0:
            return
        if reason.exists() and reason.stat().st_size:
            found = json.loads(reason.read_text(encoding="utf-8"))
            if found["limit"]:
                raise LimitExceededError(self.settings[found["limit"]], found["detail"])
            raise FileRejectedError(found["rule"], found["detail"])
        if code == OUT_OF_MEMORY:
            raise LimitExceededError(self.settings["memory"], NEEDS_MEMORY)
        if code in KILLED:
            raise LimitExceededError(self.settings["seconds"], f"Reading it took over {seconds:g} s")
        memory = f"needs more memory than {self.settings['memory']} allows"
        detail = f"The process that read the {self.what} crashed: it is damaged, or {memory}."
        raise FileRejectedError("unreadable_container", detail)


def convert_file(convert: Callable[..., None], describe: Callable[[Exception], ContentRejectedError]) -> int:
    """Convert the file that the command line names, in the confined process.

    Args:
        convert: function that is called with the options of the command line.
        describe: returns the rejection for an exception; on a crafted file, a library may raise any.

    Returns:
        the exit code: 0 if the rows were written, REJECTED if the file was rejected and the reason written.
    """
    try:
        convert(**json.loads(sys.argv[2]))
    except ContentRejectedError as error:
        rejected = error
    except MemoryError:
        rejected = ContentRejectedError("limit_exceeded", NEEDS_MEMORY, "memory")
    except Exception as error:  # noqa: BLE001 - see `describe`
        rejected = describe(error)
    else:
        return 0
    Path(sys.argv[1]).write_text(json.dumps(rejected.reason), encoding="utf-8")
    return REJECTED


def main() -> None:
    """Set the limits from the command line in the new process, then run the script with the remaining arguments."""
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
