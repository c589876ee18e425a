"""Send one GET to an untrusted address: checked, limited, authenticated, redirected, and read within its deadline.

Every hop of a redirect is a conversation of its own: its address is checked, its host's limits hold, and it gets the
credential that is configured for its own host, or none. A credential goes to the hosts that it lists and to no other.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from http.cookiejar import DefaultCookiePolicy
from types import MappingProxyType
from typing import Literal, Self
from urllib.parse import urljoin

from pydantic import SecretStr
from requests import PreparedRequest, Response, Session
from requests.exceptions import InvalidURL, RequestException
from urllib3.exceptions import HTTPError

from ingest_project.core.errors import AddressRejectedError, DownloadRejectedError, SettingsError
from ingest_project.core.settings import Credential, DownloadSettings, Settings
from ingest_project.platform.http.host_policy import HostPattern, HostRules
from ingest_project.platform.http.limits import HostLimits, LoadLimits
from ingest_project.platform.http.pinned_transport import Connector, Deadline, PinnedAdapter, deadline_in_force
from ingest_project.platform.http.response import (
    REDIRECTS,
    WebResponse,
    map_error,
    map_status,
    parse_retry_after,
)
from ingest_project.platform.http.urls import WebAddress

REDIRECT_SETTING = "INGEST_MAX_REDIRECTS"
USER_AGENT = "ingest-project"
# A compressed response cannot be resumed, and its size is only known at the end.
_HEADERS = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
_POOLED_HOSTS = 64
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]+")
_NO_CREDENTIALS: Mapping[str, Credential] = MappingProxyType({})


class WebClient:
    """Contacts the hosts that the rules allow; threads share it and its connections.

    Names are resolved by the system, which has time-outs of its own that no deadline here can shorten.

    Args:
        downloads: host rules, time-outs and limits.
        credentials: the stored ones by name; those for web hosts are used, without a port for the default port only.
        total: conversations at a time; those of downloads by default.
        per_host: of those, with one host.

    Raises:
        SettingsError: a host pattern or credential is malformed.
    """

    def __init__(
        self,
        downloads: DownloadSettings,
        credentials: Mapping[str, Credential] = _NO_CREDENTIALS,
        *,
        total: int | None = None,
        per_host: int | None = None,
    ) -> None:
        self._rules = HostRules(downloads.allowed_hosts, downloads.denied_hosts, downloads.allowed_internal_hosts)
        self._credentials = list(_web_credentials(credentials))
        self._max_redirects = downloads.max_redirects
        self._timeouts = downloads.connect_timeout_seconds, downloads.read_timeout_seconds
        load = LoadLimits(
            total=total or downloads.concurrency,
            per_host=per_host or downloads.concurrency_per_host,
            failures_to_pause=downloads.failures_to_pause,
            pause=timedelta(seconds=downloads.pause_seconds),
        )
        self._hosts = HostLimits(load)
        self._session = _session(PinnedAdapter(Connector(self._rules), _POOLED_HOSTS, load.per_host, downloads.ca_file))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()

    def check(self, url: str) -> WebAddress:
        """Parse an address and check it by its name, without contacting anything.

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
        """Request an address; the body is read inside the block, and the host's slot is held until its end.

        Args:
            url: as it came.
            deadline: of everything, the body included; waiting for a free slot is not counted.
            headers: further ones; kept on a redirect, so never a secret.
            accept: statuses that are responses; any other is an error.
            forgive_breaks: do not count a broken connection against the host, because the caller resumes at once.
            method: HEAD requests the headers alone.

        Raises:
            AddressRejectedError: the address, or one that it redirects to, may not be contacted.
            DownloadRejectedError: a permanent status, or too many redirects.
            DownloadFailedError: no connection, too slow, cut short, or a transient status.
            HostThrottledError: the host is paused.
        """
        address = self._rules.check(url)
        with deadline_in_force(deadline):
            for _hop in range(self._max_redirects + 1):
                with self._hosts.conversation(address.host_and_port, forgive_breaks=forgive_breaks) as waited:
                    deadline.postpone(waited)
                    response = self._request(method, address, {**_HEADERS, **(headers or {})}, deadline)
                    try:
                        location = response.headers.get("Location")
                        if response.status not in REDIRECTS or not location:
                            self._require(response, accept)
                            yield response
                            return
                        response.discard()
                    finally:
                        response.close()
                address = self._next_hop(address, location)
        raise DownloadRejectedError(
            address.printable, f"more than {self._max_redirects} redirects (limit: {REDIRECT_SETTING})"
        )

    def _request(self, method: str, address: WebAddress, headers: dict[str, str], deadline: Deadline) -> WebResponse:
        # A server that sends the headers byte by byte is no better than a silent one.
        until_headers = deadline.within(timedelta(seconds=sum(self._timeouts)))
        try:
            with deadline_in_force(until_headers):
                response = self._send(method, address, headers)
        except InvalidURL:
            failure: Exception = AddressRejectedError(address.printable, "requests does not accept it as an address")
        except (RequestException, HTTPError, OSError) as error:
            failure = map_error(error, address.printable, until_headers)
        else:
            return WebResponse(address, response.status_code, response.headers, response.raw, deadline)
        # Outside of the handler: errors of requests quote the address with its query, and must not be chained.
        raise failure

    def _send(self, method: str, address: WebAddress, headers: dict[str, str]) -> Response:
        url, credential = address.url, self._credential_for(address)
        if credential is not None:
            headers = headers | _authorization(credential)
            url = _signed(url, credential)
        request = PreparedRequest()
        request.prepare_method(method)
        # As it was parsed and checked: requests would parse it once more, by other rules.
        request.url = url
        request.prepare_headers(headers)
        return self._session.send(
            request, stream=True, timeout=self._timeouts, allow_redirects=False, proxies={}, verify=True
        )

    def _credential_for(self, address: WebAddress) -> Credential | None:
        """Return the first credential that lists this scheme, host and port."""
        for pattern, credential in self._credentials:
            if pattern.names_origin(address) and (address.scheme == "https" or credential.plain_http):
                return credential
        return None

    def _require(self, response: WebResponse, accept: Collection[int]) -> None:
        if response.status not in accept:
            response.discard()
            retry_after = self._hosts.bounded(parse_retry_after(response.headers.get("Retry-After")))
            raise map_status(response.status, response.address.printable, retry_after)

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


