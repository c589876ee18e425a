"""The identity endpoint that Azure gives to its hosted applications, so that azure-identity's default credential works.

Its tokens are JSON web tokens without a signature, which nothing but a test would trust.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ingest_project.platform.azure.accounts import default_credential

# Each of these makes the default credential try something else, or somebody's own account.
VARIABLES_OF_OTHER_CREDENTIALS = (
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_USERNAME",
    "AZURE_PASSWORD",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_TOKEN_CREDENTIALS",
)


class IdentityServer:
    """Gives a token to whoever knows the secret.

    Attributes:
        resources: what tokens were asked for.
        refuses: whether it gives none.
        lifetime_seconds: of a token.
    """

    def __init__(self) -> None:
        self.secret = "secret-of-the-identity-endpoint"  # noqa: S105 - of this server alone
        self.resources: list[str] = []
        self.refuses = False
        self.lifetime_seconds = 3600
        handler = type("_BoundHandler", (_Handler,), {"identity": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}/token"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def token(self, resource: str) -> str:
        """The token for a resource: always the same one, as if just issued in the year 2026."""
        return _unsigned({"sub": "test-application", "aud": resource, "iat": 1_780_000_000, "exp": 4_000_000_000})

    def stop(self) -> None:
        """End the server."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    identity: IdentityServer

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        resource = parse_qs(urlsplit(self.path).query)["resource"][0]
        self.identity.resources.append(resource)
        if self.headers["X-IDENTITY-HEADER"] != self.identity.secret or self.identity.refuses:
            self._send(400, {"statusCode": 400, "message": "No managed identity is assigned."})
            return
        expires_on = str(int(time.time()) + self.identity.lifetime_seconds)
        token = {"access_token": self.identity.token(resource), "expires_on": expires_on, "token_type": "Bearer"}
        self._send(200, token | {"resource": resource})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def _unsigned(claims: dict[str, Any]) -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "none"}, claims)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "."


@pytest.fixture
def identity_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IdentityServer]:
    """The endpoint, announced in the environment as Azure does; no other credential of this machine is in reach."""
    server = IdentityServer()
    for name in VARIABLES_OF_OTHER_CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IDENTITY_ENDPOINT", server.endpoint)
    monkeypatch.setenv("IDENTITY_HEADER", server.secret)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "prod")
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path_factory.mktemp("azure")))
    # Of the process, with the tokens it got: it must look at this environment, and another test at its own.
    default_credential.cache_clear()
    yield server
    default_credential.cache_clear()
    server.stop()
