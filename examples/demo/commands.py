"""The system as its users reach it: `ingest dev`, other commands of `ingest`, and messages on its Kafka."""

from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from ingest_project.cli.main import INTERRUPTED, build_app, run

UP = "Ctrl-C stops everything"
CONFIRM_SECONDS = 30.0
PR_SET_PDEATHSIG = 1


class CommandError(Exception):
    """A command failed; it has printed its reason on standard error."""


def ingest(*arguments: str, accepted: Collection[int] = (0,)) -> Any:  # noqa: ANN401 - JSON
    """Run a command with `--json` and return what it prints.

    It runs in this process: a new one would import the project again for each of them.

    Args:
        arguments: of the command.
        accepted: exit codes that are no failure.

    Raises:
        CommandError: another exit code.
    """
    with redirect_stdout(io.StringIO()) as output:
        code = run([*arguments, "--json"])
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code not in accepted:
        raise CommandError(f"`ingest {' '.join(arguments)}` failed.")
    return json.loads(output.getvalue())


def settings() -> dict[str, Any]:
    """Return every setting in force, by its name."""
    return {one["setting"]: one["value"] for one in ingest("config")}


@contextmanager
def running_system(environment: Mapping[str, str], *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run `ingest dev` until the `with` block ends; what it prints goes to standard error.

    Args:
        environment: variables in addition to those of this process.
        options: of the command.

    Raises:
        CommandError: it ended before everything was up.
    """
    command = [sys.executable, "-m", "ingest_project.cli.main", "dev", *options]
    colours = {"FORCE_COLOR": "1"} if sys.stderr.isatty() else {}
    # In its own session: Ctrl-C in a terminal would reach it twice, and the second one would cut its end short.
    with subprocess.Popen(  # noqa: S603 - our own command
        command,
        env={**os.environ, **colours, **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_end_with_parent,  # noqa: PLW1509 - it takes no lock
    ) as process:
        # What the commands that follow import, it has by the time that everything is up.
        importing = threading.Thread(target=build_app)
        importing.start()
        try:
            if not _relay(process, until=UP):
                raise CommandError("`ingest dev` ended.")
            threading.Thread(target=_relay, args=(process,), daemon=True).start()
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
            importing.join()


def require_running(process: subprocess.Popen[str]) -> None:
    """Raise CommandError if `ingest dev` has ended."""
    if process.poll() is not None:
        raise CommandError(f"`ingest dev` ended with exit code {process.returncode}.")


def publish(brokers: str, topic: str, messages: Sequence[bytes]) -> None:
    """Write messages to a topic, as any producer does.

    Raises:
        CommandError: the broker does not confirm them.
    """
    producer = Producer({"bootstrap.servers": brokers, "log_level": 2})
    for message in messages:
        producer.produce(topic, message)
    if producer.flush(CONFIRM_SECONDS):
        raise CommandError(f"The broker did not confirm the messages for {topic}.")


def messages_on(brokers: str, topic: str) -> int:
    """Count the messages of a topic; 0 where it does not exist."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "demo", "log_level": 2})
    try:
        partitions = consumer.list_topics(topic, timeout=CONFIRM_SECONDS).topics[topic].partitions
        ends = (consumer.get_watermark_offsets(TopicPartition(topic, one), CONFIRM_SECONDS) for one in partitions)
        return sum(high - low for low, high in ends)
    finally:
        consumer.close()


def _end_with_parent() -> None:
    """Run in the new process: should the demo be killed, the kernel interrupts the system (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGINT), 0, 0, 0)


def _relay(process: subprocess.Popen[str], until: str | None = None) -> bool:
    """Copy lines to standard error; return True after the line that has this text, False at the end."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    for line in process.stdout:
        if until and until in line:
            return True
        sys.stderr.write(line)
        sys.stderr.flush()
    return False
