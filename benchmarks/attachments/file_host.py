"""A web server that costs as little as possible, so that the downloader dominates the measurement.

`/<size>/<name>` is a file of that many bytes: the name, padded, then one block that all share. The kernel sends it from
a file, without a copy of it in this process. Connections stay open.

    python -m benchmarks.attachments.file_host <folder>

prints its port, and ends when its standard input does.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME_BYTES = 64
LARGEST_BYTES = 128 * 1024**2
BLOCK_SEED = hashlib.shake_256(b"attachments").digest(1024**2)


def expected_sha256(size: int, names: list[str]) -> dict[str, str]:
    """Return the digest of each file of this size, by name."""
    rest = _block(size - NAME_BYTES)
    return {name: hashlib.sha256(_head(name) + rest).hexdigest() for name in names}


@contextmanager
def file_host(folder: Path) -> Iterator[str]:
    """Run the server in its own process; yield its address."""
    command = [sys.executable, "-m", __name__, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError("The web server of the benchmark ended before it served; its error is above.")
            yield f"http://127.0.0.1:{int(port)}"
        finally:
            process.send_signal(signal.SIGTERM)


def main() -> None:
    """Serve until stopped."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    path = Path(sys.argv[1]) / "block"
    path.write_bytes(_block(LARGEST_BYTES))
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    with path.open("rb") as block:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_converse, args=(connection, block.fileno()), daemon=True).start()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def _converse(connection: socket.socket, block: int) -> None:
    with connection, connection.makefile("rb") as requests, suppress(OSError):
        while line := requests.readline():
            while requests.readline().strip():
                pass
            _, size, name = line.split()[1].decode().split("/")
            _send(connection, block, name, int(size))


def _send(connection: socket.socket, block: int, name: str, size: int) -> None:
    head = (
        f'HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nContent-Type: application/octet-stream\r\nETag: "{name}"\r\n\r\n'
    )
    connection.sendall(head.encode() + _head(name), socket.MSG_MORE)
    sent, length = 0, size - NAME_BYTES
    while sent < length:
        sent += os.sendfile(connection.fileno(), block, sent, length - sent)


def _head(name: str) -> bytes:
    return name.encode().ljust(NAME_BYTES)


def _block(size: int) -> bytes:
    return (BLOCK_SEED * (size // len(BLOCK_SEED) + 1))[:size]


if __name__ == "__main__":
    main()
