"""A Kafka broker of our own for the tests: Apache Kafka where this machine can run it, the embedded broker otherwise.

Apache Kafka runs in KRaft mode, one process for broker and controller. Its jars are brought by Maven into a cache
folder once. Where Java 17 or Maven is missing, or with TEST_KAFKA=embedded, the embedded broker replaces it
and the summary of the run says so.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

from ingest_project.core.settings import KafkaSettings
from ingest_project.devstack import free_port
from ingest_project.devstack.embedded_kafka import BROKER_ID, EmbeddedBroker, listen
from ingest_project_tests.services.first_use import cache_folder, folder_in_memory, one_at_a_time
from ingest_project_tests.services.shared import shared_server

KAFKA_VERSION = "4.1.1"
LOGGING_VERSION = "2.24.3"
OLDEST_JAVA = 17
START_TIMEOUT_SECONDS = 120.0
ADMIN_TIMEOUT_SECONDS = 10.0
LARGEST_MESSAGE_BYTES = 8 * 1024**2
JVM_OPTIONS = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>ingest_project</groupId><artifactId>test-kafka</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>{LOGGING_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

SERVER_PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl_port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl_port}
listener.name.sasl_plaintext.sasl.enabled.mechanisms=PLAIN,OAUTHBEARER
listener.name.sasl_plaintext.plain.sasl.jaas.config={plain_login}
listener.name.sasl_plaintext.oauthbearer.sasl.jaas.config={token_login}
log.dirs={storage}
num.partitions=4
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
metadata.max.idle.interval.ms=0
num.network.threads=2
num.io.threads=2
log.cleaner.enable=false
message.max.bytes={largest}
replica.fetch.max.bytes={largest}
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""

# As Event Hubs has it: the one user's password is the connection string.
SASL_USER = "$ConnectionString"
CONNECTION_STRING = "Endpoint=sb://127.0.0.1/;SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=c2VjcmV0LW9mLXRoZS10ZXN0cw=="
PLAIN_LOGIN = (
    f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{SASL_USER}="{CONNECTION_STRING}";'
)
# Takes any token that has not expired, signed or not.
TOKEN_LOGIN = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;"  # noqa: S105 - a class

# Waits for the end of its input, which comes when the test process ends in any way, then clears up after it.
WATCHER = """
import os, shutil, signal, sys
sys.stdin.buffer.read()
folder = sys.argv[1]
try:
    with open(os.path.join(folder, "pid")) as file:
        os.kill(int(file.read()), signal.SIGKILL)
except (OSError, ValueError):
    pass
shutil.rmtree(folder, ignore_errors=True)
"""


class KafkaServer:
    """Apache Kafka at its ports."""

    keeps_messages = True
    """Whether messages are still there after `kill` and `restart`."""

    def __init__(self, port: int, sasl_port: int) -> None:
        self.port, self._sasl_port = port, sasl_port
        self.bootstrap_servers = f"127.0.0.1:{port}"
        self.sasl_bootstrap_servers = f"127.0.0.1:{sasl_port}"

    @property
    def address(self) -> dict[str, int]:
        """The arguments with which another process gets the same."""
        return {"port": self.port, "sasl_port": self._sasl_port}

    @property
    def settings(self) -> KafkaSettings:
        """Settings that lead to this broker."""
        return settings_for(self.bootstrap_servers)

    def create_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        """Create a topic and wait until it can be written to."""
        topic = NewTopic(name, partitions, 1, config=dict(config or {}))
        self._admin.create_topics([topic], operation_timeout=ADMIN_TIMEOUT_SECONDS)[name].result()
        wait_until(lambda: len(self._admin.list_topics(name, timeout=5).topics[name].partitions) == partitions)

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until it is gone."""
        self._admin.delete_topics([name], operation_timeout=ADMIN_TIMEOUT_SECONDS)[name].result()
        wait_until(lambda: name not in self._admin.list_topics(timeout=5).topics)

    def add_partitions(self, name: str, partitions: int) -> None:
        """Raise the number of partitions of a topic."""
        self._admin.create_partitions([NewPartitions(name, partitions)])[name].result()
        wait_until(lambda: len(self._admin.list_topics(name, timeout=5).topics[name].partitions) == partitions)

    def delete_records(self, topic: str, partition: int, before_offset: int) -> None:
        """Remove the messages before an offset, as retention would."""
        place = TopicPartition(topic, partition, before_offset)
        self._admin.delete_records([place])[place].result()

    @functools.cached_property
    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})


