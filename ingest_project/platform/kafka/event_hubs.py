"""Azure Event Hubs as one more Kafka cluster: its settings made of what Azure hands out.

An event hub is a topic, a namespace is a cluster. `TopicReader(hub.settings)` reads it beside the main broker.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.http.urls import MalformedAddressError, parse_host, split_address

PORT = 9093
PUBLIC_CLOUD = ".servicebus.windows.net"
# An identity is shown to Azure's own hosts alone. A connection string is for the endpoint that it names itself.
CLOUDS = (PUBLIC_CLOUD, ".servicebus.usgovcloudapi.net", ".servicebus.chinacloudapi.cn")
SCHEMES = ("sb", "https", "amqps")
CONNECTION_STRING_USER = "$ConnectionString"
_PARTS = ("endpoint", "sharedaccesskeyname", "sharedaccesskey")


@dataclass(frozen=True)
class EventHub:
    """One event hub.

    Args:
        settings: of its namespace's Kafka endpoint.
        topic: its name.
    """

    settings: KafkaSettings
    topic: str


def event_hub(
    main: KafkaSettings, *, connection_string: SecretStr | None = None, namespace: str = "", topic: str = ""
) -> EventHub:
    """Return the event hub that is configured.

    Args:
        main: settings of the main cluster, for what has nothing to do with the connection.
        connection_string: `Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…[;EntityPath=…]`.
        namespace: name or host of the namespace, reached with this host's identity where there is no connection string.
        topic: name of the hub; may be left out where the connection string has an EntityPath.

    Raises:
        SettingsError: not enough is given, or it does not fit together. Nothing of the connection string is quoted.
    """
    parts = _parts(connection_string) if connection_string else {}
    host = _host(parts, namespace)
    hub = parts.get("entitypath", "")
    if topic and hub and topic != hub:
        raise SettingsError(f"The Event Hubs connection string is for the hub {hub!r}, not for {topic!r}.")
    if not topic and not hub:
        raise SettingsError("No event hub is named: set its name, or take a connection string with an EntityPath.")
    connection = {
        "bootstrap_servers": f"{host}:{PORT}",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN" if connection_string else "OAUTHBEARER",
        "sasl_username": CONNECTION_STRING_USER if connection_string else None,
        "sasl_password": connection_string,
        # Topics have no ids here, and the embedded broker's generations mean nothing to this cluster.
        "generation": "",
    }
    return EventHub(main.model_copy(update=connection), topic or hub)


def _parts(connection_string: SecretStr) -> dict[str, str]:
    pairs = [part.partition("=") for part in connection_string.get_secret_value().strip().split(";") if part.strip()]
    parts = {name.strip().lower(): value.strip() for name, _, value in pairs}
    missing = [name for name in _PARTS if not parts.get(name)]
    if missing:
        raise SettingsError(
            f"The Event Hubs connection string has no {' and no '.join(missing)}. Copy it whole from the "
            "namespace's shared access policies: Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…"
        )
    return parts


def _host(parts: dict[str, str], namespace: str) -> str:
    if not parts and not namespace.strip():
        raise SettingsError("Event Hubs needs a connection string, or a namespace to be reached with an identity.")
    text = parts.get("endpoint") or namespace.strip()
    try:
        host = _server(text) if "//" in text else parse_host(text)
    except MalformedAddressError as error:
        raise SettingsError(
            f"The Event Hubs namespace is not a host like name{PUBLIC_CLOUD}: {error.reason}."
        ) from None
    host = host if "." in host else host + PUBLIC_CLOUD
    if not parts and not host.endswith(CLOUDS):
        raise SettingsError(f"The Event Hubs namespace {host} is not Azure's; a namespace ends with {PUBLIC_CLOUD}.")
    return host


def _server(text: str) -> str:
    address = split_address(text, SCHEMES)
    if not address.is_server or address.port is not None:
        raise MalformedAddressError("it names more than a host")
    return address.host
