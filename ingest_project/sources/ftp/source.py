"""Files on FTP servers, `source_type` ftp; with TLS unless a job and its credentials say otherwise.

A job's `source_config`: `host`, `port`, `path`, `credentials` (none: anonymous), `tls` (`explicit`, `implicit`,
`none`), `encoding` of file names (utf-8), `time_zone` of listings (UTC; only servers without MLSD and MDTM need it).
"""

from __future__ import annotations

import ftplib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Any, cast, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import SecretStr

from ingest_project.core.errors import PermanentError, SourceAccessDeniedError
from ingest_project.sources.context import SourceContext
from ingest_project.sources.ftp.connection import FtpConnection
from ingest_project.sources.ftp.wire import NOT_UNDERSTOOD, FtpWire, Tls, code_of, login_failure
from ingest_project.sources.limits import SourceLimits
from ingest_project.sources.server_config import Server, ServerSettings, server_for
from ingest_project.sources.server_source import ServerSource, server_source

PORTS: dict[Tls, int] = {"explicit": 21, "implicit": 990, "none": 21}
# What anonymous servers ask for, by custom an address to write to.
ANONYMOUS = ("anonymous", "anonymous@")


@dataclass(frozen=True)
class FtpLogin:
    """How one account is reached; connections of equal logins are the same.

    Args:
        password: None for anonymous access.
        ca_file: authorities that are trusted beside the system's.
        zone: of the times in the server's LIST.
        limits: what it may take.
    """

    server: Server
    password: SecretStr | None
    tls: Tls
    ca_file: Path | None
    zone: tzinfo
    limits: SourceLimits

    def connect(self) -> FtpConnection:
        """A new connection, logged in.

        Raises:
            SourceUnreachableError: no answer, or not now.
            SourceAccessDeniedError: the login or the certificate is not accepted, or TLS is not offered.
        """
        wire = self._begun()
        try:
            features = wire.begin_session(*self._user_and_password())
        except BaseException as error:
            wire.close()
            if isinstance(error, ftplib.Error | OSError | EOFError | ValueError):
                raise login_failure(error, self.server.location) from error
            raise
        return FtpConnection(wire, features, self.server.location, self.zone, self.limits)

    def _begun(self) -> FtpWire:
        connection = self.server.connect(self.limits.timeout_seconds)
        try:
            return FtpWire(self.server.host, connection, self.tls, self.ca_file)
        except ftplib.error_perm as error:
            # 530 and 534 are how servers without a certificate answer AUTH.
            if self.tls == "explicit" and code_of(error) in {*NOT_UNDERSTOOD, "530", "534"}:
                raise SourceAccessDeniedError(
                    self.server.location,
                    'it does not offer TLS. Say "tls": "none" in source_config to do without; a password is sent '
                    "that way only where its credentials have plain_http",
                ) from error
            raise login_failure(error, self.server.location) from error
        except (ftplib.Error, OSError, EOFError, ValueError) as error:
            raise login_failure(error, self.server.location) from error

    def _user_and_password(self) -> tuple[str, str]:
        if self.password is None:
            return (self.server.username, "") if self.server.username else ANONYMOUS
        return self.server.username, self.password.get_secret_value()


def open_ftp(
    source_config: Mapping[str, Any],
    access: SourceContext,
    servers: ServerSettings | None = None,
) -> ServerSource:
    """One folder of an FTP server.

    Raises:
        UnknownCredentialsError, PermanentError: the config names no such credentials, or makes no sense.
    """
    servers = servers or ServerSettings.of(access.settings, access.clients.lists)
    tls = _tls(source_config)
    server, guard, credential = server_for("ftp", source_config, access.credentials, PORTS[tls], servers)
    password = None if credential is None else credential.password
    if tls == "none" and password is not None and credential is not None and not credential.plain_http:
        raise PermanentError(
            f'{server.location}: a password is not sent without TLS ("tls": "none") unless its credentials have '
            "plain_http."
        )
    login = FtpLogin(server, password, tls, servers.ca_file, _zone(source_config), servers.limits)
    return server_source(source_config, login, guard, servers)


def _tls(source_config: Mapping[str, Any]) -> Tls:
    tls = source_config.get("tls", "explicit")
    if tls not in get_args(Tls):
        raise PermanentError(f"tls must be one of {', '.join(get_args(Tls))}, not {str(tls)[:20]!r}.")
    return cast("Tls", tls)


def _zone(source_config: Mapping[str, Any]) -> tzinfo:
    name = source_config.get("time_zone", "UTC")
    try:
        return ZoneInfo(str(name))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise PermanentError(f"time_zone {str(name)[:60]!r} is not a known time zone.") from error
