"""The object store in OneLake: failures of the service, the network or its own process."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ingest_project.core.errors import PermanentError, StoreUnavailableError
from ingest_project.platform.azure import StoreRejectedError
from ingest_project.platform.object_store import open_store
from ingest_project.platform.object_store.store import ObjectStore, StoredObject
from ingest_project.testing.stores import CHUNK_BYTES, CONTENTS, NAME, digest, put, read
from ingest_project_tests.services.dfs_server import DfsServer
from ingest_project_tests.services.ftps_server import made_certificates

FILL = """
import hashlib, resource, sys
from pathlib import Path
from pydantic import SecretStr
from ingest_project.platform.azure import OneLakeCredential, OneLakeOptions
from ingest_project.core.local_files import LocalFile
from ingest_project.platform.object_store import open_store
url, endpoint, sas, name = sys.argv[1:]
path = Path(name)
options = OneLakeOptions(OneLakeCredential(sas=SecretStr(sas)), endpoint=endpoint, concurrency=4, chunk_bytes=1024**2)
store = open_store(url, onelake=options)
sha256 = hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
store.stat("nothing")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("started", flush=True)
store.put("big/file.bin", LocalFile(path, path.stat().st_size, sha256))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, flush=True)
"""


@pytest.fixture
def onelake(dfs: DfsServer, dfs_url: str) -> ObjectStore:
    return open_store(dfs_url, onelake=replace(dfs.options, chunk_bytes=CHUNK_BYTES, concurrency=3, retries=2))


@pytest.fixture
def hasty(dfs: DfsServer, dfs_url: str) -> ObjectStore:
    """One that gives up at the first failure."""
    return open_store(dfs_url, onelake=replace(dfs.options, chunk_bytes=CHUNK_BYTES, concurrency=3, retries=0))


def put_unless_there(
    store: ObjectStore, folder: Path, content: bytes, name: str = NAME, **metadata: str
) -> StoredObject:
    """Store some bytes as attachments are: what has their size and metadata already is left alone."""
    kept = metadata or {"sha256": digest(content)}

    def differs(present: StoredObject) -> bool:
        return (present.size_bytes, present.metadata) != (len(content), kept)

    return put(store, folder, content, name, metadata=kept, may_replace=differs)


def test_a_small_file_takes_one_request_and_a_large_one_no_more_than_it_must(
    dfs: DfsServer, onelake: ObjectStore, tmp_path: Path
) -> None:
    put_unless_there(onelake, tmp_path, CONTENTS["one chunk"], "a")
    assert dfs.requests() == {"put": 1}
    put_unless_there(onelake, tmp_path, CONTENTS["large"], "b")
    assert dfs.requests() == {"properties": 2, "create": 1, "append": 6, "flush": 1, "rename": 1}
    put_unless_there(onelake, tmp_path, CONTENTS["large"], "b")
    assert dfs.requests() == {"properties": 1}


def test_the_service_keeps_md5_and_content_type_for_other_readers(
    dfs: DfsServer, dfs_url: str, onelake: ObjectStore, tmp_path: Path
) -> None:
    for name, content in CONTENTS.items():
        put_unless_there(onelake, tmp_path, content, name, content_type="image/png")
        headers = dfs.entry(f"{dfs_url.split('analytics/')[1]}/{name}").headers
        assert headers["content-type"] == "image/png"
        assert len(headers["content-md5"]) == 24
    put_unless_there(onelake, tmp_path, b"x", "odd", content_type="text/html\r\nX-Evil: 1")
    assert dfs.entry(f"{dfs_url.split('analytics/')[1]}/odd").headers["content-type"] == "application/octet-stream"


def test_over_tls_files_of_any_size_are_stored_whole_with_their_md5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = made_certificates(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates.authority))
    with DfsServer(tls=certificates.server) as server:
        store = open_store(f"{server.url}/plain/tls", onelake=replace(server.options, chunk_bytes=CHUNK_BYTES))
        for name, content in CONTENTS.items():
            put_unless_there(store, tmp_path, content, name)
            assert read(store, name) == content
            md5 = server.entry(f"tls/{name}", "plain").headers["content-md5"]
            assert base64.b64decode(md5) == hashlib.md5(content, usedforsecurity=False).digest()


@pytest.mark.parametrize("operation", ["properties", "create", "append", "flush", "rename", "put"])
@pytest.mark.parametrize("kind", ["refuse", "cut", "lose"])
def test_one_failure_of_any_request_is_overcome(
    dfs: DfsServer, onelake: ObjectStore, tmp_path: Path, operation: str, kind: str
) -> None:
    content = CONTENTS["small" if operation == "put" else "large"]
    dfs.fail(operation, kind=kind)
    stored = put_unless_there(onelake, tmp_path, content)
    assert read(onelake) == content
    assert onelake.stat(NAME) == stored


@pytest.mark.parametrize("operation", ["create", "append", "flush", "rename", "put"])
@pytest.mark.parametrize("kind", ["refuse", "cut", "lose"])
def test_one_failure_of_a_write_over_anything_is_overcome_too(
    dfs: DfsServer, onelake: ObjectStore, tmp_path: Path, operation: str, kind: str
) -> None:
    put(onelake, tmp_path, CONTENTS["one chunk"])
    content = CONTENTS["small" if operation == "put" else "large"]
    dfs.fail(operation, kind=kind)
    stored = put(onelake, tmp_path, content)
    assert read(onelake) == content
    assert onelake.stat(NAME) == stored


@pytest.mark.parametrize("operation", ["create", "append", "flush", "rename", "put"])
def test_a_failure_that_lasts_leaves_neither_the_file_nor_a_temporary_one(
    dfs: DfsServer, dfs_url: str, hasty: ObjectStore, tmp_path: Path, operation: str
) -> None:
    content = CONTENTS["small" if operation == "put" else "large"]
    dfs.fail(operation, kind="cut", times=100)
    with pytest.raises(StoreUnavailableError):
        put_unless_there(hasty, tmp_path, content)
    assert hasty.stat(NAME) is None
    assert not [path for path in dfs.paths() if path.startswith(dfs_url.split("analytics/")[1])]


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AuthorizationPermissionMismatch", StoreUnavailableError),
        (401, "NoAuthenticationInformation", StoreUnavailableError),
        (400, "InvalidAuthenticationInfo", StoreUnavailableError),
        (409, "DestinationPathIsBeingDeleted", StoreUnavailableError),
        (400, "Md5Mismatch", StoreUnavailableError),
        (400, "InvalidResourceName", StoreRejectedError),
        (412, "LeaseIdMissing", StoreUnavailableError),
    ],
)
def test_a_refusal_is_final_only_where_it_does_not_pass(  # noqa: PLR0913, PLR0917 - fixtures and cases
    dfs: DfsServer, hasty: ObjectStore, tmp_path: Path, size: str, status: int, code: str, expected: type[Exception]
) -> None:
    put_unless_there(hasty, tmp_path, b"before")
    dfs.fail("put" if size == "small" else "rename", status=status, code=code, times=100)
    dfs.requests()
    with pytest.raises(expected, match=code):
        put_unless_there(hasty, tmp_path, CONTENTS[size])
    made = dfs.requests()
    assert made.get("put", 0) + made.get("rename", 0) == 1
    dfs.fail("read", status=403, code="AuthorizationFailure", times=100)
    with pytest.raises(StoreUnavailableError, match="AuthorizationFailure"):
        read(hasty)


def test_an_old_file_stays_while_its_successor_fails(dfs: DfsServer, hasty: ObjectStore, tmp_path: Path) -> None:
    put_unless_there(hasty, tmp_path, CONTENTS["small"])
    dfs.fail("append", after=2, times=100)
    with pytest.raises(StoreUnavailableError):
        put_unless_there(hasty, tmp_path, CONTENTS["large"])
    assert read(hasty) == CONTENTS["small"]


@pytest.mark.parametrize("kind", ["cut", "lose"])
def test_a_rename_whose_response_is_lost_can_be_repeated(
    dfs: DfsServer, hasty: ObjectStore, tmp_path: Path, kind: str
) -> None:
    dfs.fail("rename", kind=kind)
    with pytest.raises(StoreUnavailableError):
        put_unless_there(hasty, tmp_path, CONTENTS["large"])
    put_unless_there(hasty, tmp_path, CONTENTS["large"])
    assert read(hasty) == CONTENTS["large"]


def test_content_the_service_lost_is_noticed_before_the_file_has_its_name(
    dfs: DfsServer, onelake: ObjectStore, tmp_path: Path
) -> None:
    # Of six appends the second is acknowledged and kept as nothing.
    dfs.fail("append", kind="forget", after=1)
    with pytest.raises((StoreUnavailableError, PermanentError)):
        put_unless_there(onelake, tmp_path, CONTENTS["large"])
    assert onelake.stat(NAME) is None


def test_a_killed_uploader_leaves_nothing_under_the_final_name_and_its_rest_is_swept(
    dfs: DfsServer, dfs_url: str, onelake: ObjectStore, tmp_path: Path
) -> None:
    local = tmp_path / "big"
    local.write_bytes(os.urandom(8 * 1024**2))
    dfs.fail("append", kind="stall", seconds=1.0, after=2, times=50)
    sas = dfs.options.credential.sas
    assert sas
    process = subprocess.Popen(
        [sys.executable, "-c", FILL, dfs_url, dfs.url, sas.get_secret_value(), str(local)], stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    rest = wait_for_temporary(dfs, dfs_url)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert onelake.stat("big/file.bin") is None
    assert onelake.remove_orphaned(timedelta(hours=1)) == 0
    assert onelake.remove_orphaned(timedelta(seconds=-5)) == 1
    assert rest not in dfs.paths()
    assert onelake.remove_orphaned(timedelta(seconds=-5)) == 0


def test_memory_does_not_grow_with_the_file(dfs: DfsServer, dfs_url: str, tmp_path: Path) -> None:
    local = tmp_path / "big"
    with local.open("wb") as file:
        file.truncate(80 * 1024**2)
    sas = dfs.options.credential.sas
    assert sas
    command = [sys.executable, "-c", FILL, dfs_url, dfs.url, sas.get_secret_value(), str(local)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 40
    dfs.remove(f"{dfs_url.split('analytics/')[1]}/big/file.bin")


def wait_for_temporary(dfs: DfsServer, dfs_url: str) -> str:
    """Path of the temporary file that an uploader has begun."""
    for _ in range(400):
        for path in dfs.paths():
            if path.startswith(dfs_url.split("analytics/")[1]) and path.endswith(".uploading"):
                return path
        time.sleep(0.05)
    raise AssertionError("The upload never began.")
