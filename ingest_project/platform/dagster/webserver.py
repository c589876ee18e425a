"""Dagster's webserver, guarded against other sites' pages.

    python -m ingest_project.platform.dagster.webserver --workspace workspace.yaml --port 3000

takes the arguments of `dagster-webserver` and is the same server behind a guard. `dagster-webserver` itself answers
under any host name and executes GraphQL mutations by GET and from any page: a page of another site could launch, end or
delete runs, by a link or by DNS rebinding. This server answers only under the names of this machine and the name in
INGEST_WEBSERVER_URL, changes nothing by GET, refuses requests from other sites' pages, and serves no files but the
output of runs. It has no login: put a proxy with one in front of it wherever others can reach it.
"""

from __future__ import annotations

import re
import sys
from typing import Any
from urllib.parse import urlsplit

from dagster_webserver import app, cli
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ingest_project.core.local_files import keep_files_private
from ingest_project.core.settings import current_settings
from ingest_project.platform.http import host_of, is_loopback, is_same_origin

GRAPHQL = "/graphql"
# Probes address a pod or container by its IP address; this path returns versions only.
OPEN_PATH = "/server_info"
LOOKING = ("GET", "HEAD")
# The router accepts a path with a trailing line break as the same path.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
# /notebook reads any path; a debug file is everything about a run, built in memory; /logs/ serves every file in the
# folder of compute logs.
FILES = re.compile(r"/(dagit/)?notebook|/(download_debug|logs)/.*")
OUTPUT_OF_RUN = re.compile(r"/logs/[^/]+/compute_logs/[^/]+/(out|err)")


class SameSiteOnly:
    """Pass on requests of programs, and of browsers that show the UI under its own name.

    Args:
        app: the webserver.
        site: public address of the UI.
        prefix: prefix of the paths, without a slash at its end.
    """

    def __init__(self, app: ASGIApp, site: str, prefix: str = "") -> None:
        self._app, self._prefix = app, prefix
        self._name = (urlsplit(site).hostname or "").lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        refusal = self._refusal(scope) if scope["type"] in {"http", "websocket"} else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        else:
            await PlainTextResponse(f"{refusal[1]}\n", refusal[0])(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and reason of a refusal; None to pass the request on."""
        headers, path = Headers(scope=scope), scope["path"].removeprefix(self._prefix)
        if UNPRINTABLE.search(path) or (FILES.fullmatch(path) and not OUTPUT_OF_RUN.fullmatch(path)):
            return 404, "Dagster's downloads are closed. `dagster debug export <run id> <file>` writes a debug file."
        if path == OPEN_PATH:
            return None
        host, _ = host_of(headers.get("host", ""))
        if host != self._name and not is_loopback(host):
            return 421, "The Dagster UI does not answer under this name: set INGEST_WEBSERVER_URL to its address."
        looks = scope["type"] == "http" and scope["method"] in LOOKING
        if looks and path == GRAPHQL and "text/html" not in headers.get("accept", ""):
            return 405, "GraphQL takes POST only."
        if not looks and not is_same_origin(headers):
            return 403, "The request comes from a page of another site."
        return None


def main(arguments: list[str]) -> Any:  # noqa: ANN401 - never returns: it ends the process
    """Serve until stopped."""
    keep_files_private()
    site, create_app = current_settings().dagster.webserver_url, app.create_app_from_workspace_process_context

    def guarded(context: Any, prefix: str = "", *others: Any, **named: Any) -> ASGIApp:  # noqa: ANN401 - Dagster's
        return SameSiteOnly(create_app(context, prefix, *others, **named), site, prefix)

    vars(cli)["create_app_from_workspace_process_context"] = guarded
    return cli.cli(args=arguments, prog_name="dagster-webserver", auto_envvar_prefix="DAGSTER_WEBSERVER")


if __name__ == "__main__":
    main(sys.argv[1:])
