"""Render pages from templates: every value is escaped, and every link works below any path of a reverse proxy.

Also defines the resources that the pages share.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

from ingest_project.core.console import value_text
from ingest_project.core.logging import printable, to_json
from ingest_project.core.settings import Settings
from ingest_project.operations import SystemResources
from ingest_project.operations.monitor import Monitor
from ingest_project.platform.items import ItemRef


@dataclass(frozen=True)
class Console:
    """The resources of a page module's routes.

    Args:
        monitor: monitor with the last sample of every part.
    """

    monitor: Monitor

    @property
    def services(self) -> SystemResources:
        """Return database and Kafka clients with short timeouts, shared by all requests."""
        return self.monitor.services

    @property
    def settings(self) -> Settings:
        """Return the settings of the system."""
        return self.monitor.settings

    @property
    def dagster_url(self) -> str:
        """Return the address of the Dagster UI, without a trailing slash."""
        return self.settings.dagster.webserver_url.rstrip("/")


PAGES = files("ingest_project.operations.dashboard") / "pages"
UNITS = ("B", "kB", "MB", "GB", "TB")


def render(request: Request, template: str, /, status: int = 200, **values: object) -> Response:
    """Render a template of the folder `pages` for the sender of the request.

    Args:
        request: request that provides the page's `viewer`, `csrf_token`, and `root`, the relative address of the first
            page.
        template: file name of the template.
        status: status of the response.
        values: further variables of the template.
    """
    shared = {
        "viewer": request.state.viewer,
        "csrf_token": request.state.csrf_token,
        "root": root_of(request.scope),
        "path": request.scope["path"],
        "searched": "",
        "looking_only": f"Only an operator can perform actions, and {request.state.viewer.name} is a viewer.",
    }
    return HTMLResponse(_TEMPLATES.get_template(template).render(shared | values), status)


def page_file(name: str) -> str:
    """Return the text of a script or style sheet of the pages."""
    return (PAGES / name).read_text(encoding="utf-8")


def root_of(scope: Scope) -> str:
    """Return the relative address of the first page, e.g. `../../` on `/items/file/x`.

    A proxy may serve the console below a path that this process does not know.
    """
    # Count slashes like a browser: an encoded slash in a key is not a separator.
    raw = bytes(scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0]
    return "../" * (raw.count(b"/") - 1) or "./"


def size_text(size_bytes: float) -> str:
    """Return a number of bytes for a person, e.g. `5.2 kB`."""
    power = 0
    while size_bytes >= 999.95 and power < len(UNITS) - 1:  # noqa: PLR2004 - rounds to 1,000
        size_bytes, power = size_bytes / 1_000, power + 1
    return f"{size_bytes:,.0f} B" if power == 0 else f"{size_bytes:,.1f} {UNITS[power]}"


def item_path(ref: ItemRef) -> str:
    """Return kind and key of an item as part of an address."""
    return f"{quote(ref.kind, safe='')}/{quote(ref.key, safe='/~')}"


def shown(value: object) -> str:
    """Format any value for people, see `value_text`; lists, mappings and structs as JSON."""
    return value_text(value) if isinstance(value, str | int | float | datetime) else to_json(value)


def _finalized(value: Any) -> Any:  # noqa: ANN401 - whatever a template shows
    # Untrusted text could reorder a line or hide a part of it; the templates' own line breaks are not values.
    return printable(value) if type(value) is str else value


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(str(PAGES)),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    environment.filters |= {
        "size": size_text,
        "time": value_text,
        "shown": shown,
        "item_path": item_path,
        "item_address": lambda ref: f"items/{item_path(ref)}",
    }
    environment.tests["item_ref"] = lambda value: isinstance(value, ItemRef)
    return environment


_TEMPLATES = _environment()
