"""Names that set nothing: a misspelt setting must not silently leave the default in force."""

from __future__ import annotations

import difflib
import re
from functools import cache
from typing import TYPE_CHECKING

from ingest_project.settings.inventory import Origin, known_variables, leaves, variable_families

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OWN_PREFIXES = ("INGEST_", "KAFKA_", "ONELAKE_")
# Names of the same family that belong to Kafka's own start scripts, not to us.
FOREIGN_NAMES = ("KAFKA_HOME", "KAFKA_HEAP_OPTS", "KAFKA_OPTS", "KAFKA_JVM_PERFORMANCE_OPTS", "KAFKA_LOG4J_OPTS")
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
        if SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and variables[name].startswith(SERVICE_ADDRESS)):
            continue
        if any(family.entry(name) for family in variable_families()):
            continue
        nearest = _nearest(name, SIMILAR_ENOUGH)
        ours = name.startswith(OWN_PREFIXES)
        # A shell's environment is full of other programs' names; a .env file beside the project is not.
        if ours or origin is Origin.DOTENV:
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
