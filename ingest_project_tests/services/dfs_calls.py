"""The single calls of the DFS test server, and of the blob endpoint as far as the SDK uses it."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import json
import re
from collections.abc import Callable

from ingest_project_tests.services.dfs_faults import Fault
from ingest_project_tests.services.dfs_tree import DfsError, Entry, FileSystem
from ingest_project_tests.services.http_exchange import Answer, CutError, Request

SAS = "sv=2024-11-04&ss=b&srt=sco&sp=rwdlac&se=2099-01-01T00:00:00Z&sig=dGVzdC1zaWduYXR1cmU%3D"
SIGNATURE = "dGVzdC1zaWduYXR1cmU="
ACCOUNT = "testaccount"
PAGE = 5_000
KEPT_HEADERS = ("content-type", "content-encoding", "content-language", "content-disposition", "cache-control")


def operation_of(request: Request, path: str) -> str:
    """Return the item of `dfs_faults.OPERATIONS` that a request is."""
    query, method = request.query, request.method
    action = query.get("action", "")
    if not path:
        return "list" if method == "GET" and query.get("resource") == "filesystem" else "file_system"
    if action.lower().startswith(("setaccesscontrol", "getaccesscontrol")):
        return "access_control"
    if method == "PUT":
        return _put_operation(request)
    if action in {"append", "flush"}:
        return action
    return {"GET": "read", "HEAD": "properties", "DELETE": "delete", "PATCH": "set_properties"}[method]


def _put_operation(request: Request) -> str:
    if "comp" in request.query:
        return "set_properties"
    if "x-ms-blob-type" in request.headers:
        return "put"
    return "rename" if "x-ms-rename-source" in request.headers else "create"


def meet(fault: Fault | None, request: Request) -> None:
    """Raise the fault that takes effect before the request is served."""
    if fault and fault.kind == "refuse":
        raise DfsError(fault.status, fault.code)
    if fault and fault.kind == "cut":
        request.body(at_most=request.unread // 2)
        raise CutError


def require_credential(request: Request) -> None:
    """Refuse a request without a SAS or shared key of ours. A shared key's signature is not computed again."""
    authorization = request.headers.get("authorization", "")
    if authorization.startswith(f"SharedKey {ACCOUNT}:"):
        return
    signature = request.query.get("sig")
    if signature is None:
        raise DfsError(401, "NoAuthenticationInformation", "The request carries no credential that is known.")
    source = request.headers.get("x-ms-rename-source", "sig=")
    if signature != SIGNATURE or "sig=" not in source:
        raise DfsError(403, "AuthenticationFailed", "Signature did not match.")


def require_digest(request: Request, data: bytes) -> None:
    """Refuse a body that does not match its MD5."""
    declared = request.headers.get("content-md5")
    if declared and declared != base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode():
        raise DfsError(400, "Md5Mismatch", "The MD5 value does not match the content.")


def require_conditions(request: Request, entry: Entry) -> None:
    """Refuse when the file is not the requested version."""
    if request.headers.get("if-match", entry.etag) not in {entry.etag, "*"}:
        raise DfsError(412, "ConditionNotMet")


def require_version(system: FileSystem, request: Request, path: str, code: str) -> None:
    """Refuse to write over a file that should not be there, or is not the requested version."""
    existing = system.find(path)
    if request.headers.get("if-none-match") == "*" and existing is not None:
        raise DfsError(409, code)
    if "if-match" in request.headers and (existing is None or existing.etag != request.headers["if-match"]):
        raise DfsError(412, "ConditionNotMet")


def _create(system: FileSystem, request: Request, path: str, _: bytes) -> Answer:
    existing = system.find(path)
    if request.headers.get("if-none-match") == "*" and existing is not None:
        raise DfsError(409, "PathAlreadyExists")
    if request.query.get("resource") == "directory":
        system.make_folders(path)
        entry = system.get(path)
    else:
        entry = system.create_file(path)
        entry.headers["content-type"] = "application/octet-stream"
        entry.metadata = _sent_metadata(request)
        entry.headers |= _sent_headers(request)
    return Answer(201, version_headers(entry))


def _put(system: FileSystem, request: Request, path: str, data: bytes) -> Answer:
    """Write a whole file as Put Blob does: visible completely or not at all."""
    require_version(system, request, path, "BlobAlreadyExists")
    entry = system.create_file(path)
    entry.append(0, data)
    entry.flush(len(data))
    md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    entry.headers = {"content-type": "application/octet-stream"} | _sent_headers(request) | {"content-md5": md5}
    entry.metadata = _sent_metadata(request)
    return Answer(201, version_headers(entry) | {"Content-MD5": md5})


def _append(request: Request, entry: Entry, data: bytes) -> Answer:
    if entry.is_directory:
        raise DfsError(409, "InvalidResourceType")
    position = int(request.query["position"])
    entry.append(position, data)
    headers = {"x-ms-request-server-encrypted": "true"}
    if request.query.get("flush") == "true":
        entry.flush(position + len(data))
        headers |= version_headers(entry)
    return Answer(202, headers)


def _flush(request: Request, entry: Entry, _: bytes) -> Answer:
    entry.flush(int(request.query["position"]))
    entry.headers |= _sent_headers(request)
    return Answer(200, version_headers(entry))


def _set_properties(request: Request, entry: Entry, _: bytes) -> Answer:
    if request.query.get("comp") != "properties":
        entry.metadata = _sent_metadata(request)
    if request.query.get("comp") != "metadata":
        entry.headers |= _sent_headers(request)
    entry.touch()
    return Answer(200, version_headers(entry))


