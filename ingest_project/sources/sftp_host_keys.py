"""Whether an SSH server is who it should be: a key that nobody has stored is refused, with how to store it."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import paramiko

from ingest_project.errors import SettingsError, SourceForbidden

if TYPE_CHECKING:
    from pathlib import Path

    from ingest_project.sources.servers import Server

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
            SourceForbidden: it is not known, or is another than it was.
        """
        shown = fingerprint_of(key)
        if self.pinned:
            if shown not in self.pinned:
                raise SourceForbidden(server.location, _changed(key, shown, "host_key_fingerprints"))
            return
        known = self._known(server)
        if any(key == stored for stored in known):
            return
        raise SourceForbidden(
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
