"""Ports for servers that count their connections.

A client goes on looking for the server that it knows: one of Kafka does so until it is closed. Where that server has
ended, the kernel may have given its port to another one, which would count a connection that no test has made.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Server = TypeVar("Server")

_GIVEN_BY_THE_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ATTEMPTS = 100


def on_an_unvisited_port(serve: Callable[[int], Server]) -> Server:
    """Return a server on a port that neither the kernel nor `free_port` gives to others.

    Args:
        serve: makes a server that listens on this port, or raises OSError where another does.
    """
    last_given = int(_GIVEN_BY_THE_KERNEL.read_text(encoding="ascii").split()[1])
    above = range(last_given + 1, 2**16)
    for port in random.sample(above, min(_ATTEMPTS, len(above))):
        with contextlib.suppress(OSError):
            return serve(port)
    return serve(0)
