"""Decode a large backlog in child processes, each with its own partitions: one process decodes on only one core.

A child is a fork that reads Kafka over connections of its own and decodes, nothing else: database, Delta table and
Polars do not work in a fork. It passes each batch on in shared memory and waits until the parent takes it, so that a
child holds no more than one batch. Whatever is stored or published, the parent stores or publishes.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import socket
import sys
import warnings
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from typing import Any, TypeVar

from ingest_project.core.errors import IngestError, TransientError
from ingest_project.core.secrets import SecretReference
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform import tracing
from ingest_project.platform.runtime import processors

# More processes would wait for the parent, which stores the decoded messages.
MAX_PROCESSES = 4
# Reading from a broker that does not answer fails long before this.
SILENCE_SECONDS = 600.0
PR_SET_PDEATHSIG = 1
# In bytes, as Arrow recommends for buffers.
ALIGNMENT = 64
SIZE_BYTES = 8

Share = TypeVar("Share")
# Child processes by the parent's connection to them.
Children = dict[Any, ForkProcess]


class DecodingStoppedError(TransientError):
    """A process that decodes messages was killed or hangs; the next run decodes in its own process."""


def processes_of(runs: int, kafka: KafkaSettings) -> int:
    """Return in how many processes each of some runs side by side may decode: they share the processors.

    It is one where a fork may fail: where spans are exported, where a token or a stored secret is fetched for Kafka,
    and elsewhere than on Linux.
    """
    fetches = kafka.sasl_mechanism == "OAUTHBEARER" or isinstance(kafka.sasl_password, SecretReference)
    if fetches or tracing.is_on() or sys.platform != "linux":
        return 1
    return max(1, min(MAX_PROCESSES, processors() // runs))


def split(waiting: Mapping[int, int], most: int, worth_splitting: int) -> list[list[int]]:
    """Divide partitions between runs, or processes, about evenly.

    Args:
        waiting: messages by partition.
        most: maximum number of shares.
        worth_splitting: messages for which a further share is worth its start.
    """
    wanted = min(most, len(waiting), max(1, sum(waiting.values()) // worth_splitting))
    shares: list[list[int]] = [[] for _ in range(wanted)]
    for partition in sorted(waiting, key=lambda one: (-waiting[one], one)):
        min(shares, key=lambda share: (sum(waiting[one] for one in share), len(share))).append(partition)
    return shares


@contextmanager
def forked(shares: Sequence[Share], make: Callable[[Share], Iterable[Any]]) -> Iterator[Generator[Any, None, None]]:
    """Make items in a child process for each share; when the block ends, the children have ended as well.

    Args:
        shares: one for each child.
        make: yields items that can be pickled, in a child. An IngestError that it yields is raised here.

    Raises:
        DecodingStoppedError: from the iterator: a child ended before it had made all of its items.
    """
    # Python 3.12 counts every thread; those of the parent hold no lock that a child needs.
    warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
    children: Children = {}
    try:
        for share in shares:
            receiving, sending = socket.socketpair()
            with sending:
                child = ForkProcess(target=_send_all, args=(sending, make, share, os.getpid()), daemon=True)
                child.start()
            children[receiving] = child
        yield _received(dict(children))
    finally:
        for connection, child in children.items():
            child.kill()
            child.join()
            connection.close()


def _send_all(parent_socket: socket.socket, make: Callable[[Share], Iterable[Any]], share: Share, parent: int) -> None:
    """In a child: end with the parent's thread, and leave what belongs to the parent alone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Closing a client of Kafka waits for its threads, which are not in the fork.
    gc.freeze()
    for item in make(share):
        _send(parent_socket, item)


def _send(connection: socket.socket, item: object) -> None:
    """Pass an item on in shared memory: its pickle, the columns that the pickle refers to, and the place of each."""
    columns: list[pickle.PickleBuffer] = []
    places = array("q")
    with os.fdopen(os.memfd_create("batch"), "wb") as memory:
        for part in (
            memoryview(pickle.dumps(item, 5, buffer_callback=columns.append)),
            *(one.raw() for one in columns),
        ):
            places.extend((memory.seek(-memory.tell() % ALIGNMENT, os.SEEK_CUR), len(part)))
            memory.write(part)
        memory.write(places)
        memory.flush()
        socket.send_fds(connection, [len(places).to_bytes(SIZE_BYTES, sys.byteorder)], [memory.fileno()])
    connection.recv(1)


def _received(children: Children) -> Generator[Any, None, None]:
    while children:
        ready = wait(list(children), SILENCE_SECONDS)
        if not ready:
            raise DecodingStoppedError(f"No process that decodes messages has sent any for {SILENCE_SECONDS:g} s.")
        for connection in ready:
            try:
                item = _receive(connection)
            except (EOFError, ConnectionError):
                child = children.pop(connection)
                child.join()
                if child.exitcode:
                    reason = f"A process that decoded messages ended early, with exit code {child.exitcode}"
                    raise DecodingStoppedError(f"{reason}: it was killed, or memory ran out.") from None
            else:
                if isinstance(item, IngestError):
                    raise item
                yield item


def _receive(connection: Any) -> object:  # noqa: ANN401 - a socket
    """Take an item; EOFError where none comes any more."""
    count, descriptors, *_ = socket.recv_fds(connection, SIZE_BYTES, 1)
    if not descriptors:
        raise EOFError
    memory = memoryview(mmap(descriptors[0], 0, access=ACCESS_READ))
    os.close(descriptors[0])
    connection.send(b" ")
    places = memory[-int.from_bytes(count, sys.byteorder) * SIZE_BYTES :].cast("q").tolist()
    item, *columns = [memory[first : first + size] for first, size in zip(places[::2], places[1::2], strict=True)]
    return pickle.loads(item, buffers=columns)  # noqa: S301 - of our own process
