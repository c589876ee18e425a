"""An FTP server of our own, for what pyftpdlib does not do: TLS from the standard library, and MS-DOS listings.

One thread per connection, reading only. Where it speaks TLS it demands, as vsftpd and FileZilla do, that a data
connection resumes the TLS session of its control connection.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER = "collector"
PASSWORD = "correct horse"  # noqa: S105 - of a server that lives for one test
CHANGED_AT = dt.datetime(2026, 1, 15, 10, 30, 45, tzinfo=dt.UTC)


@dataclass
class FtpsServer:
    """The server; starts when it is made.

    Args:
        files: content by name, all in `/`; or a folder that is served at `/`.
        tls: None for none.
        implicit: whether TLS begins with the connection.
        dos: whether it lists as MS-DOS did, and knows neither MLSD nor MDTM nor SIZE.
        resumed: for each protected transfer, whether its TLS session was resumed.
    """

    files: dict[str, bytes] | Path
    tls: ssl.SSLContext | None = None
    implicit: bool = False
    dos: bool = False
    resumed: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, even in the middle of a transfer."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=_Session(self, connection).serve, daemon=True)
                self._threads.append(thread)
                thread.start()


class _Session:
    def __init__(self, server: FtpsServer, connection: socket.socket) -> None:
        self._server = server
        self._control = connection
        self._passive: socket.socket | None = None
        self._protected = False
        self._offset = 0
        self._folder = "/"

    def serve(self) -> None:
        with suppress(OSError):
            if self._server.implicit:
                self._begin_tls()
            self._say("220 ready")
            while (line := self._line()) is not None:
                command, _, argument = line.partition(" ")
                answer = getattr(self, f"_{command.lower()}", None)
                if answer is None or (self._server.dos and command in {"MLSD", "MLST", "SIZE", "MDTM", "EPSV"}):
                    self._say("502 not here")
                else:
                    answer(argument)
        if self._passive is not None:
            self._passive.close()
        self._control.close()

    def _line(self) -> str | None:
        line = b""
        while not line.endswith(b"\n"):
            byte = self._control.recv(1)
            if not byte:
                return None
            line += byte
        return line.decode().rstrip("\r\n")

    def _say(self, text: str) -> None:
        self._control.sendall(f"{text}\r\n".encode())

    def _begin_tls(self) -> None:
        assert self._server.tls is not None
        self._control = self._server.tls.wrap_socket(self._control, server_side=True)

    def _auth(self, _argument: str) -> None:
        if self._server.tls is None:
            self._say("502 no TLS")
            return
        self._say("234 go on")
        self._begin_tls()

    def _user(self, _argument: str) -> None:
        self._say("331 and the password?")

    def _pass(self, password: str) -> None:
        self._say("230 in" if password == PASSWORD else "530 Login incorrect.")

    def _pbsz(self, _argument: str) -> None:
        self._say("200 ok")

    def _prot(self, argument: str) -> None:
        self._protected = argument == "P"
        self._say("200 ok")

    def _feat(self, _argument: str) -> None:
        self._say(
            "500 what?" if self._server.dos else "211-Features:\r\n UTF8\r\n MLST type*;size*;modify*;\r\n211 End"
        )

    def _type(self, argument: str) -> None:
        self._say("200 ok" if argument == "I" else "504 only binary")

    _opts = _noop = _pbsz

    def _cwd(self, argument: str) -> None:
        files = self._server.files
        if argument == "/" or (isinstance(files, Path) and (files / argument.removeprefix("/")).is_dir()):
            self._folder = argument
            self._say("250 ok")
        else:
            self._say("550 The system cannot find the file specified.")

    def _epsv(self, _argument: str) -> None:
        self._say(f"229 Entering (|||{self._listen()}|)")

    def _pasv(self, _argument: str) -> None:
        high, low = divmod(self._listen(), 256)
        self._say(f"227 Entering (10,99,99,99,{high},{low})")

    def _mlst(self, path: str) -> None:
        facts = self._facts(path.removeprefix("/"))
        self._say("550 not found" if facts is None else f"250-it is\r\n {facts} {path}\r\n250 End")

    def _mlsd(self, _argument: str) -> None:
        files, folder = self._server.files, self._folder.strip("/")
        names = files if isinstance(files, dict) else [path.name for path in (files / folder).iterdir()]
        lines = (f"{self._facts(f'{folder}/{name}'.removeprefix('/'))} {name}\r\n" for name in names)
        self._send("".join(lines).encode())

    def _list(self, _argument: str) -> None:
        files = self._server.files
        assert isinstance(files, dict)
        lines = (f"01-15-26  10:30AM {len(content):>20} {name}\r\n" for name, content in files.items())
        self._send(b"01-15-26  10:30AM       <DIR>          archive\r\n" + "".join(lines).encode())

    def _rest(self, argument: str) -> None:
        self._offset = int(argument)
        self._say("350 go on")

    def _retr(self, path: str) -> None:
        content = self._content(path.removeprefix("/"))
        if content is None:
            self._say("550 not found")
            return
        offset, self._offset = self._offset, 0
        self._send(content[offset:])

    def _content(self, name: str) -> bytes | None:
        files = self._server.files
        if isinstance(files, dict):
            return files.get(name)
        return (files / name).read_bytes() if (files / name).is_file() else None

    def _facts(self, name: str) -> str | None:
        files = self._server.files
        if isinstance(files, dict):
            return _facts("file", len(files[name]), CHANGED_AT) if name in files else None
        path = files / name
        if not path.exists():
            return None
        changed_at = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC)
        return _facts("dir" if path.is_dir() else "file", path.stat().st_size, changed_at)

    def _listen(self) -> int:
        if self._passive is not None:
            self._passive.close()
        self._passive = socket.create_server(("127.0.0.1", 0))
        return int(self._passive.getsockname()[1])

    def _send(self, data: bytes) -> None:
        assert self._passive is not None
        connection, _ = self._passive.accept()
        with connection:
            self._say("150 here it comes")
            if not self._protected:
                connection.sendall(data)
            elif not self._sent_protected(connection, data):
                self._say("425 session not resumed")
                return
        self._say("226 done")

    def _sent_protected(self, connection: socket.socket, data: bytes) -> bool:
        assert self._server.tls is not None
        with self._server.tls.wrap_socket(connection, server_side=True) as protected:
            self._server.resumed.append(bool(protected.session_reused))
            if protected.session_reused:
                protected.sendall(data)
                with suppress(OSError):
                    protected.unwrap()
            return bool(protected.session_reused)


@dataclass(frozen=True)
class Certificates:
    """An authority that nobody knows, and what it signed for 127.0.0.1.

    Args:
        authority: PEM file of the authority's certificate.
        server: what the server shows.
    """

    authority: Path
    server: ssl.SSLContext


def made_certificates(folder: Path) -> Certificates:
    """Make both certificates; they are valid for an hour."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("test authority", authority_key, authority_key, None)
    certificate = _certificate("test server", key, authority_key, authority.subject)
    (folder / "authority.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    chain = folder / "server.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return Certificates(folder / "authority.pem", context)


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, signing: ec.EllipticCurvePrivateKey, issuer: x509.Name | None
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    local = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(local, critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(signer, critical=False)
        .sign(signing, hashes.SHA256())
    )


def _facts(kind: str, size: int, changed_at: dt.datetime) -> str:
    return f"type={kind};size={size};modify={changed_at:%Y%m%d%H%M%S};"
