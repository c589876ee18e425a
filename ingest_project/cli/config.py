"""`ingest config` shows every setting in force, where it came from, and the parts that other packages bring."""

from __future__ import annotations

import sys
from typing import Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from ingest_project.core.console import (
    AsJson,
    add_row,
    print_json,
)
from ingest_project.core.plugins import InstalledPlugin, Plugins
from ingest_project.core.settings import Setting, load_settings

PIPE_WIDTH = 200


def register_config(app: typer.Typer) -> None:
    """Add the command."""
    app.command("config")(show_settings)


def show_settings(*, as_json: AsJson = False) -> None:
    """Show every setting in force and where it came from, and installed plug-ins; secrets are masked."""
    settings = list(load_settings().each())
    if as_json:
        print_json([_as_record(setting) for setting in settings])
    else:
        # A pipe or a file has no width that limits the table.
        console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        console.print(_settings_table(settings))
        if found := installed_plugins():
            console.print(_plugins_table(found))


def installed_plugins() -> list[InstalledPlugin]:
    """Return every part that another package brings, each with its problem, if it has one."""
    # Loaded here: of all commands only this one needs every kind of part.
    from ingest_project.operations.alerts import CHANNELS  # noqa: PLC0415
    from ingest_project.platform.object_store import STORES  # noqa: PLC0415
    from ingest_project.readers.reading import READERS  # noqa: PLC0415
    from ingest_project.sources.registry import SOURCES  # noqa: PLC0415

    kinds: tuple[Plugins[Any], ...] = (READERS, SOURCES, STORES, CHANNELS)
    return [plugin for kind in kinds for plugin in kind.plugins()]


def _plugins_table(found: list[InstalledPlugin]) -> Table:
    made = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("Plug-in", "Name", "Package", "State"):
        made.add_column(title, overflow="fold")
    for plugin in found:
        state = f"not used: {plugin.problem}" if plugin.problem else "ready"
        add_row(made, plugin.group.rpartition(".")[2], plugin.name, plugin.package, state)
    return made


def _settings_table(settings: list[Setting]) -> Table:
    made = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("Setting", "Value", "From", "Environment variable", "Meaning"):
        made.add_column(title, overflow="fold")
    for setting in settings:
        variables = " or ".join(setting.env_names)
        cells = (setting.path, _text(setting.value), setting.origin.value, variables, setting.description)
        add_row(made, *cells)
    return made


def _as_record(setting: Setting) -> dict[str, object]:
    plain = isinstance(setting.value, bool | int | float) or setting.value is None
    return {
        "setting": setting.path,
        "value": setting.value if plain else _text(setting.value),
        "origin": setting.origin.value,
        "environment_variables": list(setting.env_names),
        "description": setting.description,
    }


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
