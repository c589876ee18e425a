"""Send one GET to an untrusted address: checked, limited, authenticated, redirected, and read within its deadline.

Every hop of a redirect is a separate request: its address is checked, its host's limits apply, and it gets the
credential that is configured for its own host, if any. A credential is sent only to the hosts that it lists.

A host that sends `Retry-After`, or that failed several times in a row, is paused: its next callers fail immediately
with the time of the next attempt, instead of occupying a thread. After the pause, one trial request goes first.
"""

from __future__ import annotations

import base64
import contextlib
import re
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Literal, Self
from urllib.parse import urljoin

from pydantic import SecretStr
from requests import PreparedRequest, Response
from requests.exceptions import InvalidURL, RequestException
from urllib3.exceptions import HTTPError

from ingest_project.core.errors import (
    AddressRejectedError,
    DownloadFailedError,
    DownloadRejectedError,
    HostThrottledError,
    IngestError,
    SettingsError,
)
from ingest_project.core.secrets import renewed
from ingest_project.core.settings import Credential, DownloadSettings, Settings
from ingest_project.platform.http import WebAddress
from ingest_project.platform.http.host_policy import HostPattern, HostRules
from ingest_project.platform.http.pinned_transport import Connector, Deadline, PinnedAdapter, deadline_in_force
from ingest_project.platform.http.response import REDIRECTS, WebResponse, map_error, map_status, parse_retry_after

REDIRECT_SETTING = "INGEST_MAX_REDIRECTS"
USER_AGENT = "ingest-project"
_REFUSALS = frozenset({401, 403})
# Request no compression: a compressed response cannot be resumed, and its size is only known at the end.
_HEADERS = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
_POOLED_HOSTS = 64
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]+")
_NO_CREDENTIALS: Mapping[str, Credential] = MappingProxyType({})
# Messages name hosts, so the number of remembered ones is bounded.
_MAX_REMEMBERED = 10_000
LONGEST_RETRY_AFTER = timedelta(hours=1)


@dataclass(frozen=True)
class LoadLimits:
    """Limits of the load on other hosts.

    Args:
        total: concurrent requests.
        per_host: concurrent requests to one host.
        failures_to_pause: transient failures in a row after which a host is paused.
        pause: length of that pause.
        longest_retry_after: a longer `Retry-After` is cut to this.
        longest_wait: longest wait for a free slot; after that the host counts as busy.
    """

    total: int = 32
    per_host: int = 8
    failures_to_pause: int = 5
    pause: timedelta = timedelta(seconds=60)
    longest_retry_after: timedelta = LONGEST_RETRY_AFTER
    longest_wait: timedelta = timedelta(minutes=5)


@dataclass
class _Host:
    """State of a host that is in use, failing or paused.

    Args:
        free: notified when a slot becomes free.
        active: number of current requests.
        waiting: number of threads that wait for a slot.
        failures: transient failures in a row.
        paused_until: monotonic time of the end of its pause.
        reason: reason of its pause.
        needs_trial: True if it failed too often, so that one trial request goes first after the pause.
        on_trial: True while the trial request is running.
    """

    free: threading.Condition
    active: int = 0
    waiting: int = 0
    failures: int = 0
    paused_until: float = 0.0
    reason: str = ""
    needs_trial: bool = False
    on_trial: bool = False

    @property
    def unremarkable(self) -> bool:
        return not (self.active or self.waiting or self.failures or self.paused_until > time.monotonic())


