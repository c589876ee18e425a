"""Questions to the webserver of the stack, as its own pages ask them."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUEST_SECONDS = 10.0


def ask(port: int, query: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The data of the answer to a GraphQL query or mutation.

    Args:
        port: the webserver's, on the loopback interface.
        query: GraphQL.
        variables: of the query.

    Raises:
        OSError, http.client.HTTPException: the webserver does not answer.
        ValueError, KeyError, TypeError: what it answers is not JSON, or holds no data.
    """
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": query, "variables": dict(variables or {})}).encode(),
        {"Content-Type": "application/json"},
    )
    # A proxy from the environment must not be asked for an address of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=REQUEST_SECONDS) as response:
        data: dict[str, Any] = json.load(response)["data"]
    return data