class KafkaProcess(KafkaServer):
    """Apache Kafka in a process and a folder of its own, on free loopback ports.

    Ends with `stop`, and also, by its watcher, when the test process is killed.
    """

    def __init__(self) -> None:
        controller_port = free_port()
        super().__init__(free_port(), free_port())
        self.folder = Path(tempfile.mkdtemp(prefix="ingest-kafka-", dir=folder_in_memory()))
        self._properties = self.folder / "server.properties"
        self._properties.write_text(_properties(self.folder / "data", self.port, self._sasl_port, controller_port))
        # In a session of its own: what ends the tests' process group must not end this one before its work is done.
        self._watcher = subprocess.Popen(
            [sys.executable, "-c", WATCHER, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        self._process: subprocess.Popen[bytes] | None = None
        shutil.copytree(formatted_storage(), self.folder / "data")
        self._start()

    def kill(self) -> None:
        """End the broker with SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop the broker's answers while its connections stay open."""
        self._running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the broker answer again."""
        self._running.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start again on the same port with the same data, after `kill` or in place of the running broker."""
        if self._process is not None:
            self._end(signal.SIGTERM)
        self._start()

    def stop(self) -> None:
        """End the broker and remove its folder."""
        if self._process is not None:
            self._end(signal.SIGKILL)
        self._watcher.communicate()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the broker was killed; restart it first"
        return self._process

    def _start(self) -> None:
        self._process = self._java("kafka.Kafka", str(self._properties))
        (self.folder / "pid").write_text(str(self._process.pid))
        try:
            wait_until(self._answers, START_TIMEOUT_SECONDS)
        except TimeoutError as error:
            log = (self.folder / "kafka.log").read_text(errors="replace")[-3_000:]
            self.stop()
            raise RuntimeError(f"Apache Kafka did not start:\n{log}") from error

    def _answers(self) -> bool:
        if self._running.poll() is not None:
            raise TimeoutError
        with contextlib.suppress(KafkaException):
            return bool(self._admin.list_topics(timeout=1).brokers)
        return False

    def _end(self, how: signal.Signals) -> None:
        self._running.send_signal(how)
        self._running.send_signal(signal.SIGCONT)
        self._running.wait()
        self._process = None

    def _java(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "kafka.log").open("ab") as log:
            # A broker that is killed leaves the libraries that it unpacked.
            own = f"-Djava.io.tmpdir={self.folder}"
            return subprocess.Popen(_java(own, *arguments), stdout=log, stderr=log, cwd=self.folder)


class FaultyBroker(EmbeddedBroker):
    """An embedded broker that loses messages, topics and connections on request."""

    def delete_topic(self, name: str) -> None:
        """Remove a topic with its messages; a recreated topic of the same name has another id.

        Raises:
            ValueError: the topic does not exist.
        """
        self._inject("topic_delete", ctypes.c_char_p(name.encode()))

    def delete_records(self, topic: str, partition: int, before_offset: int) -> None:
        """Remove the messages before an offset, as retention does.

        Raises:
            ValueError: the partition or the offset does not exist.
        """
        place = ctypes.c_char_p(topic.encode()), ctypes.c_int32(partition)
        self._inject("partition_delete_records", *place, ctypes.c_int64(before_offset))

    def go_down(self) -> None:
        """Close every connection and refuse new ones; the messages stay."""
        self._inject("broker_set_down", ctypes.c_int32(BROKER_ID))

    def come_up(self) -> None:
        """Accept connections again."""
        self._inject("broker_set_up", ctypes.c_int32(BROKER_ID))
        if self._port:
            self._move_to(listen(self._port), self._port)

    def _inject(self, what: str, *arguments: object) -> None:
        self._check(getattr(self._library, f"rd_kafka_mock_{what}")(ctypes.c_void_p(self._cluster), *arguments))


class EmbeddedServer:
    """The embedded broker with the face of `KafkaServer`, except that messages do not survive `kill` and `restart`."""

    keeps_messages = False

    def __init__(self) -> None:
        self.port = free_port()
        self._broker = FaultyBroker(port=self.port)
        self.bootstrap_servers = self._broker.bootstrap_servers

    @property
    def settings(self) -> KafkaSettings:
        """Settings that lead to this broker."""
        return settings_for(self.bootstrap_servers)

    def create_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        """Create a topic; settings of single topics have no effect here."""
        del config
        self._broker.create_topic(name, partitions)

    def delete_topic(self, name: str) -> None:
        """Delete a topic."""
        self._broker.delete_topic(name)

    def add_partitions(self, name: str, partitions: int) -> None:
        """Skip the test: the embedded broker cannot add partitions."""
        pytest.skip(f"the embedded broker cannot raise {name} to {partitions} partitions")

    def delete_records(self, topic: str, partition: int, before_offset: int) -> None:
        """Remove the messages before an offset, as retention would."""
        self._broker.delete_records(topic, partition, before_offset)

    def kill(self) -> None:
        """End the broker with everything in it."""
        self._broker.close()

    def pause(self) -> None:
        """Drop the connections and refuse new ones."""
        self._broker.go_down()

    def resume(self) -> None:
        """Accept connections again."""
        self._broker.come_up()

    def restart(self) -> None:
        """Start again on the same port, empty."""
        self._broker.close()
        self._broker = FaultyBroker(port=self.port)

    def stop(self) -> None:
        """End the broker."""
        self._broker.close()


Server = KafkaServer | EmbeddedServer
OwnServer = KafkaProcess | EmbeddedServer


def settings_for(bootstrap_servers: str) -> KafkaSettings:
    """Return settings with short time-outs for a broker that does not answer."""
    return KafkaSettings(bootstrap_servers=bootstrap_servers, request_timeout_seconds=5.0)


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come to hold in time.
    """
    give_up_at = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > give_up_at:
            raise TimeoutError
        time.sleep(0.05)


def why_not_apache_kafka() -> str | None:
    """Return why Apache Kafka cannot run here; None if it can."""
    if os.environ.get("TEST_KAFKA") == "embedded":
        return "TEST_KAFKA=embedded"
    missing = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found on PATH"
    version = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', version)
    if found is None or int(found.group(1)) < OLDEST_JAVA:
        return f"Kafka {KAFKA_VERSION} needs Java {OLDEST_JAVA}"
    return None


@functools.cache
def kafka_jars() -> Path:
    """Return the folder with Apache Kafka's jars; Maven downloads them the first time."""
    folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
    # Two Mavens at once spoil each other's repository.
    with one_at_a_time("maven"):
        if not folder.is_dir():
            _bring_jars(folder.parent, folder)
    return folder


def _java(*arguments: str) -> list[str]:
    return ["java", *JVM_OPTIONS, "-cp", f"{kafka_jars()}/*", *arguments]


@functools.cache
def formatted_storage() -> Path:
    """Return the storage folder of a broker that has not started, to be copied: Java takes 2 s to make one."""
    folder = cache_folder() / f"kafka-{KAFKA_VERSION}-storage"
    _ = kafka_jars()
    with one_at_a_time("kafka-storage"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="kafka-") as unfinished:
                properties, made = Path(unfinished) / "server.properties", Path(unfinished) / "data"
                properties.write_text(_properties(made, *(free_port() for _ in range(3))))
                format_it = (
                    "kafka.tools.StorageTool",
                    "format",
                    f"--cluster-id={_cluster_id()}",
                    "-c",
                    str(properties),
                )
                subprocess.run(_java(*format_it), capture_output=True, check=True)
                made.rename(folder)
    return folder


def _properties(storage: Path, port: int, sasl_port: int, controller_port: int) -> str:
    return SERVER_PROPERTIES.format(
        port=port,
        sasl_port=sasl_port,
        controller_port=controller_port,
        plain_login=PLAIN_LOGIN,
        token_login=TOKEN_LOGIN,
        storage=storage,
        largest=LARGEST_MESSAGE_BYTES,
    )


def _bring_jars(cache: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix="kafka-") as unfinished:
        (Path(unfinished) / "pom.xml").write_text(POM)
        maven = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=jars"]
        brought = subprocess.run(maven, cwd=unfinished, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if brought.returncode:
            said = brought.stdout.decode(errors="replace")[-3_000:]
            raise RuntimeError(f"Maven could not bring Apache Kafka (TEST_KAFKA=embedded does without):\n{said}")
        (Path(unfinished) / "jars").rename(folder)


@contextlib.contextmanager
def running_server() -> Iterator[KafkaProcess]:
    """Run Apache Kafka until the end of the block."""
    server = KafkaProcess()
    try:
        yield server
    finally:
        server.stop()


def start_server() -> OwnServer:
    """Start Apache Kafka, or the embedded broker if it cannot run."""
    return KafkaProcess() if why_not_apache_kafka() is None else EmbeddedServer()


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A broker for the whole run; tests, also those of other processes, use topics of their own."""
    if why_not_apache_kafka() is None:
        with shared_server(__name__, tmp_path_factory) as address:
            yield KafkaServer(**address)
    else:
        server = EmbeddedServer()
        yield server
        server.stop()


@pytest.fixture(params=["embedded", pytest.param("as others have it", marks=pytest.mark.long)])
def own_kafka_server(request: pytest.FixtureRequest) -> Iterator[OwnServer]:
    """A broker that the test may pause: the embedded one, and in the long run Apache Kafka."""
    server = EmbeddedServer() if request.param == "embedded" else start_server()
    yield server
    server.stop()


@pytest.fixture
def embedded_broker() -> Iterator[FaultyBroker]:
    """An empty embedded broker for one test."""
    with FaultyBroker() as broker:
        yield broker


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which broker the tests used."""
    reason = why_not_apache_kafka()
    broker = f"Apache Kafka {KAFKA_VERSION}" if reason is None else f"the embedded broker, not Apache Kafka ({reason})"
    terminalreporter.write_line(f"Kafka in these tests: {broker}.")


def _cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
