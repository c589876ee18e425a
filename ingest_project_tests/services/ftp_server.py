"""An FTP server (pyftpdlib) in a thread of the test process, with the habits and faults that servers in the field have.

    with FtpServer(folder, without={"MLSD", "MLST"}) as server:
        server.port

What is in the folder is what anonymous and the one user see at `/`.
"""

from __future__ import annotations

import logging
import socket
import threading
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

with warnings.catch_warnings():
    # pyftpdlib stands on asyncore, which Python 3.11 still has and warns about.
    warnings.simplefilter("ignore", DeprecationWarning)
    from pyftpdlib.authorizers import DummyAuthorizer  # type: ignore[import-untyped]
    from pyftpdlib.handlers import DTPHandler, FTPHandler  # type: ignore[import-untyped]
    from pyftpdlib.ioloop import IOLoop  # type: ignore[import-untyped]
    from pyftpdlib.servers import FTPServer  # type: ignore[import-untyped]

from pathlib import Path

USER = "collector"
PASSWORD = "correct horse"  # noqa: S105 - of a server that lives for one test
POLL_SECONDS = 0.02


@dataclass
class FtpServer:
    """The server; starts when it is made, stops with `close` or at the end of its `with` block.

    Args:
        folder: what it serves.
        port: 0 for a free one.
        without: commands that it does not know.
        encoding: of names on the wire.
        named_address: the address that it gives for data connections, as one behind NAT does.
        cut_after: bytes of a transfer after which it is cut, as long as `cuts` are left.
        cut_control: whether the control connection goes with it.
        max_connections: more are refused with 421.
    """

    folder: Path
    port: int = 0
    without: frozenset[str] = frozenset()
    encoding: str = "utf8"
    named_address: str | None = None
    cut_after: int = 0
    cut_control: bool = True
    max_connections: int = 0
    cuts: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    restarts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        logging.getLogger("pyftpdlib").setLevel(logging.CRITICAL)
        self._stopping = threading.Event()
        self._server = FTPServer(("127.0.0.1", self.port), self._handler(), ioloop=IOLoop())
        self._server.max_cons = self.max_connections or 64
        self.port = int(self._server.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, even in the middle of a transfer."""
        self._stopping.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._server.serve_forever(timeout=POLL_SECONDS, blocking=False, handle_exit=False)
        self._server.close_all()

    def _handler(self) -> type[FTPHandler]:
        permissions = DummyAuthorizer()
        permissions.add_user(USER, PASSWORD, str(self.folder), perm="elr")
        permissions.add_anonymous(str(self.folder), perm="elr")
        commands = {name: about for name, about in FTPHandler.proto_cmds.items() if name not in self.without}

        class Handler(_Handler):
            owner = self
            authorizer = permissions
            proto_cmds = commands
            encoding = self.encoding
            masquerade_address = self.named_address

        return Handler


class _Data(DTPHandler):  # type: ignore[misc]
    """A data connection that breaks on request."""

    def send(self, data: bytes) -> Any:  # noqa: ANN401
        owner = self.cmd_channel.owner
        if owner.cuts and self.cmd_channel.sends_file and self.tot_bytes_sent >= owner.cut_after:
            owner.cuts -= 1
            _shut(self.socket)
            if owner.cut_control:
                _shut(self.cmd_channel.socket)
        return super().send(data)


class _Handler(FTPHandler):  # type: ignore[misc]
    owner: ClassVar[FtpServer]
    dtp_handler = _Data
    use_sendfile = False
    use_gmt_times = True
    auth_failed_timeout = 0
    sends_file = False

    def process_command(self, cmd: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self.owner.commands[cmd] += 1
        self.sends_file = cmd == "RETR"
        if cmd == "REST":
            self.owner.restarts.append(int(args[0]))
        super().process_command(cmd, *args, **kwargs)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
