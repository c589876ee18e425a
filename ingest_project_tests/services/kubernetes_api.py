"""The part of the Kubernetes API that starting, watching and ending a run uses: the Jobs and Pods of a namespace.

with KubernetesApi() as api:
    K8sRunLauncher(kubeconfig_file=api.write_kubeconfig(folder), ...)
    api.jobs["dagster-run-..."]["spec"]
"""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import yaml


class KubernetesApi:
    """A server of the API on a free port of this machine.

    Args:
        namespace: the only one that it has.
    """

    def __init__(self, namespace: str) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.deleted: list[str] = []
        self.collection = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def write_kubeconfig(self, folder: Path) -> Path:
        """Write a file that leads clients here, and return its path."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "launcher"}}],
            "users": [{"name": "launcher", "user": {}}],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, api: KubernetesApi, *connection: Any) -> None:  # noqa: ANN401 - as the server calls it
        self._api = api
        super().__init__(*connection)

    def do_POST(self) -> None:
        job = json.loads(self._body())
        name = job["metadata"]["name"]
        if self._path != self._api.collection:
            self._fail(404, "NotFound")
        elif name in self._api.jobs:
            self._fail(409, "AlreadyExists")
        else:
            self._api.jobs[name] = job
            self._answer(201, job)

    def do_GET(self) -> None:
        job = self._api.jobs.get(self._name.removesuffix("/status"))
        if self._path.endswith("/pods"):
            self._answer(200, {"kind": "PodList", "apiVersion": "v1", "items": []})
        elif job is None:
            self._fail(404, "NotFound")
        else:
            self._answer(200, job)

    def do_DELETE(self) -> None:
        self._body()
        if self._api.jobs.pop(self._name, None) is None:
            self._fail(404, "NotFound")
        else:
            self._api.deleted.append(self._name)
            self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    @property
    def _path(self) -> str:
        return self.path.partition("?")[0]

    @property
    def _name(self) -> str:
        return self._path.removeprefix(f"{self._api.collection}/")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _fail(self, code: int, reason: str) -> None:
        self._answer(code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code})

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Keep quiet: pytest's output is for tests."""
