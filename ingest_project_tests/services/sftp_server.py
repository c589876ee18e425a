"""An SFTP server (asyncssh) in a thread of the test process.

with SftpServer(folder) as server:
server.fingerprint, server.known_hosts_line
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import asyncssh

USER = "collector"
PASSWORD = "correct horse"  # noqa: S105 - of a server that lives for one test


@dataclass
class SftpServer:
    """The server; starts when it is made, stops with `close` or at the end of its `with` block.

    Args:
        folder: what it serves at `/`.
        port: 0 for a free one.
        host_key: of its own; a new one where none is given.
        client_key: public key that it accepts next to the password, in OpenSSH's format.
        latin1: whether names go over the wire in latin-1.
        cut_after: position in a file at which the connection is cut, as long as `cuts` are left.
        logins: how often somebody came in.
    """

    folder: Path
    port: int = 0
    host_key: asyncssh.SSHKey = field(default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519"))
    client_key: str | None = None
    latin1: bool = False
    cut_after: int = 0
    cuts: int = 0
    logins: int = 0

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.connections: list[asyncssh.SSHServerConnection] = []
        self._acceptor = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port = self._acceptor.get_port()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def fingerprint(self) -> str:
        """Of its host key, as OpenSSH prints it."""
        return self.host_key.get_fingerprint()

    @property
    def known_hosts_line(self) -> str:
        """For a known_hosts file."""
        return f"[127.0.0.1]:{self.port} {self.host_key.export_public_key().decode().strip()}\n"

    def close(self) -> None:
        """Stop, even in the middle of a transfer."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncssh.SSHAcceptor:
        keys = asyncssh.import_authorized_keys(self.client_key) if self.client_key else None
        return await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_factory=lambda: _Login(self),
            server_host_keys=[self.host_key],
            authorized_client_keys=keys,
            sftp_factory=lambda channel: _Files(self, channel),
            # What clients may negotiate is not what is tested, and generating keys for it takes seconds.
            gss_host=None,
        )

    async def _stop(self) -> None:
        self._acceptor.close()
        for connection in self.connections:
            connection.abort()
            # Files that it had open are closed by then.
            await connection.wait_closed()
        await self._acceptor.wait_closed()
        leftover = asyncio.all_tasks() - {asyncio.current_task()}
        for task in leftover:
            task.cancel()
        await asyncio.gather(*leftover, return_exceptions=True)


class _Login(asyncssh.SSHServer):
    def __init__(self, server: SftpServer) -> None:
        self._server = server

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._server.connections.append(conn)

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, PASSWORD)

    def auth_completed(self) -> None:
        self._server.logins += 1


class _Files(asyncssh.SFTPServer):
    def __init__(self, server: SftpServer, channel: asyncssh.SSHServerChannel[bytes]) -> None:
        super().__init__(channel, chroot=str(server.folder).encode())
        self._server = server
        self._connection = channel.get_connection()

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        async for name in super().scandir(path):
            if self._server.latin1 and isinstance(name.filename, bytes):
                name.filename = name.filename.decode().encode("latin-1")
            yield name

    def map_path(self, path: bytes) -> bytes:
        return super().map_path(path.decode("latin-1").encode() if self._server.latin1 else path)

    def read(self, file_obj: object, offset: int, size: int) -> bytes:
        if self._server.cuts and offset >= self._server.cut_after:
            self._server.cuts -= 1
            self._connection.abort()
        return super().read(file_obj, offset, size)  # type: ignore[return-value]
