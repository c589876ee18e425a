"""A Kafka broker inside a Python process, for `ingest dev`, `make demo` and tests.

It is librdkafka's mock cluster, called in the library that confluent_kafka ships: it needs no installation, starts in
milliseconds, and listens on the loopback interface only. It implements those parts of the protocol that this project
uses (produce, fetch, headers, timestamps, every codec, topic ids, offset commits), but has no transactions, keeps only
the newest 5 MiB of each partition, and loses everything when it ends: use it for trials only.

`python -m ingest_project.devstack.embedded_kafka --port 9092 --topic polling-queue=4` serves until SIGTERM, SIGINT or
the end of its parent process, and prints its address as one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import confluent_kafka.cimpl
import psutil

from ingest_project.core.errors import IngestError, SettingsError
from ingest_project.devstack import HOST, Child, python_module, start

NAME = "broker"
START_SECONDS = 30.0
PARTITIONS = 4
BROKER_ID = 1
LISTEN_BACKLOG = 128
PARENT_CHECK_SECONDS = 0.5

_PRODUCER = 0  # RD_KAFKA_PRODUCER: any client handle can host the mock cluster
_HANDLE = ctypes.c_void_p
_TOPIC = ctypes.c_char_p
_SIGNATURES: Mapping[str, tuple[type | None, tuple[type, ...]]] = {
    "rd_kafka_conf_new": (_HANDLE, ()),
    "rd_kafka_conf_set": (ctypes.c_int, (_HANDLE, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)),
    "rd_kafka_new": (_HANDLE, (ctypes.c_int, _HANDLE, ctypes.c_char_p, ctypes.c_size_t)),
    "rd_kafka_destroy": (None, (_HANDLE,)),
    "rd_kafka_err2str": (ctypes.c_char_p, (ctypes.c_int,)),
    "rd_kafka_mock_cluster_new": (_HANDLE, (_HANDLE, ctypes.c_int)),
    "rd_kafka_mock_cluster_destroy": (None, (_HANDLE,)),
    "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, (_HANDLE,)),
    "rd_kafka_mock_set_controller_id": (ctypes.c_int, (_HANDLE, ctypes.c_int32)),
    "rd_kafka_mock_topic_create": (ctypes.c_int, (_HANDLE, _TOPIC, ctypes.c_int, ctypes.c_int)),
    "rd_kafka_mock_broker_set_host_port": (None, (_HANDLE, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int)),
}


class EmbeddedBroker:
    """A one-broker cluster on the loopback interface, alive while the object is open.

    Args:
        port: port to listen on; 0 picks a free port.
        topics: topics to create, with their number of partitions. The first write creates any other, with 4 partitions.

    Raises:
        SettingsError: the port is taken.
    """

    def __init__(self, *, port: int = 0, topics: Mapping[str, int] | None = None) -> None:
        self._port = port
        listener = listen(port) if port else None
        self._library = _load_library()
        self._client = self._new_client()
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, 1)
        self.bootstrap_servers: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._own_port = int(self.bootstrap_servers.rpartition(":")[2])
        # Without a controller, the cluster never answers requests for topic ids.
        self._check(self._library.rd_kafka_mock_set_controller_id(self._cluster, BROKER_ID))
        if listener is not None:
            self._move_to(listener, port)
        for name, partitions in (topics or {}).items():
            self.create_topic(name, partitions)

    def create_topic(self, name: str, partitions: int) -> None:
        """Add a topic.

        Raises:
            ValueError: the topic exists already, or the number of partitions is not positive.
        """
        self._check(self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1))

    def close(self) -> None:
        """End the broker and discard all its messages. Idempotent."""
        if self._cluster:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(self._client)
            self._cluster = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _new_client(self) -> int:
        problem = ctypes.create_string_buffer(512)
        configuration = self._library.rd_kafka_conf_new()
        # The hosting client connects to no broker, and would log warnings about that.
        self._library.rd_kafka_conf_set(configuration, b"log_level", b"0", problem, len(problem))
        client: int | None = self._library.rd_kafka_new(_PRODUCER, configuration, problem, len(problem))
        if not client:
            raise IngestError(f"The embedded broker cannot start: {problem.value.decode()}.")
        return client

    def _move_to(self, listener: socket.socket, port: int) -> None:
        """Listen on a given port, although the library always picks a free one.

        This replaces the cluster's listening socket by ours under the same descriptor. The cluster's thread accepts by
        descriptor number, and the call that changes the advertised address also wakes that thread. If the mock broker
        goes down and comes up again, it opens a new socket.
        """
        with listener:
            os.dup2(listener.fileno(), _listening_descriptor(self._own_port), inheritable=False)
        self._library.rd_kafka_mock_broker_set_host_port(self._cluster, BROKER_ID, HOST.encode(), port)
        self.bootstrap_servers = f"{HOST}:{port}"

    def _check(self, code: int) -> None:
        if code:
            raise ValueError(self._library.rd_kafka_err2str(code).decode())


def start_broker(log_folder: Path, environ: Mapping[str, str], topics: Iterable[str], port: int = 0) -> Child:
    """Start a broker process with these topics on a port of the loopback interface, 0 for any, without waiting."""
    named = [f"--topic={name}={PARTITIONS}" for name in topics]
    return start(python_module(NAME, [__name__, f"--port={port}", *named], environ), log_folder)


def wait_for_broker(broker: Child) -> str:
    """Wait until the broker serves; return its address, host:port.

    Raises:
        ServiceFailedError: the broker ended, or was not ready within START_SECONDS.
    """
    return broker.wait_until(lambda: _printed_address(broker.log_path), START_SECONDS, "did not print its address")


def _printed_address(log_path: Path) -> str:
    """Return the address from the line of JSON in the log, which may contain warnings too; empty without that line."""
    for line in log_path.read_text("utf-8", "replace").splitlines(keepends=True):
        if line.startswith("{") and line.endswith("\n"):
            with suppress(ValueError, KeyError):
                return str(json.loads(line)["bootstrap_servers"])
    return ""


def _load_library() -> ctypes.CDLL:
    # Resolving symbols through the extension module finds the librdkafka that confluent_kafka itself uses.
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def listen(port: int) -> socket.socket:
    """Open a socket that listens on a port of the loopback interface.

    Raises:
        SettingsError: the port is taken.
    """
    try:
        listener = socket.create_server((HOST, port), backlog=LISTEN_BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"Port {port} for the embedded broker cannot be used: {error.strerror}. Choose another, or 0 for any."
        ) from error
    listener.setblocking(False)
    return listener


def _listening_descriptor(port: int) -> int:
    for one in psutil.Process().net_connections("tcp4"):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port:
            return int(one.fd)
    raise IngestError("The embedded broker's socket was not found. Let it pick its own port (0).")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a stop signal or the end of the parent process; return the exit code."""
    options = _parse(arguments)
    stop = threading.Event()

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request_stop)
    try:
        broker = EmbeddedBroker(port=options.port, topics=dict(options.topic))
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    with broker:
        sys.stdout.write(json.dumps({"bootstrap_servers": broker.bootstrap_servers, "pid": os.getpid()}) + "\n")
        sys.stdout.flush()
        # A killed parent sends no signal, but this process gets another parent.
        while not stop.wait(PARENT_CHECK_SECONDS) and os.getppid() == options.parent:
            pass
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ingest_project.devstack.embedded_kafka", description="An in-memory broker."
    )
    parser.add_argument("--port", type=int, default=0, help="port on the loopback interface; 0 picks a free one")
    parser.add_argument(
        "--topic", type=_topic, action="append", default=[], metavar="NAME=PARTITIONS", help="topic to create"
    )
    parser.add_argument("--parent", type=int, default=os.getppid(), help="id of the process whose end ends this one")
    return parser.parse_args(arguments)


def _topic(text: str) -> tuple[str, int]:
    name, separator, partitions = text.rpartition("=")
    if not separator or not partitions.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PARTITIONS")
    return name, int(partitions)


if __name__ == "__main__":
    sys.exit(main())
