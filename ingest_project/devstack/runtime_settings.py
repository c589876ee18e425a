"""Settings in force once the embedded services run: of this process, and of its children by their environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from ingest_project.core.settings import LoadedSettings, Origin

# Settings that children inherit: the addresses of what this process started, wherever the rest came from.
INHERITED = (
    "kafka.bootstrap_servers",
    "kafka.generation",
    "warehouse.database_url",
    "dagster.postgres_url",
    "dagster.webserver_url",
    # The demo's own web server is inside this network.
    "downloads.allowed_internal_hosts",
    # The demo reads the statistics of hours as soon as their events are stored.
    "user_activity.hourly_refresh_seconds",
)


def is_chosen(loaded: LoadedSettings, path: str) -> bool:
    """Return True if a person set a setting, in any of the sources."""
    return loaded.origins.get(path, Origin.DEFAULT) not in (Origin.DEFAULT, Origin.EMBEDDED)


def with_addresses(loaded: LoadedSettings, addresses: Mapping[str, Any]) -> LoadedSettings:
    """Replace settings by the addresses of what `ingest dev` started.

    Args:
        loaded: as they were read.
        addresses: values by the setting's path, e.g. `kafka.bootstrap_servers`.
    """
    settings = loaded.settings
    for path, value in addresses.items():
        section_name, _, name = path.partition(".")
        section = getattr(settings, section_name)
        changed = type(section).model_validate({**dict(section), name: value})
        settings = settings.model_copy(update={section_name: changed})
    return LoadedSettings(settings, {**loaded.origins, **dict.fromkeys(addresses, Origin.EMBEDDED)})


def child_environment(loaded: LoadedSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that gives a child process the same settings, whatever their origin."""
    inherited = {"INGEST_STATE_DIR": str(loaded.settings.state_dir.absolute())}
    for setting in loaded.each():
        if setting.path in INHERITED and (text := _plain(setting.value)):
            inherited[setting.env_names[0]] = text
    return {**environ, **inherited}


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
