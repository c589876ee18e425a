"""A schema registry on 127.0.0.1: the calls that Confluent's client makes to read and register schemas, and faults.

Schemas are kept as they are registered. A Protobuf schema is registered by its descriptor, which the client gets back
with `format=serialized` only; without, it gets a text that cannot be read, as nobody here needs it.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections import Counter
from typing import Any

from ingest_project_tests.services.http_exchange import Answer, HttpServer, Request, ServedOverHttp

BASIC_USER = "reader:secret"
TOKEN = "a-token"  # noqa: S105 - of a test


class SchemaRegistry(ServedOverHttp):
    """A context manager.

    Args:
        authentication: what every request must carry: nothing, `basic` or `bearer`.
    """

    def __init__(self, authentication: str = "") -> None:
        self.authentication = authentication
        self.requests: Counter[str] = Counter()
        # Answered instead of everything, while it is set.
        self.status = 0
        self.answer: Answer | None = None
        self._schemas: list[dict[str, Any]] = []
        self._subjects: dict[str, list[int]] = {}
        self._http = HttpServer(self._respond)

    @property
    def url(self) -> str:
        """Its address."""
        return self._http.url

    def register(
        self, subject: str, schema: object, kind: str = "AVRO", references: list[dict[str, Any]] | None = None
    ) -> int:
        """Register a schema as a producer does; returns its id."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return self._register(subject, {"schema": text, "schemaType": kind, "references": references or []})

    def _respond(self, request: Request) -> Answer:
        self.requests[f"{request.method} {request.path}"] += 1
        wanted = {"basic": f"Basic {base64.b64encode(BASIC_USER.encode()).decode()}", "bearer": f"Bearer {TOKEN}"}
        if self.answer is not None:
            return self.answer
        if self.status:
            return _json({"error_code": self.status, "message": "as the test wants"}, self.status)
        if self.authentication and request.headers.get("authorization") != wanted[self.authentication]:
            return _json({"error_code": 401, "message": "Unauthorized"}, 401)
        for method, pattern, answer in (
            ("GET", r"/schemas/ids/(\d+)", self._by_id),
            ("GET", r"/schemas/guids/([\w-]+)", self._by_guid),
            ("GET", r"/subjects", lambda _request: list(self._subjects)),
            ("POST", r"/subjects/([^/]+)/versions", self._new_version),
            ("GET", r"/subjects/([^/]+)/versions/(\w+)", self._version),
            ("POST", r"/subjects/([^/]+)", self._look_up),
            ("GET", r"/config(?:/([^/]+))?", lambda _request, *_subject: {"compatibilityLevel": "NONE"}),
        ):
            found = re.fullmatch(pattern, request.path)
            if found and request.method == method:
                body: Any = answer(request, *found.groups())
                return _json({"error_code": 40403, "message": "Schema not found"}, 404) if body is None else _json(body)
        return _json({"error_code": 404, "message": "No such call"}, 404)

    def _by_id(self, request: Request, schema_id: str) -> object:
        number = int(schema_id)
        return self._shown(number, request) if 0 < number <= len(self._schemas) else None

    def _by_guid(self, request: Request, guid: str) -> object:
        found = [number for number, one in enumerate(self._schemas, 1) if one["guid"] == guid]
        return self._shown(found[0], request) if found else None

    def _new_version(self, request: Request, subject: str) -> object:
        return {"id": self._register(subject, json.loads(request.body()))}

    def _version(self, request: Request, subject: str, version: str) -> object:
        ids = self._subjects.get(subject, [])
        number = len(ids) if version == "latest" else int(version)
        if not 0 < number <= len(ids):
            return None
        return {"subject": subject, "version": number, **self._shown(ids[number - 1], request)}

    def _look_up(self, request: Request, subject: str) -> object:
        wanted = json.loads(request.body())["schema"]
        for version, schema_id in enumerate(self._subjects.get(subject, []), 1):
            if self._schemas[schema_id - 1]["schema"] == wanted:
                return {"subject": subject, "version": version, **self._shown(schema_id, request)}
        return None

    def _register(self, subject: str, wanted: dict[str, Any]) -> int:
        kept = {name: wanted.get(name) for name in ("schema", "schemaType", "references")}
        known = [number for number, one in enumerate(self._schemas, 1) if kept.items() <= one.items()]
        if not known:
            self._schemas.append({**kept, "guid": str(uuid.uuid4())})
            known = [len(self._schemas)]
        ids = self._subjects.setdefault(subject, [])
        if known[0] not in ids:
            ids.append(known[0])
        return known[0]

    def _shown(self, schema_id: int, request: Request) -> dict[str, Any]:
        found = {"id": schema_id, **self._schemas[schema_id - 1]}
        if found["schemaType"] == "PROTOBUF" and request.query.get("format") != "serialized":
            found["schema"] = 'syntax = "proto3";'
        return {name: value for name, value in found.items() if value}


def _json(body: object, status: int = 200) -> Answer:
    headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
    return Answer(status, headers, json.dumps(body).encode())
