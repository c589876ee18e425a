"""Create keys of items, prefetch batches, and isolate the item that makes a batch fail.

A key is a readable name with a 128-bit hash of the item's identity, or an hour in Dagster's format. Nobody can find a
collision of 128 bits by trial; with 40 bits that took seconds.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import TypeVar

DIGEST_BYTES = 16
# Run tags, URLs and file names contain a key; PostgreSQL refuses tags over 2.7 KB, file systems names over 255 bytes.
NAME_BYTES = 80
# Dagster's own format of hourly partitions, e.g. `2026-01-15-10:00`, in UTC.
HOUR_FORMAT = "%Y-%m-%d-%H:00"
_AS_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_TWO_LETTERS = [first + second for first in _BASE32 for second in _BASE32]
_SHIFTS = range(120, -1, -10)
# Runs read tens of thousands of messages at a time.
OBJECTS_PER_COLLECTION = 100_000
Item = TypeVar("Item")
Key = TypeVar("Key")


def digest_of(*parts: object) -> str:
    """Hash the parts into 26 characters: 128 bits in base32, lower case.

    The parts are hashed as one JSON array, so that different lists of parts never give the same text.

    Args:
        parts: any values that JSON can represent; lone surrogates are distinguished too.
    """
    digest = hashlib.sha256(_AS_JSON(parts).encode()).digest()[:DIGEST_BYTES]
    # Base32 pads 128 bits with two zero bits. The module `base64` takes three times as long, for every listed file.
    bits = int.from_bytes(digest) << 2
    return "".join([_TWO_LETTERS[bits >> shift & 1023] for shift in _SHIFTS])


def key_of(name: str, *parts: object, keep_end: bool = True) -> str:
    """Build a key from a readable name and the hash of the item's identity, e.g. `a.csv~mfrggzdfmztwq2lknnwg23tpoa`.

    It contains only letters, digits and `_.-~`, and has at most 107 bytes.

    Args:
        name: any text; it is not hashed.
        parts: everything that distinguishes this key from others.
        keep_end: keep the end of a long name, which contains a file's extension, instead of the beginning.
    """
    return f"{_readable(name, keep_end=keep_end)}~{digest_of(*parts)}"


def grouped(pairs: Iterable[tuple[Key, Item]]) -> dict[Key, list[Item]]:
    """Collect the values of each key, both in the order in which they come."""
    found: dict[Key, list[Item]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def as_utc(moment: datetime) -> datetime:
    """Convert a time to UTC; a time without a zone counts as UTC.

    Raises:
        OverflowError: the UTC time is outside the years 1 to 9999.
    """
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def hour_key(moment: datetime) -> str:
    """Return the partition key of the hour that a moment is in."""
    # Python leaves out the zeros before a year of three digits, and reads none without them.
    return moment.astimezone(UTC).strftime(HOUR_FORMAT).zfill(16)


def parse_hour_key(partition: str) -> datetime:
    """Return the start of the hour of a partition key.

    Raises:
        ValueError: the text is not the key of an hour.
    """
    return datetime.strptime(partition, HOUR_FORMAT).replace(tzinfo=UTC)


def end_of(hour: datetime) -> datetime:
    """Return the start of the next hour."""
    return hour + timedelta(hours=1)


@contextmanager
def prefetch(items: Generator[Item, None, None]) -> Iterator[Iterator[Item]]:
    """Iterate over a generator that produces its next item in a background thread while the caller uses the last one.

    An exception of the generator is raised when the caller requests the next item. When the block ends, the generator
    and the thread have ended, too.

    Args:
        items: yields anything but None.
    """
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="prefetch") as worker:
        yield _prefetched(items, worker)


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Run Python's cyclic garbage collector less often, for code that creates many objects without cycles.

    Otherwise these objects trigger frequent collections, which take longer than the work itself.
    """
    usual = gc.get_threshold()
    gc.set_threshold(OBJECTS_PER_COLLECTION, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def store_bisecting(
    items: Sequence[Item], store: Callable[[Sequence[Item]], object], is_item_fault: Callable[[Exception], bool]
) -> list[tuple[Item, Exception]]:
    """Store all items in one call; if that fails, store the halves, down to single items.

    One bad item among n costs about 2 log2(n) more calls; n bad ones cost 2n.

    Args:
        items: items in the order of storing. An empty sequence stores nothing.
        store: stores consecutive items. A call that raises must have stored none of them, or storing them again must be
            idempotent.
        is_item_fault: returns True for an error that an item may have caused, False for one of the store itself, such
            as a database that does not answer, for which halving would not help.

    Returns:
        the items that could not be stored even alone, in order, each with its error.

    Raises:
        Exception: an error of `store` that no item caused. Items stored before it stay stored.
    """
    failures: list[tuple[Item, Exception]] = []
    waiting = [items] if items else []
    while waiting:
        part = waiting.pop()
        try:
            store(part)
        except Exception as error:
            if not is_item_fault(error):
                raise
            if len(part) == 1:
                failures.append((part[0], error))
                continue
            middle = len(part) // 2
            waiting += [part[middle:], part[:middle]]
    return failures


def _readable(name: str, *, keep_end: bool) -> str:
    # Consecutive dots mean a range to Dagster, a leading dash an option to a shell, a leading dot a hidden file.
    plain = re.sub(r"[^\w.\-]+", "_", unicodedata.normalize("NFC", name))
    encoded = re.sub(r"\.{2,}", ".", plain).encode()
    kept = encoded[-NAME_BYTES:] if keep_end else encoded[:NAME_BYTES]
    return kept.decode("utf-8", "ignore").lstrip(".-") or "unnamed"


def _prefetched(items: Generator[Item, None, None], worker: ThreadPoolExecutor) -> Iterator[Item]:
    # Copy the context, so that fields bound for log lines are bound in the thread too.
    context = copy_context()

    def make_next() -> Item | None:
        return context.run(lambda: next(items, None))

    coming = worker.submit(make_next)
    while (item := coming.result()) is not None:
        coming = worker.submit(make_next)
        yield item
