"""Our own private key for SFTP servers, read from its file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

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

from ingest_project.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import SecretStr

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
