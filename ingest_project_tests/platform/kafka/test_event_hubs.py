"""Event Hubs' Kafka endpoint: settings from what Azure hands out, and both ways to sign in, against Apache Kafka."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from ingest_project.core.errors import BrokerUnavailableError, SettingsError
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka import TokenSource, client_config, event_hub
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter, _producer_config
from ingest_project.platform.kafka.reader import BoundedRead, TopicReader
from ingest_project_tests.services.identity import IdentityServer
from ingest_project_tests.services.kafka import CONNECTION_STRING, KafkaServer, Server, settings_for, wait_until

SECRET = "c2VjcmV0LWtleQ=="  # noqa: S105 - nobody's
POLICY = f"Endpoint=sb://claims.servicebus.windows.net/;SharedAccessKeyName=reader;SharedAccessKey={SECRET}"


@pytest.fixture(scope="module")
def secured(kafka_server: Server) -> KafkaServer:
    """A broker that wants a password or a token."""
    if not isinstance(kafka_server, KafkaServer):
        pytest.skip("the embedded broker lets everybody in")
    return kafka_server


def settings_of(server: KafkaServer, **connection: Any) -> KafkaSettings:  # noqa: ANN401 - arguments of event_hub
    """What `event_hub` makes of a connection, with the tests' broker in the place of Azure's."""
    hub = event_hub(settings_for(server.bootstrap_servers), topic="any", **connection)
    place = {"bootstrap_servers": server.sasl_bootstrap_servers, "security_protocol": "SASL_PLAINTEXT"}
    return hub.settings.model_copy(update=place)


def read(reader: TopicReader, topic: str, wait_seconds: float = 0) -> BoundedRead:
    return reader.read(topic, None, max_messages=10, max_bytes=1_000_000, wait_seconds=wait_seconds)


class Clients:
    """Readers and writers that are closed with the test."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def reader(self, settings: KafkaSettings) -> TopicReader:
        """A reader of one cluster."""
        return self._stack.enter_context(contextlib.closing(TopicReader(settings)))

    def writer(self, settings: KafkaSettings) -> TopicWriter:
        """A writer to one cluster."""
        return self._stack.enter_context(contextlib.closing(TopicWriter(settings)))

    def close(self) -> None:
        """Close them all."""
        self._stack.close()


@pytest.fixture
def clients() -> Iterator[Clients]:
    with contextlib.closing(Clients()) as clients:
        yield clients


def test_a_connection_string_is_all_that_is_needed() -> None:
    main = KafkaSettings(bootstrap_servers="broker:9092", group_id="ours", generation="life-1")

    hub = event_hub(main, connection_string=SecretStr(POLICY + ";EntityPath=documents"))

    assert hub.topic == "documents"
    assert hub.settings.group_id == "ours"
    assert hub.settings.generation == ""
    config = client_config(hub.settings)
    assert config["bootstrap.servers"] == "claims.servicebus.windows.net:9093"
    assert (config["security.protocol"], config["sasl.mechanism"]) == ("SASL_SSL", "PLAIN")
    assert (config["sasl.username"], config["sasl.password"]) == ("$ConnectionString", POLICY + ";EntityPath=documents")
    assert SECRET not in repr(hub)


def test_the_endpoint_s_own_limits_are_kept() -> None:
    settings = event_hub(KafkaSettings(), connection_string=SecretStr(POLICY), topic="documents").settings
    config = _producer_config(settings)

    assert config["compression.type"] == "gzip"
    assert config["message.max.bytes"] == 1_046_528
    assert config["request.timeout.ms"] == config["socket.timeout.ms"] == 60_000
    assert config["socket.keepalive.enable"] is True
    assert config["metadata.max.age.ms"] == 180_000


@pytest.mark.parametrize(
    "namespace", ["claims", "claims.servicebus.windows.net", "sb://claims.servicebus.windows.net/"]
)
def test_a_namespace_is_reached_with_this_host_s_identity(namespace: str) -> None:
    settings = event_hub(KafkaSettings(), namespace=namespace, topic="documents").settings

    assert settings.bootstrap_servers == "claims.servicebus.windows.net:9093"
    assert settings.sasl_mechanism == "OAUTHBEARER"
    assert TokenSource(settings.bootstrap_servers).scope == "https://claims.servicebus.windows.net/.default"


