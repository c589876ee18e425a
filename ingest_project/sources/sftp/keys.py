"""Whether an SSH server is who it should be: a key that nobody has stored is refused, with how to store it."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from pydantic import SecretStr

from ingest_project.core.errors import SettingsError, SourceAccessDeniedError
from ingest_project.sources.server_config import Server

KNOWN_HOSTS_FILE = "INGEST_SFTP_KNOWN_HOSTS"
FINGERPRINT = "SHA256:"
DEFAULT_PORT = 22
# One kind of key signs in several ways.
RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")


@dataclass(frozen=True)
class HostKeys:
    """The keys that one server may have.

    Args:
        pinned: fingerprints as OpenSSH prints them; where there are any, only these count.
        known_hosts_file: in OpenSSH's format; None for no such file.
    """

    pinned: frozenset[str]
    known_hosts_file: Path | None

    def key_types(self, server: Server) -> tuple[str, ...]:
        """The kinds of keys to ask a server for, so that it shows the one that is known; empty for any."""
        known = () if self.pinned else self._known(server)
        kinds = dict.fromkeys(key.get_name() for key in known)
        return tuple(name for kind in kinds for name in (RSA_SIGNATURES if kind == "ssh-rsa" else (kind,)))

    def require_known(self, server: Server, key: paramiko.PKey) -> None:
        """Judge the key that a server has shown.

        Raises:
            SourceAccessDeniedError: it is not known, or is another than it was.
        """
        shown = fingerprint_of(key)
        if self.pinned:
            if shown not in self.pinned:
                raise SourceAccessDeniedError(server.location, _changed(key, shown, "host_key_fingerprints"))
            return
        known = self._known(server)
        if any(key == stored for stored in known):
            return
        raise SourceAccessDeniedError(
            server.location, _changed(key, shown, KNOWN_HOSTS_FILE) if known else _unknown(server, key, shown)
        )

    def _known(self, server: Server) -> list[paramiko.PKey]:
        if self.known_hosts_file is None:
            return []
        try:
            changed_at = self.known_hosts_file.stat().st_mtime_ns
            hosts = _read(self.known_hosts_file, changed_at)
        except (OSError, UnicodeDecodeError, paramiko.SSHException) as error:
            raise SettingsError(f"{KNOWN_HOSTS_FILE} names {self.known_hosts_file}, which cannot be read.") from error
        found = hosts.lookup(_name_in_file(server))
        return [] if found is None else [found[kind] for kind in found]


def fingerprint_of(key: paramiko.PKey) -> str:
    """A key's fingerprint as `ssh-keygen -lf` prints it."""
    digest = hashlib.sha256(key.asbytes()).digest()
    return FINGERPRINT + base64.b64encode(digest).decode().rstrip("=")


@lru_cache(maxsize=4)
def _read(file: Path, _changed_at: int) -> paramiko.HostKeys:
    return paramiko.HostKeys(str(file))


def _name_in_file(server: Server) -> str:
    return server.host if server.port == DEFAULT_PORT else f"[{server.host}]:{server.port}"


def _unknown(server: Server, key: paramiko.PKey, shown: str) -> str:
    return (
        f"its host key is not known. It shows {key.get_name()} {shown}. If its owner confirms that, add the "
        f"fingerprint to 'host_key_fingerprints' of its credentials, or this line to the file of {KNOWN_HOSTS_FILE}: "
        f"{_name_in_file(server)} {key.get_name()} {key.get_base64()}"
    )


def _changed(key: paramiko.PKey, shown: str, stored_in: str) -> str:
    return (
        f"its host key is not the one in {stored_in}: it shows {key.get_name()} {shown}. Either the server has a new "
        "key, or another computer answers in its place. Nothing was sent; ask its owner before the new key is stored"
    )


_KINDS: tuple[tuple[type, type[paramiko.PKey]], ...] = (
    (Ed25519PrivateKey, paramiko.Ed25519Key),
    (EllipticCurvePrivateKey, paramiko.ECDSAKey),
    (RSAPrivateKey, paramiko.RSAKey),
)
_OPENSSH_HEADER = b"-----BEGIN OPENSSH PRIVATE KEY-----"


def private_key(file: Path, passphrase: SecretStr | None) -> paramiko.PKey:
    """Read a key as OpenSSH or OpenSSL writes it.

    cryptography reads it and paramiko gets it in a plain form: its own reader stumbles over some files that OpenSSH
    takes, by the values of their last bytes.

    Raises:
        SettingsError: not there, not a key of a known kind, or not with this passphrase.
    """
    secret = None if passphrase is None else passphrase.get_secret_value().encode()
    try:
        data = file.read_bytes()
        load = load_ssh_private_key if data.lstrip().startswith(_OPENSSH_HEADER) else load_pem_private_key
        key = load(data, secret)
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
        for kind, kind_of_paramiko in _KINDS:
            if isinstance(key, kind):
                return kind_of_paramiko.from_private_key(io.StringIO(plain))
    except (OSError, paramiko.SSHException, UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise SettingsError(
            f"The private key {file} cannot be used ({type(error).__name__}). Check the file and "
            "private_key_passphrase of its credentials."
        ) from error
    raise SettingsError(f"The private key {file} is of a kind that is not used; Ed25519, ECDSA and RSA are.")
