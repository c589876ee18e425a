"""Configure every Kafka client of this project: one configuration for reading, writing and metadata requests.

librdkafka's own messages go to the logger `ingest_project.platform.kafka.librdkafka`, as details: the call that fails
raises every error that matters to the project. Brokers that use OAUTHBEARER, such as Event Hubs' Kafka endpoint, get
Microsoft Entra tokens.

Azure Event Hubs is another cluster: an event hub is a topic, a namespace is a cluster. `TopicReader(hub.settings)`
reads it independently of the main broker.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from pydantic import SecretStr

from ingest_project.core.errors import BrokerAccessDeniedError, BrokerUnavailableError, SettingsError
from ingest_project.core.secrets import SecretReference, renewed, text_of
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.http import MalformedAddressError, host_and_port, parse_host, parse_server, split_address

REMEDY = (
    "Sign this host in (managed identity, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or `az login`) and give it the role "
    "Azure Event Hubs Data Receiver."
)
MAX_REASON_LENGTH = 300
_logger = logging.getLogger(__name__)
LIBRARY_LOGGER = logging.getLogger("ingest_project.platform.kafka.librdkafka")
# Commands configure no logging: without a handler, Python would print warnings next to the one-line error.
LIBRARY_LOGGER.addHandler(logging.NullHandler())
CLIENT_ID = "ingest-project"
CONNECTION_FAILURE = "FAIL "
EVENT_HUBS_DOMAIN = ".servicebus."
# Event Hubs (and many load balancers) drop idle connections after four minutes: close them earlier and reconnect.
MAX_IDLE_MS = 180_000
# Microsoft's recommendation for Event Hubs, whose slowest responses exceed the time-out of other brokers.
EVENT_HUBS_REQUEST_MS = 60_000
# Longest pause before a reconnection to a broker that is available again.
MAX_RECONNECT_BACKOFF_MS = 1_000
EVENT_HUBS_PORT = 9093
PUBLIC_CLOUD = ".servicebus.windows.net"
# A host's identity is sent only to Azure's own hosts. A connection string is for the endpoint that it names.
EVENT_HUBS_CLOUDS = (PUBLIC_CLOUD, ".servicebus.usgovcloudapi.net", ".servicebus.chinacloudapi.cn")
EVENT_HUBS_SCHEMES = ("sb", "https", "amqps")
_REFUSALS = (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED)  # noqa: SLF001 - a public name
Cause = KafkaException | KafkaError | str
DENIED_CODES = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)
CONNECTION_STRING_USER = "$ConnectionString"
REQUIRED_PARTS = ("endpoint", "sharedaccesskeyname", "sharedaccesskey")


class TokenSource:
    """Provides tokens to one Kafka client, and renews each before it expires.

    A token is valid only for the broker's host, and is sent to no other host.

    Args:
        bootstrap_servers: addresses of the broker, all on one host, which becomes the scope of the token.

    Raises:
        SettingsError: the addresses are on several hosts, or one is malformed.
    """

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        hosts = {_host(server.strip()) for server in bootstrap_servers.split(",") if server.strip()}
        if len(hosts) != 1:
            raise SettingsError(f"A token is for one host: {bootstrap_servers} must be on one with OAUTHBEARER.")
        self.scope = f"https://{host_and_port(hosts.pop(), None)}/.default"

    def check(self) -> None:
        """Get a token, which is cached for the next call.

        Raises:
            BrokerUnavailableError: no token is available; names the reason and the remedy.
        """
        self._get()

    def __call__(self, _config: str | None) -> tuple[str, float]:
        """Return a token and its expiry in seconds since 1970, as the library's `oauth_cb` requires."""
        try:
            return self._get()
        except BrokerUnavailableError as error:
            # The library retries every ten seconds, and its own error of the connection does not contain the reason.
            _logger.warning("%s", error)
            raise

    def _get(self) -> tuple[str, float]:
        from azure.core.exceptions import AzureError  # takes 0.5 s; only these brokers need it

        from ingest_project.platform.azure.identity import default_credential  # the same

        try:
            token = default_credential().get_token(self.scope)
        except AzureError as error:
            reason = (" ".join(str(error).split()) or type(error).__name__)[:MAX_REASON_LENGTH].rstrip(". ")
            raise BrokerUnavailableError(self._servers, f"no token for {self.scope}: {reason}", REMEDY) from error
        return token.token, float(token.expires_on)


