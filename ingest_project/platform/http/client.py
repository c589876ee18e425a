"""One GET to an address from a stranger: checked, limited, authenticated, redirected, and read within its deadline.

Every hop of a redirect is a conversation of its own: its address is checked, its host's limits hold, and it gets the
credential that is configured for its own host, or none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urljoin

from requests import PreparedRequest, Response, Session
from requests.exceptions import InvalidURL, RequestException
from urllib3.exceptions import HTTPError

from ingest_project.core.errors import AddressRejectedError, DownloadRejectedError
from ingest_project.platform.http.credentials import Credentials, HostCredential
from ingest_project.platform.http.deadlines import Deadline, deadline_in_force
from ingest_project.platform.http.errors import REDIRECTS, failure_from, failure_of, parse_retry_after
from ingest_project.platform.http.host_policy import HostRules
from ingest_project.platform.http.limits import HostLimits
from ingest_project.platform.http.pinned_transport import Connector, PinnedAdapter, Resolver, system_addresses
from ingest_project.platform.http.response import WebResponse
from ingest_project.platform.http.urls import WebAddress

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
        allow_downgrade: whether a redirect may lead from https to http.
    """

    connect_timeout: timedelta = timedelta(seconds=10)
    read_timeout: timedelta = timedelta(seconds=30)
    max_redirects: int = 5
    allow_downgrade: bool = False

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
            raise failure_of(answer.status, answer.address.printable, retry_after)

    def _next_hop(self, address: WebAddress, location: str) -> WebAddress:
        with contextlib.suppress(UnicodeError):
            # http.client reads headers as Latin-1; servers that send other characters mean UTF-8.
            location = location.encode("latin-1").decode()
        try:
            url = urljoin(address.url, location)
        except ValueError:
            raise AddressRejectedError(address.printable, "it redirects to something that is not an address") from None
        target = self._rules.check(url)
        if address.scheme == "https" and target.scheme == "http" and not self._contact.allow_downgrade:
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