def _read(request: Request, entry: Entry, _: bytes) -> Answer:
    headers = _entry_headers(entry)
    if request.method == "HEAD":
        return Answer(200, headers, body_size=entry.size)
    if entry.is_directory or entry.content is None:
        raise DfsError(409, "InvalidResourceType")
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("x-ms-range") or request.headers.get("range") or "")
    if not wanted:
        return Answer(200, headers, entry.content.read(0, entry.size))
    start = int(wanted[1])
    end = min(int(wanted[2]) if wanted[2] else entry.size, entry.size - 1)
    if start >= entry.size:
        raise DfsError(416, "InvalidRange")
    headers["Content-Range"] = f"bytes {start}-{end}/{entry.size}"
    return Answer(206, headers, entry.content.read(start, end - start + 1))


def _list(system: FileSystem, request: Request, *_: object) -> Answer:
    query = request.query
    directory = query.get("directory", "").strip("/")
    limit = min(int(query.get("maxResults") or PAGE), PAGE)
    after = base64.b64decode(query.get("continuation", "")).decode()
    recursive = query.get("recursive", "").lower() == "true"
    found, last = system.listing(directory, recursive=recursive, after=after, limit=limit)
    paths = [_listed(path, entry) for path, entry in found]
    headers = {"Content-Type": "application/json"}
    if last:
        headers["x-ms-continuation"] = base64.b64encode(last.encode()).decode()
    return Answer(200, headers, json.dumps({"paths": paths}).encode())


def _delete(system: FileSystem, request: Request, path: str, _: bytes) -> Answer:
    system.delete(path, recursive=request.query.get("recursive") == "true")
    return Answer()


def _describe(system: FileSystem, *_: object) -> Answer:
    return Answer(headers=_entry_headers(system.get("")))


ON_FILE_SYSTEM: dict[str, Callable[[FileSystem, Request, str, bytes], Answer]] = {
    "list": _list,
    "file_system": _describe,
    "create": _create,
    "put": _put,
    "delete": _delete,
}
ON_ENTRY: dict[str, Callable[[Request, Entry, bytes], Answer]] = {
    "append": _append,
    "flush": _flush,
    "set_properties": _set_properties,
    "read": _read,
    "properties": _read,
}


def _listed(path: str, entry: Entry) -> dict[str, str]:
    listed = {
        "name": path,
        "contentLength": str(entry.size),
        "lastModified": email.utils.formatdate(entry.modified, usegmt=True),
        "etag": entry.etag.strip('"'),
        "creationTime": str(int(entry.created * 10_000_000) + 116_444_736_000_000_000),
    }
    return listed | {"isDirectory": "true"} if entry.is_directory else listed


def refused(refusal: DfsError, fault: Fault | None) -> Answer:
    """Return a refusal in the service's words."""
    headers = {"x-ms-error-code": refusal.code, "Content-Type": "application/json;charset=utf-8"}
    if fault and fault.retry_after is not None:
        headers["Retry-After"] = f"{fault.retry_after:g}"
    body = json.dumps({"error": {"code": refusal.code, "message": refusal.message}}).encode()
    return Answer(refusal.status, headers, body)


def version_headers(entry: Entry) -> dict[str, str]:
    """Return the headers that identify a version of a file."""
    return {"ETag": entry.etag, "Last-Modified": email.utils.formatdate(entry.modified, usegmt=True)}


def _entry_headers(entry: Entry) -> dict[str, str]:
    """Return the headers of both forms at once: the DFS call's and the blob call's."""
    kind = "directory" if entry.is_directory else "file"
    headers = version_headers(entry) | {
        "x-ms-resource-type": kind,
        "x-ms-blob-type": "BlockBlob",
        "x-ms-creation-time": email.utils.formatdate(entry.created, usegmt=True),
        "x-ms-lease-state": "available",
        "x-ms-lease-status": "unlocked",
        "x-ms-server-encrypted": "true",
        "Accept-Ranges": "bytes",
    }
    headers |= {name.title(): value for name, value in entry.headers.items() if name != "content-md5"}
    if "content-md5" in entry.headers:
        headers["Content-MD5"] = headers["x-ms-blob-content-md5"] = entry.headers["content-md5"]
    if entry.is_directory:
        headers["x-ms-meta-hdi_isfolder"] = "true"
    return headers | {f"x-ms-meta-{name}": value for name, value in entry.metadata.items()}


def _sent_headers(request: Request) -> dict[str, str]:
    """Return the properties of a file that a request sets, in either form."""
    found = {}
    for name in (*KEPT_HEADERS, "content-md5"):
        value = request.headers.get(f"x-ms-{name}") or request.headers.get(f"x-ms-blob-{name}")
        if value:
            found[name] = value
    return found


def _sent_metadata(request: Request) -> dict[str, str]:
    """Return the metadata of the DFS form (one header of base64 values) or the blob form (a header each)."""
    pairs = (pair.partition("=") for pair in request.headers.get("x-ms-properties", "").split(",") if pair)
    metadata = {name: base64.b64decode(value).decode("latin-1") for name, _, value in pairs}
    sent = {name[10:]: value for name, value in request.headers.items() if name.startswith("x-ms-meta-")}
    for value in metadata.values():
        if not value.isascii() or not value.isprintable():
            raise DfsError(400, "InvalidMetadata", "Metadata values are printable ASCII.")
    return metadata | sent
