"""`ingest config` shows every setting in force, and where it came from."""

from __future__ import annotations

import sys

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from ingest_project.core.console import (
    AsJson,
    add_row,
    print_json,
)
from ingest_project.core.settings import Setting, load_settings

PIPE_WIDTH = 200


def register_config(app: typer.Typer) -> None:
    """Add the command."""
    app.command("config")(show_settings)


def show_settings(*, as_json: AsJson = False) -> None:
    """Show every setting in force and where it came from; secrets are masked."""
    settings = list(load_settings().each())
    if as_json:
        print_json([_as_record(setting) for setting in settings])
    else:
        # A pipe or a file has no width that limits the table.
        Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(_settings_table(settings))


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