class HostLimits:
    """Enforces the load limits in one process; its threads share it.

    Args:
        limits: limits of the load.
    """

    def __init__(self, limits: LoadLimits | None = None) -> None:
        self._limits = limits or LoadLimits()
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}
        self._total = threading.BoundedSemaphore(self._limits.total)

    @contextmanager
    def request_slot(self, host: str, *, forgive_breaks: bool = False) -> Iterator[float]:
        """Hold a slot for a request to a host, and record its result.

        A `DownloadFailedError` that leaves the block counts against the host, and its `retry_after` is applied. Any
        other exit counts as a success, except for errors that the host did not cause.

        Args:
            host: host and port.
            forgive_breaks: do not count a broken connection, because the caller resumes immediately.

        Yields:
            seconds spent waiting for the slot.

        Raises:
            HostThrottledError: the host is paused, or no slot became free.
        """
        started = time.monotonic()
        known = self._enter(host)
        try:
            self._take_slot(host, started)
            try:
                yield time.monotonic() - started
            finally:
                self._total.release()
        except DownloadFailedError as failure:
            self._leave(host, known, failure=None if failure.cut and forgive_breaks else failure)
            raise
        except BaseException as error:
            # A refusal counts as a response, and a full disk or a stopped process is not the host's failure.
            self._leave(
                host, known, answered=isinstance(error, IngestError) and not isinstance(error, HostThrottledError)
            )
            raise
        else:
            self._leave(host, known, answered=True)

    def bounded(self, retry_after: timedelta | None) -> timedelta | None:
        """Return a host's `Retry-After`, cut to the configured maximum."""
        return None if retry_after is None else min(retry_after, self._limits.longest_retry_after)

    def _enter(self, host: str) -> _Host:
        until = time.monotonic() + self._limits.longest_wait.total_seconds()
        with self._lock:
            known = self._hosts.setdefault(host, _Host(threading.Condition(self._lock)))
            self._require_open(host, known)
            while known.active >= self._limits.per_host:
                self._wait(host, known, until)
                self._require_open(host, known)
            known.active += 1
            known.on_trial = known.needs_trial
        return known

    def _wait(self, host: str, known: _Host, until: float) -> None:
        known.waiting += 1
        try:
            if not known.free.wait(until - time.monotonic()):
                raise HostThrottledError(host, "too many downloads from it at a time", self._limits.pause)
        finally:
            known.waiting -= 1

    def _require_open(self, host: str, known: _Host) -> None:
        left = known.paused_until - time.monotonic()
        if left > 0:
            raise HostThrottledError(host, known.reason, timedelta(seconds=left))
        if known.on_trial:
            raise HostThrottledError(host, f"{known.reason}; one request is trying it now", self._limits.pause)

    def _leave(
        self, host: str, known: _Host, *, answered: bool = False, failure: DownloadFailedError | None = None
    ) -> None:
        with self._lock:
            known.active -= 1
            known.on_trial = False
            if answered:
                known.failures, known.needs_trial = 0, False
            if failure:
                self._remember(known, failure)
                # Wake all waiting threads: if the host is now paused, they must fail.
                known.free.notify_all()
            else:
                known.free.notify()
            if known.unremarkable:
                self._hosts.pop(host, None)
            elif len(self._hosts) > _MAX_REMEMBERED:
                self._forget()

    def _remember(self, known: _Host, failure: DownloadFailedError) -> None:
        known.failures += 1
        pause = timedelta(0)
        if known.failures >= self._limits.failures_to_pause:
            pause, known.reason = self._limits.pause, f"it failed {known.failures} times in a row"
            known.needs_trial = True
        requested = self.bounded(failure.retry_after)
        if requested and requested >= pause:
            pause, known.reason = requested, "it requested a pause (Retry-After)"
        known.paused_until = max(known.paused_until, time.monotonic() + pause.total_seconds())

    def _forget(self) -> None:
        for host in [name for name, known in self._hosts.items() if not (known.active or known.waiting)]:
            del self._hosts[host]

    def _take_slot(self, host: str, started: float) -> None:
        left = started + self._limits.longest_wait.total_seconds() - time.monotonic()
        if not self._total.acquire(timeout=max(0.0, left)):
            raise HostThrottledError(host, "too many downloads at a time", self._limits.pause)


