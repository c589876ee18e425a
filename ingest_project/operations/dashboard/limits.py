"""Limits of the console: connections, headers and bodies of requests, and each client's wrong tokens and actions."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from ingest_project.core.logging import get_logger

# A search text of 2,000 characters takes up to 24,000 bytes in an address.
MAX_HEAD_BYTES = 65_536
MAX_CONNECTIONS = 500
HEAD_SECONDS = 10.0
# Time for requests in progress after the server was told to stop.
GRACE_SECONDS = 3


def server_config(app: ASGIApp) -> uvicorn.Config:
    """Return the server's configuration for an application."""
    return uvicorn.Config(
        app,
        port=0,
        http=PromptProtocol,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        # The server's own log has another format, and a line for every request.
        log_config=None,
        access_log=False,
        server_header=False,
    )


class PromptProtocol(H11Protocol):
    """HTTP/1.1 on one connection, which ends if the head of a request does not arrive, or an answer is not taken.

    The server's own timeout applies only to silent connections: one byte per second would keep a connection open.
    """

    _last: tuple[RequestResponseCycle | None, int] = (None, 0)
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as there
        """Start the timer."""
        super().connection_made(transport)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._end_if_idle)

    def _end_if_idle(self) -> None:
        """End the connection if, since the last check, no request has begun and no byte of an answer was taken."""
        to_send = self.transport.get_write_buffer_size()
        is_answering = self.cycle is not None and not self.cycle.response_complete and not to_send
        if self._last == (self.cycle, to_send) and not is_answering:
            # `close` would wait until what is left is sent.
            self.transport.abort()
            return
        self._last = self.cycle, to_send
        self._look_again()


CSRF_FIELD = "csrf_token"
MAX_BODY_BYTES = 1024**2
# A form with files must contain the token within this number of bytes.
MAX_BEGINNING_BYTES = 65_536
MAX_FIELDS = 1_000


class BoundedBody:
    """The body of a request, of which the beginning can be read before the application reads all of it.

    Args:
        request: request with the body.
        max_bytes: maximum size of the body.
        seconds: time after which an incomplete body is refused.

    Raises:
        HTTPException: 413: the request announces more bytes.
    """

    def __init__(self, request: Request, max_bytes: int, seconds: float) -> None:
        self._request = request
        self._receive = request.receive
        self._max_bytes = max_bytes
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._size = 0
        self._complete = False
        self._read: list[Message] = []
        if int(_decimal(request.headers.get("content-length", "")) or 0) > max_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """Return the next message, starting with those that were read in advance.

        Raises:
            HTTPException: the body is too large or takes too long.
        """
        if self._read:
            return self._read.pop(0)
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "The request took too long.") from None
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body")
        if self._size > self._max_bytes:
            raise self._too_large()
        return message

    async def csrf_token(self) -> str:
        """Return the CSRF token in the form; empty if the beginning of the body has none."""
        kind = self._request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/x-www-form-urlencoded":
            return _token_of_form(await self._beginning(lambda _: self._complete))
        if kind == "multipart/form-data":
            return _token_of_parts(await self._beginning(lambda read: bool(_token_of_parts(read))))
        return ""

    async def _beginning(self, suffices: Callable[[bytes], bool]) -> bytes:
        """Read until `suffices` returns True, the body ends, or MAX_BEGINNING_BYTES are read."""
        messages: list[Message] = []
        content = b""
        while not self._complete and not suffices(content):
            messages.append(await self.receive())
            content += messages[-1].get("body", b"")
            if len(content) > MAX_BEGINNING_BYTES and self._max_bytes > MAX_BODY_BYTES:
                break
        self._read = messages
        return content

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"The request is too large: at most {self._max_bytes:,} bytes are taken.")


def _decimal(text: str) -> str:
    return text if text.isascii() and text.isdigit() and len(text) < 20 else ""  # noqa: PLR2004 - 64 bits


