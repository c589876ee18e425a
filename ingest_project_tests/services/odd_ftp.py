"""A misbehaving FTP server: any listing, any reply, at any speed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

REPLIES = {
    "USER": b"331 and?\r\n",
    "PASS": b"230 in\r\n",
    "FEAT": b"500 what?\r\n",
    "OPTS": b"200 ok\r\n",
    "TYPE": b"200 ok\r\n",
    "CWD": b"250 ok\r\n",
    "NOOP": b"200 ok\r\n",
    "SIZE": b"213 5\r\n",
    "MDTM": b"213 20260115103045\r\n",
}
WITH_MLSD = {"FEAT": b"211-has\r\n MLST type*;size*;modify*;\r\n211 that\r\n"}


def speaking(
    transfer: bytes | Callable[[socket.socket], None],
    replies: Mapping[str, bytes | Callable[[socket.socket], None]] | None = None,
    greeting: bytes | Callable[[socket.socket], None] = b"220 welcome\r\n",
) -> Callable[[socket.socket], None]:
    """What happens on a connection.

    Args:
        transfer: what LIST, MLSD and RETR send.
        replies: in place of the ordinary ones.
        greeting: before the first command.
    """
    said = {**REPLIES, **(replies or {})}

    def behave(connection: socket.socket) -> None:
        _give(connection, greeting)
        waiting: socket.socket | None = None
        with connection.makefile("rb") as commands:
            for line in commands:
                command = line.split()[0].decode().upper()
                if command in said:
                    _give(connection, said[command])
                elif command == "EPSV":
                    waiting = socket.create_server(("127.0.0.1", 0))
                    connection.sendall(f"229 here (|||{waiting.getsockname()[1]}|)\r\n".encode())
                elif command in ("LIST", "MLSD", "RETR") and waiting is not None:
                    connection.sendall(b"150 coming\r\n")
                    with waiting, waiting.accept()[0] as data:
                        _give(data, transfer)
                    connection.sendall(b"226 done\r\n")
                else:
                    connection.sendall(b"502 no\r\n")

    return behave


def _give(connection: socket.socket, what: bytes | Callable[[socket.socket], None]) -> None:
    if isinstance(what, bytes):
        connection.sendall(what)
    else:
        what(connection)
