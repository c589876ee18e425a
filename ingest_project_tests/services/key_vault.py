"""A vault that speaks Azure Key Vault's protocol for secrets over TLS, with the challenge of the real one."""

from __future__ import annotations

import json
from pathlib import Path

from ingest_project_tests.services.ftps_server import made_certificates
from ingest_project_tests.services.http_exchange import Answer, HttpServer, Request, ServedOverHttp

# A host must be below the domain that its challenge names; of an address, everything counts.
DOMAIN_OF_THIS_HOST = "0.0.1"


class KeyVaultServer(ServedOverHttp):
    """Gives the newest version of a secret, or a named one, to who brings a token.

    Attributes:
        versions: of each secret, the oldest first.
        reads: paths of the secrets that were given.
        is_away: whether it answers 503.
        refused: how often it has.
    """

    def __init__(self, folder: Path) -> None:
        self.versions: dict[str, list[str]] = {}
        self.reads: list[str] = []
        self.is_away = False
        self.refused = 0
        certificates = made_certificates(folder)
        self.authority = certificates.authority
        self._http = HttpServer(self._respond, tls=certificates.server)
        self.port = self._http.server_address[1]
        self.host = f"127.0.0.1:{self.port}"

    def _respond(self, request: Request) -> Answer:
        if "authorization" not in request.headers:
            resource = f"https://{DOMAIN_OF_THIS_HOST}:{self.port}"
            challenge = f'Bearer authorization="https://login.example.com/tenant", resource="{resource}"'
            return Answer(401, {"WWW-Authenticate": challenge}, b"")
        if self.is_away:
            self.refused += 1
            return _answer(503, {"error": {"code": "ServerBusy", "message": "Come back later."}})
        _, _, name, *version = request.path.rstrip("/").split("/")
        known = self.versions.get(name, [])
        number = int(version[0]) if version else len(known)
        if not 0 < number <= len(known):
            return _answer(404, {"error": {"code": "SecretNotFound", "message": f"No secret {name}."}})
        self.reads.append(request.path)
        found = f"https://{self.host}/secrets/{name}/{number}"
        return _answer(200, {"value": known[number - 1], "id": found, "attributes": {"enabled": True}})


def _answer(status: int, content: object) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(content).encode())
