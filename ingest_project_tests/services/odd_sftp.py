"""A misbehaving SFTP server: a correct SSH server that answers with the test's own packets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from ingest_project_tests.services.sftp_server import SftpServer, _Login

Answer = Callable[[int, bytes], bytes | None]

INIT, VERSION, STATUS, HANDLE, DATA, NAME, ATTRS = 1, 2, 101, 102, 103, 104, 105
OPEN, CLOSE, READ, OPENDIR, READDIR, STAT, FSTAT = 3, 4, 5, 11, 12, 17, 8


def number(value: int, length: int = 4) -> bytes:
    """As the protocol writes it."""
    return value.to_bytes(length, "big")


def string(value: bytes) -> bytes:
    """As the protocol writes it."""
    return number(len(value)) + value


def packet(kind: int, body: bytes) -> bytes:
    """One packet."""
    return string(bytes([kind]) + body)


@dataclass
class OddSftpServer(SftpServer):
    """Answers every request but the first by a function of its kind and id; None is silence.

    Args:
        answer: from kind and id (4 bytes) to the bytes that are sent.
    """

    folder: Path = Path()
    answer: Answer = lambda _kind, request: packet(STATUS, request)

    async def _listen(self) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_factory=lambda: _OddLogin(self),
            server_host_keys=[self.host_key],
            gss_host=None,
        )


class _OddLogin(_Login):
    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        super().connection_made(conn)
        self._conn = conn

    def session_requested(self) -> tuple[asyncssh.SSHServerChannel[bytes], asyncssh.SSHServerSession[bytes]]:
        assert isinstance(self._server, OddSftpServer)
        return self._conn.create_server_channel(encoding=None), _OddSession(self._server)


class _OddSession(asyncssh.SSHServerSession[bytes]):
    def __init__(self, server: OddSftpServer) -> None:
        self._server = server
        self._received = b""

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def subsystem_requested(self, subsystem: str) -> bool:
        return subsystem == "sftp"

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._received += data
        while len(self._received) >= 4 + (size := int.from_bytes(self._received[:4], "big")):
            request, self._received = self._received[4 : 4 + size], self._received[4 + size :]
            said = packet(VERSION, number(3)) if request[0] == INIT else self._server.answer(request[0], request[1:5])
            if said is not None:
                self._channel.write(said)
