"""Send one GET to an untrusted address: checked, limited, authenticated, redirected, and read within its deadline.

Every hop of a redirect is a conversation of its own: its address is checked, its host's limits hold, and it gets the
credential that is configured for its own host, or none. A credential goes to the hosts that it names and to no other.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urljoin

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from requests import PreparedRequest, Response, Session
from requests.exceptions import InvalidURL, RequestException
from urllib3.exceptions import HTTPError

from ingest_project.core.errors import AddressRejectedError, DownloadRejectedError, SettingsError
from ingest_project.core.settings import (
    Credential,
    Settings,
)
from ingest_project.platform.http.deadlines import Deadline, deadline_in_force
from ingest_project.platform.http.errors import REDIRECTS, failure_from, map_error, parse_retry_after
from ingest_project.platform.http.host_policy import HostPattern, HostRules
from ingest_project.platform.http.limits import HostLimits, LoadLimits
from ingest_project.platform.http.pinned_transport import Connector, PinnedAdapter, Resolver, system_addresses
from ingest_project.platform.http.response import WebResponse
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


REDIRECT_SETTING = "INGEST_MAX_REDIRECTS"
USER_AGENT = "ingest-project"
# Compressed answers cannot be continued, and what they expand to is only known at the end.
_HEADERS = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
_POOLED_HOSTS = 64


@dataclass(frozen=True)
class ContactLimits:
    """What one GET may take.

    Args:
        connect_timeout: for a connection, TLS included.
        read_timeout: without a byte.
        max_redirects: hops after the first address.
    """

    connect_timeout: timedelta = timedelta(seconds=10)
    read_timeout: timedelta = timedelta(seconds=30)
    max_redirects: int = 5

    @property
    def head_time(self) -> timedelta:
        """Until the head of an answer is there: a server that sends it byte by byte is no better than a silent one."""
        return self.connect_timeout + self.read_timeout

    @property
    def timeouts(self) -> tuple[float, float]:
        """As requests takes them, in seconds."""
        return self.connect_timeout.total_seconds(), self.read_timeout.total_seconds()


class WebClient:
    """Contacts what the rules allow; threads share it and its connections.

    Names are resolved by the system, which has time-outs of its own that no deadline here can shorten.

    Args:
        rules: what may be contacted.
        credentials: who we are to which host.
        host_limits: how much is asked of hosts.
        contact: what one GET may take.
        resolver: from host and port to IP addresses.
        ca_file: certificate authorities to trust besides the public ones.
        connections_per_host: idle connections that are kept; as many as conversations per host are right.
    """

    def __init__(  # noqa: PLR0913 - each has a default and is passed by name
        self,
        rules: HostRules,
        *,
        credentials: Iterable[HostCredential] = (),
        host_limits: HostLimits | None = None,
        contact: ContactLimits | None = None,
        resolver: Resolver = system_addresses,
        ca_file: Path | None = None,
        connections_per_host: int = 16,
    ) -> None:
        self._rules = rules
        self._credentials = Credentials(credentials)
        self._hosts = host_limits or HostLimits()
        self._contact = contact or ContactLimits()
        adapter = PinnedAdapter(Connector(rules, resolver), _POOLED_HOSTS, connections_per_host, ca_file)
        self._session = _session(adapter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()

    def check(self, url: str) -> WebAddress:
        """Take an address apart and judge it by its name, without contacting anything.

        Raises:
            AddressRejectedError: it may not be contacted.
        """
        return self._rules.check(url)

    @contextmanager
    def get(  # noqa: PLR0913 - each has a default and is passed by name
        self,
        url: str,
        deadline: Deadline,
        *,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = (200,),
        forgive_breaks: bool = False,
        method: Literal["GET", "HEAD"] = "GET",
    ) -> Iterator[WebResponse]:
        """Ask for an address; the body is read inside the block, and the host's place is held until its end.

        Args:
            url: as it came.
            deadline: of everything, the body included; waiting for a free place is not counted.
            headers: further ones; kept on a redirect, so never a secret.
            accept: statuses that are answers; any other is an error.
            forgive_breaks: not to hold a broken connection against the host, because the caller tries again at once.
            method: HEAD asks for the headers alone.

        Raises:
            AddressRejectedError: the address, or one that it redirects to, may not be contacted.
            DownloadRejectedError: a status that stays, or too many redirects.
            DownloadFailedError: no connection, too slow, cut short, or a status that passes.
            HostThrottledError: the host is left alone for a while.
        """
        address = self._rules.check(url)
        with deadline_in_force(deadline):
            for _hop in range(self._contact.max_redirects + 1):
                with self._hosts.conversation(address.host_and_port, forgive_breaks=forgive_breaks) as waited:
                    deadline.postpone(waited)
                    answer = self._ask(method, address, {**_HEADERS, **(headers or {})}, deadline)
                    try:
                        location = answer.headers.get("Location")
                        if answer.status not in REDIRECTS or not location:
                            self._require(answer, accept)
                            yield answer
                            return
                        answer.discard()
                    finally:
                        answer.close()
                address = self._next_hop(address, location)
        raise DownloadRejectedError(
            address.printable, f"more than {self._contact.max_redirects} redirects (limit: {REDIRECT_SETTING})"
        )

    def _ask(self, method: str, address: WebAddress, headers: dict[str, str], deadline: Deadline) -> WebResponse:
        head = deadline.within(self._contact.head_time)
        try:
            with deadline_in_force(head):
                response = self._send(method, address, headers)
        except InvalidURL:
            failure: Exception = AddressRejectedError(address.printable, "requests does not accept it as an address")
        except (RequestException, HTTPError, OSError) as error:
            failure = failure_from(error, address.printable, head)
        else:
            return WebResponse(address, response.status_code, response.headers, response.raw, deadline)
        # Outside of the handler: what requests raises quotes the address with its query, and must not come along.
        raise failure

    def _send(self, method: str, address: WebAddress, headers: dict[str, str]) -> Response:
        credential = self._credentials.of(address)
        request = PreparedRequest()
        request.prepare_method(method)
        # As it was taken apart and checked: prepared by requests, it would be parsed once more, by other rules.
        request.url = credential.signed(address.url) if credential else address.url
        request.prepare_headers({**headers, **(credential.headers() if credential else {})})
        return self._session.send(
            request, stream=True, timeout=self._contact.timeouts, allow_redirects=False, proxies={}, verify=True
        )

    def _require(self, answer: WebResponse, accept: Collection[int]) -> None:
        if answer.status not in accept:
            answer.discard()
            retry_after = self._hosts.bounded(parse_retry_after(answer.headers.get("Retry-After")))
            raise map_error(answer.status, answer.address.printable, retry_after)

    def _next_hop(self, address: WebAddress, location: str) -> WebAddress:
        with contextlib.suppress(UnicodeError):
            # http.client reads headers as Latin-1; servers that send other characters mean UTF-8.
            location = location.encode("latin-1").decode()
        try:
            url = urljoin(address.url, location)
        except ValueError:
            raise AddressRejectedError(address.printable, "it redirects to something that is not an address") from None
        target = self._rules.check(url)
        if address.scheme == "https" and target.scheme == "http":
            raise AddressRejectedError(target.printable, "a redirect leads from https to http")
        return target


class _Session(Session):
    """A session that never looks at redirects: requests reads the whole body of one into memory."""

    def get_redirect_target(self, resp: Response) -> None:
        """None: the client follows them itself."""


def _session(adapter: PinnedAdapter) -> Session:
    session = _Session()
    session.trust_env = False
    # What one stranger's host sets is nothing that a request to it, or to another, should carry.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def web_client(settings: Settings, total: int | None = None, per_host: int | None = None) -> WebClient:
    """Contacts web hosts within the rules.

    Args:
        settings: the rules.
        total: conversations at a time; those of downloads by default.
        per_host: of those, with one host.

    Raises:
        SettingsError: a host pattern or credential is malformed.
    """
    downloads = settings.downloads
    load = LoadLimits(
        total=total or downloads.concurrency,
        per_host=per_host or downloads.concurrency_per_host,
        failures_to_pause=downloads.failures_to_pause,
        pause=timedelta(seconds=downloads.pause_seconds),
    )
    return WebClient(
        HostRules(downloads.allowed_hosts, downloads.denied_hosts, downloads.allowed_internal_hosts),
        credentials=host_credentials(settings.credentials),
        host_limits=HostLimits(load),
        contact=ContactLimits(
            connect_timeout=timedelta(seconds=downloads.connect_timeout_seconds),
            read_timeout=timedelta(seconds=downloads.read_timeout_seconds),
            max_redirects=downloads.max_redirects,
        ),
        ca_file=downloads.ca_file,
        connections_per_host=load.per_host,
    )


def host_credentials(credentials: Mapping[str, Credential]) -> Iterator[HostCredential]:
    """Of the stored credentials, those that are for web hosts.

    Raises:
        SettingsError: one of them is not complete.
    """
    for name, stored in credentials.items():
        if stored.kind is None:
            continue
        secret = stored.password if stored.kind == "basic" else stored.secret
        if secret is None or not stored.hosts:
            raise SettingsError(f"The credential {name!r} needs hosts and a {stored.kind} secret.")
        try:
            yield HostCredential(
                name=name,
                hosts=tuple(stored.hosts),
                kind=stored.kind,
                username=stored.username or "",
                header=stored.header or "",
                secret=secret,
                plain_http=stored.plain_http,
            )
        except ValueError as error:
            problems = "; ".join(problem["msg"] for problem in getattr(error, "errors", list)())
            raise SettingsError(f"The credential {name!r} cannot be used: {problems}.") from None
