"""Read secrets by reference: a setting or credential names the location of its secret.

    file:///run/secrets/password             a file, as Docker and Kubernetes mount it; also written NAME_FILE=/run/...
    keyvault://vault/secret[/version]        Azure Key Vault
    aws-sm://secret-id[#json-key]            AWS Secrets Manager, or one field of a secret that is a JSON object

A reference is read at its first use, and again once its file has changed, its value from a vault is older than
INGEST_VAULT_TTL_SECONDS, or a server refused it; the next connection uses the new value. If a read fails, the last
value stays in use and one line is logged. All users of the same reference share one value.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import structlog
from pydantic import BaseModel, SecretStr

from ingest_project.core.errors import IngestError, SettingsError

logger = structlog.stdlib.get_logger(__name__)

FILE = "file"
# For each scheme, the form of a reference and the function that reads it; this layer must not import vault clients.
VAULTS = {
    "keyvault": (
        re.compile(r"[\w.:-]+/[\w-]+(/\w+)?"),
        "keyvault://vault/secret or keyvault://vault/secret/version",
        "ingest_project.platform.secrets:read_key_vault",
    ),
    "aws-sm": (
        re.compile(r"[\w/+=.@:!-]+"),
        "aws-sm://secret-id or aws-sm://secret-id#json-key",
        "ingest_project.platform.secrets:read_secrets_manager",
    ),
}
MAX_SECRET_BYTES = 64 * 1024
# Interval between checks of a file's modification time, and before another request to a vault that did not answer.
FILE_CHECK_SECONDS = 1.0
RETRY_SECONDS = 30.0
# Interval between reads after refused logins: a permanently wrong password must not flood a vault.
REFUSAL_SECONDS = 5.0
DEFAULT_TTL_SECONDS = 300.0
UNIONS = (Union, UnionType)


@dataclass
class _Kept:
    """The value of one reference, shared by all its users in this process."""

    reference: str
    value: str | None = None
    stamp: tuple[int, ...] = ()
    next_check: float = 0.0
    refused_at: float | None = None
    failing: bool = False
    is_being_read: bool = False
    checks: set[Callable[[str], object]] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def current(self) -> str:
        """Return the value; read it again if that is due.

        Raises:
            SettingsError: the value has never been read, and cannot be read now.
        """
        if self.value is None or time.monotonic() >= self.next_check:
            with self.lock:
                if self.value is None or self.reference.startswith(FILE):
                    self.read()
                elif not self.is_being_read:
                    # A vault may be slow: other callers use the last value during the read.
                    self.is_being_read = True
                    threading.Thread(target=self._read_in_background, daemon=True).start()
        assert self.value is not None  # noqa: S101 - `read` raises otherwise
        return self.value

    def _read_in_background(self) -> None:
        try:
            self.read()
        finally:
            self.is_being_read = False

    def read(self) -> None:
        """Read the value; keep the last one if this fails."""
        scheme, _, location = self.reference.partition("://")
        try:
            stamp = _stamp(Path(location)) if scheme == FILE else ()
            if self.value is None or scheme != FILE or stamp != self.stamp:
                value = file_text(Path(location)) if scheme == FILE else _vault_text(scheme, location)
                for check in self.checks:
                    check(value)
                if self.value not in {None, value}:
                    logger.info("secret_changed", reference=self.reference)
                self.value, self.stamp = value, stamp
        except (IngestError, ValueError) as error:
            self.next_check = time.monotonic() + (FILE_CHECK_SECONDS if scheme == FILE else RETRY_SECONDS)
            if self.value is None:
                raise SettingsError(f"The secret {self.reference} cannot be used: {error}") from None
            if not self.failing:
                logger.warning("secret_not_read_again", reference=self.reference, reason=str(error))
            self.failing = True
        else:
            self.next_check = time.monotonic() + (FILE_CHECK_SECONDS if scheme == FILE else _ttl_seconds)
            self.failing = False


_kept: dict[str, _Kept] = {}
_ttl_seconds = DEFAULT_TTL_SECONDS


class SecretReference(SecretStr):
    """A secret in a file or vault; `get_secret_value` returns its current value.

    Args:
        reference: location of the secret.
    """

    def __init__(self, reference: str) -> None:
        super().__init__("")
        self.reference = reference

    def get_secret_value(self) -> str:
        """Return the current value.

        Raises:
            SettingsError: the value has never been read, and cannot be read now.
        """
        return self._shared.current()

    def refused(self, used: str) -> bool:
        """Read the value again because a server refused `used`; return True if it has changed."""
        kept = self._shared
        with kept.lock:
            now = time.monotonic()
            recently = kept.refused_at is not None and now - kept.refused_at < REFUSAL_SECONDS
            if kept.value == used and not recently:
                kept.refused_at, kept.stamp = now, ()
                kept.read()
            return kept.value != used

    def require(self, check: Callable[[str], object]) -> None:
        """Check the current and every later value; `check` raises ValueError for a value that must not be used."""
        kept = self._shared
        kept.checks.add(check)
        if kept.value is not None:
            check(kept.value)

    @property
    def _shared(self) -> _Kept:
        return _kept.setdefault(self.reference, _Kept(self.reference))

    def __eq__(self, other: object) -> bool:
        """Compare the current values."""
        return isinstance(other, SecretStr) and self.get_secret_value() == other.get_secret_value()

    def __hash__(self) -> int:
        """Hash the current value, so that a client cached by its credential is replaced after a rotation."""
        return hash(self.get_secret_value())

    def __bool__(self) -> bool:
        """Return True: a reference counts as set, because empty values are refused."""
        return True

    def __len__(self) -> int:
        return len(self.get_secret_value())

    def __repr__(self) -> str:
        """Return the reference, which is not secret."""
        return f"SecretReference({self.reference!r})"

    def _display(self) -> str:
        return "**********"


def secret_or_reference(value: object) -> object:
    """Convert a text that is a reference to one; return any other value unchanged.

    Raises:
        ValueError: the reference is malformed, or its file cannot be used. A vault is only contacted at the first use.
    """
    scheme, separator, location = value.partition("://") if isinstance(value, str) else ("", "", "")
    if not separator or scheme not in {FILE, *VAULTS}:
        return value
    reference = SecretReference(f"{scheme}://{location}")
    if scheme == FILE:
        try:
            reference.get_secret_value()
        except SettingsError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return reference
    form, example, _ = VAULTS[scheme]
    if not form.fullmatch(location.partition("#")[0]):
        raise ValueError(f"it is no reference to a secret; write {example}")
    return reference


def set_ttl(seconds: float) -> None:
    """Set the age in seconds after which a vault's value is read again."""
    global _ttl_seconds  # noqa: PLW0603 - one value per process, as the settings have
    _ttl_seconds = seconds


