"""Faults that a test injects into the DFS server."""

from __future__ import annotations

import fnmatch
import time
from dataclasses import dataclass
from threading import Lock
from typing import Literal

OPERATIONS = (
    "create",
    "put",
    "append",
    "flush",
    "read",
    "properties",
    "set_properties",
    "list",
    "rename",
    "delete",
    "access_control",
    "file_system",
)


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind.

    Args:
        operation: one of OPERATIONS, or `*`.
        kind: `refuse` answers with the status; `cut` closes the connection in the middle of the request's body; `lose`
            executes the request and closes the connection instead of answering; `stall` answers late; `half` stops in
            the middle of the answer's body; `forget` says yes and keeps nothing.
        status: of `refuse`.
        code: of `refuse`, the service's name for the reason.
        retry_after: seconds, as a header of `refuse`.
        seconds: of `stall`.
        path: pattern of the file's path.
        times: how many requests; those after them are served.
        after: how many requests are served before the first.
    """

    operation: str
    kind: Literal["refuse", "cut", "lose", "stall", "half", "forget"] = "refuse"
    status: int = 503
    code: str = "ServerBusy"
    retry_after: float | None = None
    seconds: float = 0.0
    path: str = "*"
    times: int = 1
    after: int = 0


class Faults:
    """The faults in force; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Add a fault."""
        if fault.operation != "*" and fault.operation not in OPERATIONS:
            raise ValueError(f"{fault.operation} is none of {', '.join(OPERATIONS)}.")
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """Serve everything again."""
        with self._lock:
            self._faults.clear()

    def take(self, operation: str, path: str) -> Fault | None:
        """Return and count the fault for this request, after its stall if it has one."""
        if not self._faults:
            return None
        with self._lock:
            fault = next(
                (
                    fault
                    for fault in self._faults
                    if fault.times > 0 and fault.operation in {"*", operation} and fnmatch.fnmatchcase(path, fault.path)
                ),
                None,
            )
            if fault is None:
                return None
            if fault.after > 0:
                fault.after -= 1
                return None
            fault.times -= 1
        if fault.kind == "stall":
            time.sleep(fault.seconds)
            return None
        return fault
