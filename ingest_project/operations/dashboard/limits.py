"""Limits of the console on each client and person: wrong tokens, and actions."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from ingest_project.core.logging import get_logger

logger = get_logger(__name__)

FREE_FAILURES = 5
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0
FORGET_SECONDS = 3_600.0
# For all unknown addresses together: so many at once, and then one more at each interval.
SHARED_FAILURES, SHARED_REFILL_SECONDS = 60, 2.0
MAX_ADDRESSES = 1_024
# A client with one IPv6 address has the whole network of its first bits.
IPV6_PREFIX = 64


@dataclass
class _Failures:
    count: int
    at: float

    def pause(self, now: float) -> float:
        """Return the seconds that are left of the pause after the last failure."""
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
        """Return how long this address must wait; 0 where its attempt may be checked."""
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
        """Forget the failures of an address that has shown the right token."""
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
    """Return what one client has: an address, or the network of an IPv6 address."""
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
    """Count the actions of each viewer: so many at once, and as many again each minute.

    Args:
        per_minute: of one viewer.
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