def with_references(value: object) -> object:
    """Replace secrets in a list or mapping by references if their texts are references; see `secret_or_reference`."""
    if isinstance(value, list):
        return [with_references(one) for one in value]
    if isinstance(value, dict):
        return {name: with_references(one) for name, one in value.items()}
    if not isinstance(value, SecretStr) or isinstance(value, SecretReference):
        return value
    found = secret_or_reference(value.get_secret_value())
    return found if isinstance(found, SecretReference) else value


def renewed(secret: str | SecretStr | None, used: str) -> bool:
    """Read a secret again because a server refused its value; return True if it has changed."""
    return isinstance(secret, SecretReference) and secret.refused(used)


def is_in_vault(secret: SecretStr | None) -> bool:
    """Return True for a secret in a vault, which is contacted only when the value is needed."""
    return isinstance(secret, SecretReference) and not secret.reference.startswith(FILE)


def text_of(value: str | SecretStr) -> str:
    """Return a text, or the current value of a secret."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def is_secret(annotation: Any) -> bool:  # noqa: ANN401 - types have no common type
    """Return True for the type of a secret, optional or not."""
    return annotation is SecretStr or (get_origin(annotation) in UNIONS and SecretStr in get_args(annotation))


def holds_secrets(annotation: Any) -> bool:  # noqa: ANN401 - see `is_secret`
    """Return True for the type of a secret, or of a list or mapping of secrets or of models with secrets."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(holds_secrets(one.annotation) for one in annotation.model_fields.values())
    return annotation is SecretStr or any(map(holds_secrets, get_args(annotation)))


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}.") from None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def file_text(path: Path) -> str:
    """Return the secret in a file, without one trailing newline.

    Raises:
        ValueError: the file cannot be read, is empty, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8.") from None
    if len(content) > MAX_SECRET_BYTES:
        raise ValueError(f"{path} has more than {MAX_SECRET_BYTES} bytes.")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError(f"{path} is empty.")
    return text


def _vault_text(scheme: str, location: str) -> str:
    module, _, name = VAULTS[scheme][2].partition(":")
    place, _, key = location.partition("#")
    text: str = getattr(import_module(module), name)(place)
    if not key:
        return text
    try:
        fields = json.loads(text)
        found = fields[key]
    except (ValueError, TypeError, KeyError, IndexError):
        # The error does not quote the text.
        raise ValueError(f"it is no JSON object with a field {key!r}.") from None
    return found if isinstance(found, str) else json.dumps(found)
