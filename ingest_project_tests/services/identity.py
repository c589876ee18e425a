"""The identity endpoint that Azure gives to its hosted applications, so that azure-identity's default credential works.

Its tokens are JSON web tokens without a signature, which nothing but a test would trust.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ingest_project.platform.azure.identity import default_credential
from ingest_project_tests.services.http_exchange import Answer, HttpServer, Request

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
    """Issues a token to every client with the secret.

    Attributes:
        resources: of the requested tokens.
        refuses: whether it gives none.
        lifetime_seconds: of a token.
    """

    def __init__(self) -> None:
        self.secret = "secret-of-the-identity-endpoint"  # noqa: S105 - of this server alone
        self.resources: list[str] = []
        self.refuses = False
        self.lifetime_seconds = 3600
        self._http = HttpServer(self._respond)
        self._http.__enter__()
        self.endpoint = f"{self._http.url}/token"

    def token(self, resource: str) -> str:
        """Return the token for a resource: always the same one, as if issued in 2026."""
        return _unsigned({"sub": "test-application", "aud": resource, "iat": 1_780_000_000, "exp": 4_000_000_000})

    def stop(self) -> None:
        """End the server."""
        self._http.__exit__()

    def _respond(self, request: Request) -> Answer:
        resource = request.query["resource"]
        self.resources.append(resource)
        if request.headers.get("x-identity-header") != self.secret or self.refuses:
            return _answer(400, {"statusCode": 400, "message": "No managed identity is assigned."})
        expires_on = str(int(time.time()) + self.lifetime_seconds)
        token = {"access_token": self.token(resource), "expires_on": expires_on, "token_type": "Bearer"}
        return _answer(200, token | {"resource": resource})


def _answer(status: int, body: dict[str, Any]) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(body).encode())


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
