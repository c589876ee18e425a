"""A process that imports the tested code once and runs each call in its own fork, which tests may kill."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from typing import Any

FAILED = 1


class Forks:
    """The process, seen from the tests: it does what it is told on its standard input, and answers with a number.

    Args:
        modules: that it imports.
    """

    def __init__(self, *modules: str) -> None:
        command = [sys.executable, "-c", f"from {__name__} import main; main()", *modules]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, function: str, *arguments: str | int) -> int:
        """Call `module:name` in a fork, whose exit code is what it returns; returns the id of the process."""
        return self._ask(function=function, arguments=arguments)

    def wait(self, pid: int) -> int:
        """Wait until a fork has ended or is stopped; returns its exit code, negative if a signal did it."""
        return self._ask(wait=pid)

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _ask(self, **order: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def main() -> None:
    """Execute the lines of standard input until its end."""
    answers = os.dup(1)
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        answer = _ended(order["wait"]) if "wait" in order else _forked(order)
        os.write(answers, f"{answer}\n".encode())
    # Deleting all that was imported would take a second.
    os._exit(0)


def _ended(pid: int) -> int:
    _, status = os.waitpid(pid, os.WUNTRACED)
    return -os.WSTOPSIG(status) if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


def _forked(order: dict[str, Any]) -> int:
    if pid := os.fork():
        return pid
    code = FAILED
    try:
        module, _, name = order["function"].partition(":")
        code = getattr(importlib.import_module(module), name)(*order["arguments"])
    except BaseException:  # noqa: BLE001 - a fork must never return into the loop of its parent
        traceback.print_exc()
    finally:
        os._exit(code)
