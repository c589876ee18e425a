"""A small OpenID Connect provider: discovery, keys, sign-in without a form, and tokens signed with RS256.

Every answer can be spoilt, as a wrong, a broken or a hostile provider would.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from ingest_project_tests.services.http_exchange import Answer, HttpServer, Request, ServedOverHttp

CLIENT_ID, CLIENT_SECRET = "console", "secret-of-the-console"
KEY, FOREIGN_KEY = (RSAKey.generate_key(2048, {"kid": "first", "use": "sig"}) for _ in range(2))


class OidcProvider(ServedOverHttp):
    """Signs in whoever comes, as the person of `claims`; a context manager.

    Attributes:
        claims: of the person.
        spoil: changes the claims of the next ID tokens; with None in place of a claim it is left out.
        key: that signs them, if any does.
        header: of them.
        metadata: changes of the discovery document.
        userinfo: what its user-info endpoint says, if it has one.
        link: of its page /mail.

    Args:
        name: of this machine.
    """

    def __init__(self, name: str = "127.0.0.1") -> None:
        self._name = name
        self.link = ""
        self.claims: dict[str, Any] = {"sub": "person-1"}
        self.spoil: Callable[[dict[str, Any]], object] = lambda _: None
        self.key: RSAKey | OctKey | None = KEY
        self.header = {"alg": "RS256", "kid": "first"}
        self.metadata: dict[str, Any] = {}
        self.userinfo: dict[str, Any] | None = None
        self.error = ""
        # Those of the sign-ins that have begun; empty where none was sent.
        self.prompts: list[str] = []
        self._codes: dict[str, dict[str, str]] = {}
        self._http = HttpServer(self._respond)

    @property
    def issuer(self) -> str:
        """Its address."""
        return self._http.url.replace("127.0.0.1", self._name)

    def _respond(self, request: Request) -> Answer:
        body = dict(parse_qsl(request.body().decode()))
        found: dict[str, Callable[[], dict[str, Any]]] = {
            "/.well-known/openid-configuration": self._discovery,
            "/keys": lambda: {"keys": [KEY.as_dict(private=False)]},
            "/token": lambda: self._token(request, body),
            "/userinfo": lambda: self.userinfo or {},
        }
        if request.path == "/authorize":
            return self._authorize(request.query)
        if request.path == "/mail":
            return Answer(200, {"Content-Type": "text/html"}, f'<a href="{self.link}">link</a>'.encode())
        if request.path not in found:
            return Answer(404)
        answer = found[request.path]()
        return Answer(
            400 if "error" in answer else 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()
        )

    def _discovery(self) -> dict[str, Any]:
        endpoints = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        if self.userinfo is not None:
            endpoints["userinfo_endpoint"] = "userinfo"
        addresses = {name: f"{self.issuer}/{path}" for name, path in endpoints.items()}
        return {"issuer": self.issuer, **addresses, **self.metadata}

    def _authorize(self, query: dict[str, str]) -> Answer:
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        code = secrets.token_urlsafe(16)
        self._codes[code] = query
        self.prompts.append(query.get("prompt", ""))
        answer = {"error": self.error} if self.error else {"code": code, "iss": self.issuer}
        return Answer(302, {"Location": f"{query['redirect_uri']}?{urlencode(answer | {'state': query['state']})}"})

    def _token(self, request: Request, body: dict[str, str]) -> dict[str, Any]:
        asked = self._codes.pop(body.get("code", ""), None)
        challenge = hashlib.sha256(body.get("code_verifier", "").encode()).digest()
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {basic}" and body.get("client_secret") != CLIENT_SECRET:
            return {"error": "invalid_client"}
        if (
            asked is None
            or _encoded(challenge) != asked["code_challenge"]
            or body.get("redirect_uri") != asked["redirect_uri"]
        ):
            return {"error": "invalid_grant"}
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        claims |= self.claims
        self.spoil(claims)
        told = {name: value for name, value in claims.items() if value is not None}
        if self.key is None:
            id_token = ".".join(_encoded(json.dumps(part).encode()) for part in (self.header, told)) + "."
        else:
            id_token = jwt.encode(self.header, told, self.key, algorithms=[self.header["alg"]])
        return {"access_token": "access", "token_type": "Bearer", "id_token": id_token}


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
