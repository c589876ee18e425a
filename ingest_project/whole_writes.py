"""Writing all of something to a file descriptor."""

from __future__ import annotations

import os


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: the system may take a part at a time, and a nearly full disk does before it refuses the rest.

    Raises:
        OSError: what is left cannot be written.
    """
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])
