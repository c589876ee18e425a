"""A server of the DFS calls that OneLake has, driven by Microsoft's own SDK in the tests.

It keeps a tenant of workspaces with one lakehouse each (`lake.Lakehouse`, by name or GUID), where Fabric's rules hold,
and plain containers, where they do not. Like the service it makes appended data part of a file only when it is flushed,
wants the parent of a rename's target to be there, and answers the blob calls that the SDK makes, on the same port.

    python -m ingest_project_tests.services.dfs_server --port 0 --folder /tmp/files
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import ssl
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Lock
from typing import Any
from urllib.parse import unquote

import pytest
from pydantic import SecretStr

from ingest_project.platform.azure import OneLakeCredential, OneLakeOptions
from ingest_project_tests.services.dfs_calls import (
    ON_ENTRY,
    ON_FILE_SYSTEM,
    SAS,
    meet,
    operation_of,
    refused,
    require_conditions,
    require_credential,
    require_digest,
    require_version,
    version_headers,
)
from ingest_project_tests.services.dfs_faults import Fault, Faults
from ingest_project_tests.services.dfs_tree import DfsError, Entry, FileSystem
from ingest_project_tests.services.ftps_server import made_certificates
from ingest_project_tests.services.http_exchange import Answer, CutError, HttpServer, Request, ServedOverHttp

ACCOUNT_KEY = base64.b64encode(b"a key that signs nothing of value").decode()
ITEM = "lake.Lakehouse"
FIRST_LEVEL = ("Files", "Tables")
MANAGED_LEVELS = 2


def guid_of(name: str) -> str:
    """Return the GUID by which a workspace or item can be addressed as well."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