class WebClient:
    """Sends requests to the hosts that the rules allow; threads share it and its connections.

    The system resolves names, with its own timeouts, which no deadline here can shorten.

    Args:
        downloads: host rules, timeouts and limits.
        credentials: stored credentials by name, of which those for web hosts are used; one whose host has no port
            applies to the default port only.
        total: limit of concurrent requests; that of downloads by default.
        per_host: limit of concurrent requests to one host.

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
        # Use no session of requests: it would follow redirects and keep cookies, and takes time for both.
        self._adapter = PinnedAdapter(Connector(self._rules), _POOLED_HOSTS, load.per_host, downloads.ca_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections."""
        self._adapter.close()

    def check(self, url: str) -> WebAddress:
        """Parse an address and check its host by name, without any network access.

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
            url: address as received.
            deadline: deadline for everything including the body, but without the wait for a free slot.
            headers: further headers; they are also sent after a redirect, so they must not contain a secret.
            accept: accepted statuses; any other is an error.
            forgive_breaks: do not count a broken connection against the host, because the caller resumes immediately.
            method: GET, or HEAD for the headers only.

        Raises:
            AddressRejectedError: the address, or one that it redirects to, may not be contacted.
            DownloadRejectedError: a permanent status, or too many redirects.
            DownloadFailedError: no connection, too slow, cut short, or a transient status.
            HostThrottledError: the host is paused.
        """
        address, sent = self._rules.check(url), {**_HEADERS, **(headers or {})}
        with deadline_in_force(deadline):
            for _hop in range(self._max_redirects + 1):
                with self._response(method, address, sent, deadline, forgive_breaks=forgive_breaks) as response:
                    location = response.headers.get("Location")
                    if response.status not in REDIRECTS or not location:
                        self._require(response, accept)
                        yield response
                        return
                    response.discard()
                address = self._next_hop(address, location)
        raise DownloadRejectedError(
            address.redacted, f"more than {self._max_redirects} redirects (limit: {REDIRECT_SETTING})"
        )

    @contextmanager
    def _response(
        self, method: str, address: WebAddress, headers: dict[str, str], deadline: Deadline, *, forgive_breaks: bool
    ) -> Iterator[WebResponse]:
        """Request one address and accept any status; the host's slot is held until the end of the block."""
        with self._hosts.request_slot(address.host_and_port, forgive_breaks=forgive_breaks) as waited:
            deadline.postpone(waited)
            with closing(self._request(method, address, headers, deadline)) as response:
                yield response

    def _request(self, method: str, address: WebAddress, headers: dict[str, str], deadline: Deadline) -> WebResponse:
        # Bound the time for the headers: a server that sends them byte by byte is treated like a silent one.
        until_headers = deadline.within(timedelta(seconds=sum(self._timeouts)))
        try:
            with deadline_in_force(until_headers):
                response = self._send(method, address, headers)
        except InvalidURL:
            failure: Exception = AddressRejectedError(address.redacted, "requests does not accept it as an address")
        except (RequestException, HTTPError, OSError) as error:
            failure = map_error(error, address.redacted, until_headers)
        else:
            return WebResponse(address, response.status_code, response.headers, response.raw, deadline)
        # Raise outside the handler: exceptions of requests quote the address with its query, and must not be chained.
        raise failure

    def _send(self, method: str, address: WebAddress, headers: dict[str, str]) -> Response:
        credential = self._credential_for(address)
        if credential is None:
            return self._send_prepared(method, address.url, headers)
        used = _secret(credential).get_secret_value()
        response = self._send_prepared(method, _signed(address.url, credential), headers | _authorization(credential))
        if response.status_code in _REFUSALS and renewed(_secret(credential), used):
            response.close()
            url = _signed(address.url, credential)
            response = self._send_prepared(method, url, headers | _authorization(credential))
        return response

    def _send_prepared(self, method: str, url: str, headers: dict[str, str]) -> Response:
        request = PreparedRequest()
        request.prepare_method(method)
        # Set the checked address directly: requests would parse it again by other rules.
        request.url = url
        request.prepare_headers(headers)
        return self._adapter.send(request, stream=True, timeout=self._timeouts, verify=True, proxies={})

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
            raise map_status(response.status, response.address.redacted, retry_after)

    def _next_hop(self, address: WebAddress, location: str) -> WebAddress:
        with contextlib.suppress(UnicodeError):
            # http.client decodes headers as Latin-1; servers that send other characters mean UTF-8.
            location = location.encode("latin-1").decode()
        try:
            url = urljoin(address.url, location)
        except ValueError:
            raise AddressRejectedError(address.redacted, "it redirects to something that is not an address") from None
        target = self._rules.check(url)
        if address.scheme == "https" and target.scheme == "http":
            raise AddressRejectedError(target.redacted, "a redirect leads from https to http")
        return target


def web_client(settings: Settings, total: int | None = None, per_host: int | None = None) -> WebClient:
    """Create the client for web hosts from the settings, see `WebClient`."""
    return WebClient(settings.downloads, settings.credentials, total=total, per_host=per_host)


def _web_credentials(credentials: Mapping[str, Credential]) -> Iterator[tuple[HostPattern, Credential]]:
    """Yield the stored credentials for web hosts, by host pattern.

    Raises:
        SettingsError: a credential is incomplete; the message does not quote its secret.
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