def web_client(settings: Settings, total: int | None = None, per_host: int | None = None) -> WebClient:
    """Make the client of web hosts that these settings describe, see `WebClient`."""
    return WebClient(settings.downloads, settings.credentials, total=total, per_host=per_host)


class _Session(Session):
    """A session that never follows redirects: requests reads the whole body of one into memory."""

    def get_redirect_target(self, resp: Response) -> None:
        """Return None: the client follows them."""


def _session(adapter: PinnedAdapter) -> Session:
    session = _Session()
    session.trust_env = False
    # No request to an untrusted host, or to another, may carry a cookie that one set.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _web_credentials(credentials: Mapping[str, Credential]) -> Iterator[tuple[HostPattern, Credential]]:
    """Yield the stored credentials for web hosts, by host pattern.

    Raises:
        SettingsError: one of them is not complete; its secret is not quoted.
    """
    for name, stored in credentials.items():
        if stored.kind is None:
            continue
        problem = _problem(stored)
        if problem:
            raise SettingsError(f"The credential {name!r} cannot be used: {problem}.")
        for host in stored.hosts:
            yield HostPattern.parse(host), stored


def _problem(stored: Credential) -> str:
    secret = _secret(stored).get_secret_value()
    if not secret or not stored.hosts:
        return f"it needs hosts and a {stored.kind} secret"
    if not secret.isprintable() or not secret.isascii():
        return "a secret must be one line of printable ASCII"
    if (stored.kind == "basic") != bool(stored.username) or (stored.kind == "header") != bool(stored.header):
        return "basic needs a username, header needs a header, no other kind has either"
    if stored.header and not _HEADER_NAME.fullmatch(stored.header):
        return "its header is not the name of one"
    return ""


def _secret(stored: Credential) -> SecretStr:
    return (stored.password if stored.kind == "basic" else stored.secret) or SecretStr("")


def _authorization(credential: Credential) -> dict[str, str]:
    secret = _secret(credential).get_secret_value()
    if credential.kind == "basic":
        pair = base64.b64encode(f"{credential.username}:{secret}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    if credential.kind == "bearer":
        return {"Authorization": f"Bearer {secret}"}
    return {credential.header or "": secret} if credential.kind == "header" else {}


def _signed(url: str, credential: Credential) -> str:
    if credential.kind != "query":
        return url
    return f"{url}{'&' if '?' in url else '?'}{_secret(credential).get_secret_value().lstrip('?&')}"