@pytest.mark.parametrize(
    ("connection", "said"),
    [
        ({}, "needs a connection string, or a namespace"),
        ({"namespace": "claims"}, "No event hub is named"),
        ({"connection_string": SecretStr(POLICY)}, "No event hub is named"),
        ({"connection_string": SecretStr(POLICY + ";EntityPath=a"), "topic": "b"}, "for the hub 'a', not for 'b'"),
        ({"connection_string": SecretStr("Endpoint=sb://x/;SharedAccessKey=" + SECRET)}, "no sharedaccesskeyname"),
        ({"connection_string": SecretStr(f"{SECRET}/{POLICY}"), "topic": "b"}, "no endpoint"),
        ({"connection_string": SecretStr(SECRET)}, "Copy it whole"),
        ({"namespace": "claims/../x", "topic": "b"}, "not a host"),
        ({"namespace": "name@evil.example.com", "topic": "b"}, "not a host"),
        ({"namespace": "127.0.0.1\\.servicebus.windows.net", "topic": "b"}, "not a host"),
        ({"namespace": "sb://127.0.0.1\\.servicebus.windows.net/", "topic": "b"}, "not a host"),
        ({"namespace": "sb://[::1", "topic": "b"}, "not a host"),
        ({"namespace": "sb://name.servicebus.windows.net:9093/", "topic": "b"}, "not a host"),
        ({"namespace": "claims.servicebus.windows.net,evil.example.com", "topic": "b"}, "not a host"),
        ({"namespace": "2130706433", "topic": "b"}, "not a host"),
        ({"namespace": "evil.example.com", "topic": "b"}, "not Azure's"),
        ({"namespace": "servicebus.windows.net.evil.example.com", "topic": "b"}, "not Azure's"),
        ({"connection_string": SecretStr(POLICY.replace("claims.", "a\\.")), "topic": "b"}, "not a host"),
    ],
)
def test_contradictory_connection_settings_are_refused_without_quoting_the_secret(
    connection: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        event_hub(KafkaSettings(), **connection)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "servers", ["a.servicebus.windows.net:9093,b.example.com:9093", "a\\.servicebus.windows.net:9093", "a b:9093", ""]
)
def test_a_token_is_shown_to_the_one_host_that_it_is_for(servers: str) -> None:
    with pytest.raises(SettingsError, match=r"one host|host:port"):
        TokenSource(servers)
    both = TokenSource("a.servicebus.windows.net:9093, A.servicebus.windows.net:9094")
    assert both.scope == "https://a.servicebus.windows.net/.default"


def test_a_connection_string_opens_a_second_cluster_next_to_the_main_one(
    secured: KafkaServer, topic: str, clients: Clients
) -> None:
    secured.create_topic(topic)
    clients.writer(secured.settings).send_all(topic, [ProducerRecord(b"from the main one")])
    hub = settings_of(secured, connection_string=SecretStr(CONNECTION_STRING))

    clients.writer(hub).send_all(topic, [ProducerRecord(b"from the other")])
    messages = read(clients.reader(hub), topic, 10).messages

    assert [message.value for message in messages] == [b"from the main one", b"from the other"]


def test_a_wrong_key_is_reported_as_such(secured: KafkaServer, topic: str, clients: Clients) -> None:
    wrong = settings_of(secured, connection_string=SecretStr(CONNECTION_STRING + "x"))

    with pytest.raises(BrokerUnavailableError, match=r"[Aa]uthentication"):
        read(clients.reader(wrong), topic)


def test_an_identity_s_token_grants_access(
    secured: KafkaServer, topic: str, identity_server: IdentityServer, clients: Clients
) -> None:
    secured.create_topic(topic)
    settings = settings_of(secured, namespace="claims")

    clients.writer(settings).send_all(topic, [ProducerRecord(b"with a token")])
    messages = read(clients.reader(settings), topic, 10).messages

    assert [message.value for message in messages] == [b"with a token"]
    assert set(identity_server.resources) == {"https://127.0.0.1"}


def test_without_a_token_the_reason_and_the_remedy_are_reported_at_once(
    secured: KafkaServer, topic: str, identity_server: IdentityServer, clients: Clients
) -> None:
    identity_server.refuses = True
    settings = settings_of(secured, namespace="claims")

    with pytest.raises(
        BrokerUnavailableError, match=r"no token for https://127.0.0.1/.default.*Data Receiver"
    ) as caught:
        read(clients.reader(settings), topic)

    assert identity_server.secret not in str(caught.value)
    identity_server.refuses = False
    secured.create_topic(topic)
    assert read(clients.reader(settings), topic).messages == []


@pytest.mark.long
def test_a_token_is_renewed_before_it_ends_though_nobody_reads(
    secured: KafkaServer, topic: str, identity_server: IdentityServer, clients: Clients
) -> None:
    secured.create_topic(topic)
    identity_server.lifetime_seconds = 4
    reader = clients.reader(settings_of(secured, namespace="claims"))
    read(reader, topic)
    requested = len(identity_server.resources)

    wait_until(lambda: len(identity_server.resources) > requested, seconds=15)
    assert read(reader, topic).messages == []
