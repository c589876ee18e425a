"""docker-compose.yml as Docker reads it: anchors merged, variables filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
EXAMPLE = ROOT / "deploy" / "compose.env.example"
SETTINGS = ROOT / "deploy" / "compose.settings.env"
# ${NAME}, ${NAME:-default} and ${NAME:?what is wrong}
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")
REQUIRED = {
    "POSTGRES_PASSWORD": "canary-password",
    "MONITOR_TOKEN": "canary-token-of-the-tests",
    "GRAFANA_PASSWORD": "canary-of-grafana",
}


def compose(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The whole file, with these variables and the defaults of the others."""
    values = REQUIRED if variables is None else variables

    def fill(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if kind == "?" and name not in values:
            raise KeyError(name)
        return values.get(name, rest if kind == "-" else "")

    content: dict[str, Any] = yaml.safe_load(VARIABLE.sub(fill, COMPOSE_FILE.read_text(encoding="utf-8")))
    return content


def services() -> dict[str, dict[str, Any]]:
    """Every service by name; in its environment the settings that the project ships, which its own win over."""
    found: dict[str, dict[str, Any]] = compose()["services"]
    for service in found.values():
        if "env_file" in service:
            service["environment"] = {**shipped_settings(REQUIRED), **service["environment"]}
    return found


def shipped_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of deploy/compose.settings.env, as Compose fills in variables there too."""
    text = VARIABLE.sub(lambda found: variables.get(found[1], found[3] or ""), SETTINGS.read_text(encoding="utf-8"))
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def example_variables() -> dict[str, str]:
    """What the example of the env file sets."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}
