"""Who we are to which host. A credential goes to the hosts that it names and to no other, also after a redirect."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ingest_project.platform.http.host_policy import HostPattern
from ingest_project.platform.http.urls import WebAddress


class HostCredential(BaseModel):
    """How one group of hosts knows us.

    Args:
        name: for people and logs.
        hosts: patterns (see `HostPattern`); without a port they mean the scheme's default port only.
        kind: what is sent: user and password, a bearer token, a header, or a signature added to the query.
        username: for `basic`.
        header: name of the header, for `header`.
        secret: the password, the token, the header's value, or the query (`sv=…&sig=…`).
        plain_http: whether it may be sent without TLS.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    hosts: tuple[str, ...] = Field(min_length=1)
    kind: Literal["basic", "bearer", "header", "query"]
    username: str = ""
    header: str = Field("", pattern=r"^[A-Za-z0-9-]*$")
    secret: SecretStr
    plain_http: bool = False

    @field_validator("secret")
    @classmethod
    def _one_line(cls, secret: SecretStr) -> SecretStr:
        value = secret.get_secret_value()
        if not value or not value.isprintable() or not value.isascii():
            raise ValueError("a secret must be one line of printable ASCII")
        return secret

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.kind == "basic") != bool(self.username) or (self.kind == "header") != bool(self.header):
            raise ValueError("basic needs a username, header needs a header, no other kind has either")
        return self

    def headers(self) -> dict[str, str]:
        """What to send with a request."""
        secret = self.secret.get_secret_value()
        if self.kind == "basic":
            pair = base64.b64encode(f"{self.username}:{secret}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        if self.kind == "bearer":
            return {"Authorization": f"Bearer {secret}"}
        return {self.header: secret} if self.kind == "header" else {}

    def signed(self, url: str) -> str:
        """The address to request, with the signature where this is one."""
        if self.kind != "query":
            return url
        return f"{url}{'&' if '?' in url else '?'}{self.secret.get_secret_value().lstrip('?&')}"


class Credentials:
    """All of them, found by the host that is contacted; the first that names it wins."""

    def __init__(self, credentials: Iterable[HostCredential] = ()) -> None:
        self._entries = [
            (HostPattern.parse(host), credential) for credential in credentials for host in credential.hosts
        ]

    def of(self, address: WebAddress) -> HostCredential | None:
        """The credential for this scheme, host and port; None when nobody configured one."""
        for pattern, credential in self._entries:
            if pattern.names_origin(address) and (address.scheme == "https" or credential.plain_http):
                return credential
        return None