class DfsServer(ServedOverHttp):
    """The service; a context manager.

    Args:
        folder: where contents are kept; in memory without.
        workspaces: names of OneLake workspaces, each with one item that has `Files` and `Tables`.
        containers: names of plain file systems, without Fabric's rules.
        tls: what it shows; without, it speaks plain http.
    """

    def __init__(
        self,
        folder: Path | None = None,
        port: int = 0,
        workspaces: tuple[str, ...] = ("analytics",),
        containers: tuple[str, ...] = ("plain",),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.faults = Faults()
        self._requests: Counter[str] = Counter()
        self._lock = Lock()
        self._fabric = set(workspaces)
        self._names = {guid_of(name): name for name in (*workspaces, ITEM)}
        self._systems = {name: FileSystem(folder) for name in (*workspaces, *containers)}
        for name in workspaces:
            for level in FIRST_LEVEL:
                self._systems[name].make_folders(f"{ITEM}/{level}")
        self._http = HttpServer(self._respond, port, tls)

    @property
    def url(self) -> str:
        """Address of the account."""
        return self._http.url

    @property
    def options(self) -> OneLakeOptions:
        """How to reach it: by SAS, with short waits."""
        return OneLakeOptions(OneLakeCredential(sas=SecretStr(SAS)), endpoint=self.url, read_timeout_seconds=5.0)

    def requests(self) -> dict[str, int]:
        """Return the number of requests of each kind since the last call."""
        with self._lock:
            counted, self._requests = dict(self._requests), Counter()
        return counted

    def fail(self, operation: str, **fault: Any) -> None:  # noqa: ANN401 - the fields of Fault
        """Add a fault, see `Fault`."""
        self.faults.add(Fault(operation, **fault))

    def paths(self, file_system: str = "analytics") -> list[str]:
        """Return the paths of a file system's files, in order."""
        system = self._systems[file_system]
        with system.lock:
            found, _ = system.listing("", recursive=True, after="", limit=10_000_000)
        return [path for path, entry in found if not entry.is_directory]

    def entry(self, path: str, file_system: str = "analytics") -> Entry:
        """Return the stored entry of a file."""
        return self._systems[file_system].get(path)

    def content(self, path: str, file_system: str = "analytics") -> bytes:
        """Return the committed bytes of a file."""
        entry = self.entry(path, file_system)
        return entry.content.read(0, entry.size) if entry.content else b""

    def put_all(self, paths: Sequence[str], content: bytes, file_system: str = "analytics") -> None:
        """Store files of one content without a request for each."""
        system = self._systems[file_system]
        with system.lock:
            for path in paths:
                entry = system.create_file(path)
                entry.append(0, content)
                entry.flush(len(content))

    def remove(self, path: str, file_system: str = "analytics") -> None:
        """Remove a file, e.g. to free the memory of a large one."""
        system = self._systems[file_system]
        with system.lock:
            system.delete(path, recursive=True)

    def _respond(self, request: Request) -> Answer:
        if request.path.startswith("/-/"):
            return self._control(request)
        name, _, path = request.path.lstrip("/").partition("/")
        name, path = self._names.get(name, name), self._named(path.strip("/"))
        operation = operation_of(request, path)
        if "directory" in request.query:
            request.query["directory"] = self._named(request.query["directory"].strip("/"))
        with self._lock:
            self._requests[operation] += 1
        fault = self.faults.take(operation, path)
        try:
            meet(fault, request)
            require_credential(request)
            answer = self._serve(operation, request, name, path, fault)
        except DfsError as refusal:
            answer = refused(refusal, fault)
        if fault and fault.kind == "lose":
            raise CutError
        if fault and fault.kind == "half":
            answer.stop_after = len(answer.body) // 2
        answer.headers |= {"x-ms-request-id": str(uuid.uuid4()), "x-ms-version": "2021-06-08"}
        return answer

    def _serve(self, operation: str, request: Request, name: str, path: str, fault: Fault | None) -> Answer:
        self._require_allowed(operation, request, name, path)
        system = self._systems.get(name)
        if system is None:
            raise DfsError(404, "FilesystemNotFound", "The specified filesystem does not exist.")
        # A body arrives at the client's pace: never read one while others wait for the lock.
        data = request.body()
        require_digest(request, data)
        if fault and fault.kind == "forget":
            return Answer(202)
        with system.lock:
            if operation == "rename":
                return self._rename(system, request, name, path)
            if operation in ON_FILE_SYSTEM:
                return ON_FILE_SYSTEM[operation](system, request, path, data)
            entry = system.get(path)
            require_conditions(request, entry)
            return ON_ENTRY[operation](request, entry, data)

    def _require_allowed(self, operation: str, request: Request, name: str, path: str) -> None:
        """Refuse what OneLake itself refuses."""
        if operation == "file_system" and request.method not in {"HEAD", "GET"}:
            raise DfsError(403, "OperationNotAllowedOnThePath", "Workspaces are made and removed in Fabric.")
        if name not in self._fabric:
            return
        if operation == "access_control":
            raise DfsError(400, "UnsupportedOperation", "Access control is not set through this API.")
        managed = not path or len(path.split("/")) <= MANAGED_LEVELS
        if operation in {"create", "put", "rename", "delete", "append", "flush", "set_properties"} and managed:
            raise DfsError(403, "OperationNotAllowedOnThePath", "Items and their first level belong to Fabric.")
        if operation in {"create", "put", "rename"} and self._systems[name].find("/".join(path.split("/")[:2])) is None:
            raise DfsError(404, "PathNotFound", "There is no such item.")

    def _rename(self, system: FileSystem, request: Request, name: str, path: str) -> Answer:
        source_name, _, source = unquote(request.headers["x-ms-rename-source"].split("?")[0]).lstrip("/").partition("/")
        source = self._named(source)
        if self._names.get(source_name, source_name) != name:
            raise DfsError(400, "InvalidRenameSourcePath", "Not in this file system.")
        self._require_allowed("delete", request, name, source)
        entry = system.get(source, "SourcePathNotFound")
        if request.headers.get("x-ms-source-if-match", entry.etag) != entry.etag:
            raise DfsError(412, "SourceConditionNotMet")
        require_version(system, request, path, "PathAlreadyExists")
        system.rename(source, path)
        return Answer(201, version_headers(entry))

    def _named(self, path: str) -> str:
        item, slash, rest = path.partition("/")
        return self._names.get(item, item) + slash + rest

    def _control(self, request: Request) -> Answer:
        """Serve tests in another process: POST and DELETE `/-/faults`, GET `/-/requests`."""
        if request.path == "/-/requests":
            return Answer(body=json.dumps(self.requests()).encode())
        if request.method == "DELETE":
            self.faults.clear()
        else:
            self.faults.add(Fault(**json.loads(request.body())))
        return Answer(202)


@pytest.fixture(scope="session")
def _dfs_service() -> Iterator[DfsServer]:
    with DfsServer() as server:
        yield server


@pytest.fixture
def dfs(_dfs_service: DfsServer) -> Iterator[DfsServer]:
    """The server all tests share, without faults; each test works in a folder of its own."""
    _dfs_service.requests()
    yield _dfs_service
    _dfs_service.faults.clear()


@pytest.fixture
def dfs_url(dfs: DfsServer) -> str:
    """Address of a folder of OneLake for this test alone; it is not there yet."""
    return f"{dfs.url}/analytics/{ITEM}/Files/{uuid.uuid4().hex[:12]}"


def main() -> None:
    """Serve until interrupted; the first line says where, and how to get in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep contents in files here instead of in memory")
    parser.add_argument("--tls", type=Path, help="speak TLS, and keep its certificates in this folder")
    arguments = parser.parse_args()
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    stopped = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    certificates = made_certificates(arguments.tls) if arguments.tls else None
    with DfsServer(arguments.folder, arguments.port, tls=certificates.server if certificates else None) as server:
        root, authority = f"{server.url}/analytics/{ITEM}/Files", str(certificates and certificates.authority)
        print(json.dumps({"url": server.url, "sas": SAS, "root": root, "authority": authority}), flush=True)  # noqa: T201 - read by the program that started it
        stopped.wait()


if __name__ == "__main__":
    main()