def _host(server: str) -> str:
    try:
        return parse_server(server)[0]
    except MalformedAddressError as error:
        raise SettingsError(f"KAFKA_BOOTSTRAP_SERVERS: {server[:100]!r} is no host:port: {error.reason}.") from None


class PresentPassword:
    """Passes a changed SASL password to one client, for its next connection.

    Args:
        settings: settings with which the client was just created.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._secret = settings.sasl_password
        self._username = settings.sasl_username or ""
        self._used = text_of(self._secret) if isinstance(self._secret, SecretReference) else ""

    def give(self, client: Consumer | Producer | AdminClient) -> None:
        """Pass the password on to the client if it has changed."""
        if isinstance(self._secret, SecretReference) and (present := text_of(self._secret)) != self._used:
            client.set_sasl_credentials(self._username, present)
            self._used = present


class _ConnectionFailuresAreDetail(logging.Filter):
    """Log connection failures at a lower level: they would fill the log, and the failed call reports them once."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith(CONNECTION_FAILURE):
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
            return LIBRARY_LOGGER.isEnabledFor(logging.DEBUG)
        return True


LIBRARY_LOGGER.addFilter(_ConnectionFailuresAreDetail())


def client_config(settings: KafkaSettings) -> dict[str, Any]:
    """Return the librdkafka configuration that consumers, producers and admin clients share.

    Raises:
        BrokerUnavailableError: no address is configured, or no token is available for it.
        SettingsError: the security settings do not fit together.
    """
    if not settings.bootstrap_servers:
        raise BrokerUnavailableError("", "no address is set")
    timeout_ms = round(settings.request_timeout_seconds * 1000)
    follows = isinstance(settings.sasl_password, SecretReference)
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": CLIENT_ID,
        "security.protocol": settings.security_protocol,
        "socket.timeout.ms": EVENT_HUBS_REQUEST_MS if is_event_hubs(settings) else timeout_ms,
        "socket.connection.setup.timeout.ms": max(1_000, timeout_ms),
        "socket.keepalive.enable": True,
        "metadata.max.age.ms": MAX_IDLE_MS,
        "connections.max.idle.ms": MAX_IDLE_MS,
        "reconnect.backoff.max.ms": MAX_RECONNECT_BACKOFF_MS,
        "log.connection.close": False,
        "logger": LIBRARY_LOGGER,
        **({"ssl.ca.location": str(settings.ssl_ca_location)} if settings.ssl_ca_location else {}),
        **_sasl(settings),
        **({"error_cb": partial(note_refusal, settings)} if follows else {}),
    }


def note_refusal(settings: KafkaSettings, error: KafkaError) -> None:
    """Read the password again if the broker refused it."""
    if error.code() in _REFUSALS and settings.sasl_password is not None:
        renewed(settings.sasl_password, text_of(settings.sasl_password))


def is_event_hubs(settings: KafkaSettings) -> bool:
    """Return True for Azure Event Hubs, whose Kafka endpoint supports only gzip and has no topic ids."""
    return EVENT_HUBS_DOMAIN in settings.bootstrap_servers


def unavailable(settings: KafkaSettings, cause: Cause, about: str = "") -> BrokerUnavailableError:
    """Return the error for a failure of the client library: what it is about, and the library's own message."""
    if isinstance(cause, KafkaException):
        cause = cause.args[0]
    reason = about + (cause.str() if isinstance(cause, KafkaError) else str(cause))
    if isinstance(cause, KafkaError) and cause.code() in DENIED_CODES:
        return BrokerAccessDeniedError(settings.bootstrap_servers, reason, "Grant it to the user KAFKA_SASL_USERNAME.")
    return BrokerUnavailableError(settings.bootstrap_servers, reason)


def error_code(error: KafkaException) -> int:
    """Return the `KafkaError` code inside an exception."""
    inner: KafkaError = error.args[0]
    return inner.code()