def _token_of_form(content: bytes) -> str:
    try:
        fields = parse_qs(content.decode("utf-8", "replace"), max_num_fields=MAX_FIELDS)
    except ValueError:
        return ""
    return fields.get(CSRF_FIELD, [""])[0]


def _token_of_parts(content: bytes) -> str:
    """Return the value of the CSRF part, once it has arrived completely."""
    _, _, after = content.partition(f'name="{CSRF_FIELD}"'.encode())
    _, _, value = after.partition(b"\r\n\r\n")
    value, ended, _ = value.partition(b"\r\n")
    return value.decode("utf-8", "replace") if ended else ""


logger = get_logger(__name__)

FREE_FAILURES = 5
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0
FORGET_SECONDS = 3_600.0
# Token bucket shared by all unknown addresses: this burst, then one more failure per interval.
SHARED_FAILURES, SHARED_REFILL_SECONDS = 60, 2.0
MAX_ADDRESSES = 1_024
# A client with one IPv6 address usually has the whole network with this prefix length.
IPV6_PREFIX = 64


@dataclass
class _Failures:
    count: int
    at: float

    def pause(self, now: float) -> float:
        """Return the remaining seconds of the pause after the last failure."""
        over = self.count - FREE_FAILURES
        if over <= 0:
            return 0.0
        return self.at + min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(over - 1, 30)) - now


class GuessLimits:
    """Count wrong tokens and decide how long an address must wait before its next attempt is checked.

    An address that has sent the right token is trusted: others' guesses do not lock it out.
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        self._trusted: OrderedDict[str, None] = OrderedDict()
        self._shared = float(SHARED_FAILURES)
        self._shared_at = 0.0

    def wait_seconds(self, address: str, now: float) -> float:
        """Return how long this address must wait in seconds; 0 if its attempt may be checked."""
        who = network_of(address)
        failures = self._failures.get(who)
        own = failures.pause(now) if failures else 0.0
        if who in self._trusted:
            return max(0.0, own)
        left = self._refilled(now)
        return max(0.0, own, 0.0 if left >= 1 else (1 - left) * SHARED_REFILL_SECONDS)

    def failed(self, address: str, now: float) -> None:
        """Count a wrong token."""
        who = network_of(address)
        known = self._failures.pop(who, None)
        count = known.count + 1 if known and now - known.at < FORGET_SECONDS else 1
        self._failures[who] = _Failures(count, now)
        _keep_newest(self._failures)
        self._shared = max(0.0, self._refilled(now) - 1)
        if count > FREE_FAILURES:
            logger.warning("monitor_tokens_guessed", address=who, failures=count)

    def succeeded(self, address: str) -> None:
        """Discard the failures of an address that has sent a correct token."""
        who = network_of(address)
        self._failures.pop(who, None)
        self._trusted.pop(who, None)
        self._trusted[who] = None
        _keep_newest(self._trusted)

    def _refilled(self, now: float) -> float:
        self._shared = min(float(SHARED_FAILURES), self._shared + (now - self._shared_at) / SHARED_REFILL_SECONDS)
        self._shared_at = now
        return self._shared


def _keep_newest(entries: OrderedDict[str, Any]) -> None:
    while len(entries) > MAX_ADDRESSES:
        entries.popitem(last=False)


def network_of(address: str) -> str:
    """Return the unit that belongs to one client: an IPv4 address, or the network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))


class ActionLimits:
    """Limits the actions of each viewer with a token bucket that is refilled within a minute.

    Args:
        per_minute: number of actions of one viewer.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = float(per_minute)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, viewer: str, now: float | None = None) -> float:
        """Count one action and return 0; or return the seconds after which the next one is allowed."""
        now = time.monotonic() if now is None else now
        left, at = self._left.pop(viewer, (self._per_minute, now))
        left = min(self._per_minute, left + (now - at) * self._per_minute / 60)
        allowed = left >= 1
        self._left[viewer] = (left - allowed, now)
        _keep_newest(self._left)
        return 0.0 if allowed else (1 - left) * 60 / self._per_minute
