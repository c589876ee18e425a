"""Names that set nothing: a misspelt setting must not silently leave the default in force."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache

from ingest_project.core.settings.inventory import Origin, known_variables, leaves, variable_families

OWN_PREFIXES = ("INGEST_", "KAFKA_", "ONELAKE_")
# What the services that this project replaces had in their own files: it has no meaning here, and does no harm.
FOREIGN_NAMES = ("KAFKA_TOPIC", "KAFKA_TOPICS", "KAFKA_CLIENT_ID", "KAFKA_ENABLE_AUTO_COMMIT", "ENABLE_AUTO_COMMIT")
# What Kafka's own start scripts and the images of brokers, registries and their pages are set by.
OF_A_BROKER = re.compile(
    r"KAFKA_(HOME|OPTS|PORT|HOST|VERSION|IMAGE|TAG|\w+_OPTS|(CFG|KRAFT|CLUSTER|NODE|BROKER|PROCESS|CONTROLLER|LISTENERS?"
    r"|ADVERTISED|INTER|ZOOKEEPER|LOG|LOG4J|NUM|OFFSETS|TRANSACTION|SHARE|DEFAULT|MIN|MESSAGE|REPLICA|CREATE|DELETE"
    r"|AUTO_CREATE|AUTHORIZER|SUPER|ALLOW|GROUP_(INITIAL|MIN|MAX|COORDINATOR)|HEAP|JVM|JMX|METRIC|CONFLUENT|UI|REST"
    r"|CONNECT|SCHEMA|SASL_(ENABLED|JAAS)|SSL_(KEY|KEYSTORE|TRUSTSTORE|CLIENT|SECRETS))(_\w+)?)"
)
FOREIGN_FAMILIES = ("DAGSTER_", "AWS_", "AZURE_", "PG", "PYTHON")
# What Kubernetes sets in every container for a Service called `kafka`, `ingest-...` or `onelake-...`.
SERVICE_LINK = re.compile(r"[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)")
SERVICE_ADDRESS = ("tcp://", "udp://")
SIMILAR_ENOUGH = 0.86
LEAST_SIMILAR = 0.5


def unknown_variables(variables: Mapping[str, str], origin: Origin) -> Iterator[str]:
    """What to say of each variable that is meant for us, as far as its name shows, and sets nothing."""
    known = known_variables()
    for name in sorted(variables):
        if name in known or name in FOREIGN_NAMES or name.startswith(FOREIGN_FAMILIES):
            continue
        nearest = _nearest(name, SIMILAR_ENOUGH)
        if OF_A_BROKER.fullmatch(name) and not nearest:
            continue
        if SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and variables[name].startswith(SERVICE_ADDRESS)):
            continue
        if any(family.entry(name) for family in variable_families()):
            continue
        # A shell's environment is full of other programs' names, and a .env file is often shared with them.
        if name.startswith(OWN_PREFIXES):
            guess = _nearest(name, LEAST_SIMILAR)
            hint = f" Did you mean {guess}?" if guess else " `ingest config` lists every setting."
            yield f"Unknown setting {name} in {origin}.{hint}"
        elif nearest and len(name) > len("ENVIRON"):
            yield f"Unknown setting {name} in {origin}. Did you mean {nearest}?"


def unknown_yaml_names(values: Mapping[str, object]) -> Iterator[str]:
    """What to say of each name in config.yaml that is no setting."""
    known = [path for path, _ in leaves()]
    for path in values:
        if path not in known:
            guess = difflib.get_close_matches(path, known, n=1, cutoff=LEAST_SIMILAR)
            hint = f" Did you mean {guess[0]}?" if guess else " `ingest config` lists every setting."
            yield f"Unknown setting {path} in {Origin.YAML}.{hint}"


# A process reads its settings more than once, and the other programs' names in its environment stay what they are.
@cache
def _nearest(name: str, similarity: float) -> str | None:
    """The variable of ours that this name is most like, if it is that similar."""
    return next(iter(difflib.get_close_matches(name, known_variables(), n=1, cutoff=similarity)), None)
