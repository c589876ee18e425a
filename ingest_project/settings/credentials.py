"""Stored credentials: jobs and hosts name them, messages never carry a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from ingest_project.settings.fields import CommaList, Section


class Credential(Section):
    """Who we are to one source or web host. Which fields are used depends on what it is for."""

    username: str | None = Field(None, description="user of FTP, SFTP and HTTP basic authentication")
    password: SecretStr | None = Field(None, description="that user's password")
    private_key_file: Path | None = Field(None, description="SFTP: file with the private key")
    private_key_passphrase: SecretStr | None = Field(None, description="SFTP: passphrase of that key")
    host_key_fingerprints: CommaList = Field(
        default_factory=list, description="SFTP: fingerprints (SHA256:...) of the servers' keys that are accepted"
    )
    access_key_id: str | None = Field(None, description="S3: key id")
    secret_access_key: SecretStr | None = Field(None, description="S3: secret of that key")
    buckets: CommaList = Field(
        default_factory=list, description="S3: buckets that jobs may read with that key, and no other; in-* works"
    )
    sas_token: SecretStr | None = Field(None, description="OneLake and ADLS Gen2: shared access signature")
    account_name: str | None = Field(None, description="ADLS Gen2: storage account of the key")
    account_key: SecretStr | None = Field(None, description="ADLS Gen2: key of that account")
    hosts: CommaList = Field(
        default_factory=list, description="hosts that this is sent to, and no other; *.example.com works"
    )
    kind: Literal["basic", "bearer", "header", "query"] | None = Field(
        None, description="web: user and password, a bearer token, a header, or a signature added to the address"
    )
    header: str | None = Field(None, description="web: name of the header")
    secret: SecretStr | None = Field(None, description="web: the token, the header's value, or the signature")
    plain_http: bool = Field(False, description="web: whether it may be sent without TLS")