def _sasl(settings: KafkaSettings) -> dict[str, Any]:
    if not settings.security_protocol.startswith("SASL_"):
        return {}
    mechanism = settings.sasl_mechanism or "PLAIN"
    if mechanism == "OAUTHBEARER":
        tokens = TokenSource(settings.bootstrap_servers)
        # Check first: the library would drop the reason, and wait ten seconds for a token before it fails.
        tokens.check()
        return {"sasl.mechanism": mechanism, "oauth_cb": tokens}
    if settings.sasl_username is None or settings.sasl_password is None:
        raise SettingsError(
            f"KAFKA_SECURITY_PROTOCOL={settings.security_protocol} with {mechanism} needs KAFKA_SASL_USERNAME and "
            "KAFKA_SASL_PASSWORD."
        )
    return {
        "sasl.mechanism": mechanism,
        "sasl.username": settings.sasl_username,
        "sasl.password": settings.sasl_password.get_secret_value(),
    }


@dataclass(frozen=True)
class EventHub:
    """One event hub.

    Args:
        settings: settings of its namespace's Kafka endpoint.
        topic: name of the event hub.
    """

    settings: KafkaSettings
    topic: str


def event_hub(
    main: KafkaSettings, *, connection_string: SecretStr | None = None, namespace: str = "", topic: str = ""
) -> EventHub:
    """Return the configured event hub.

    Args:
        main: settings of the main cluster, for everything but the connection.
        connection_string: `Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…[;EntityPath=…]`.
        namespace: name or host of the namespace, used with this host's identity if there is no connection string.
        topic: name of the hub; optional if the connection string has an EntityPath.

    Raises:
        SettingsError: a value is missing, or the values contradict each other. The connection string is not quoted.
    """
    parts = _connection_parts(connection_string) if connection_string else {}
    host = _namespace_host(parts, namespace)
    hub = parts.get("entitypath", "")
    if topic and hub and topic != hub:
        raise SettingsError(f"The Event Hubs connection string is for the hub {hub!r}, not for {topic!r}.")
    if not topic and not hub:
        raise SettingsError("No event hub is named: set its name, or take a connection string with an EntityPath.")
    connection = {
        "bootstrap_servers": f"{host}:{EVENT_HUBS_PORT}",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN" if connection_string else "OAUTHBEARER",
        "sasl_username": CONNECTION_STRING_USER if connection_string else None,
        "sasl_password": connection_string,
        # Event Hubs has no topic ids, and the embedded broker's generation does not apply to this cluster.
        "generation": "",
    }
    return EventHub(main.model_copy(update=connection), topic or hub)


def _connection_parts(connection_string: SecretStr) -> dict[str, str]:
    pairs = [part.partition("=") for part in connection_string.get_secret_value().strip().split(";") if part.strip()]
    parts = {name.strip().lower(): value.strip() for name, _, value in pairs}
    missing = [name for name in REQUIRED_PARTS if not parts.get(name)]
    if missing:
        raise SettingsError(
            f"The Event Hubs connection string has no {' and no '.join(missing)}. Copy it whole from the "
            "namespace's shared access policies: Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…"
        )
    return parts


def _namespace_host(parts: dict[str, str], namespace: str) -> str:
    if not parts and not namespace.strip():
        raise SettingsError("Event Hubs needs a connection string, or a namespace to be reached with an identity.")
    text = parts.get("endpoint") or namespace.strip()
    try:
        host = _server_host(text) if "//" in text else parse_host(text)
    except MalformedAddressError as error:
        raise SettingsError(
            f"The Event Hubs namespace is not a host like name{PUBLIC_CLOUD}: {error.reason}."
        ) from None
    host = host if "." in host else host + PUBLIC_CLOUD
    if not parts and not host.endswith(EVENT_HUBS_CLOUDS):
        raise SettingsError(f"The Event Hubs namespace {host} is not Azure's; a namespace ends with {PUBLIC_CLOUD}.")
    return host


def _server_host(text: str) -> str:
    address = split_address(text, EVENT_HUBS_SCHEMES)
    if not address.is_server or address.port is not None:
        raise MalformedAddressError("it names more than a host")
    return address.host
