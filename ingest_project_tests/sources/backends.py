"""One real server of each kind of source, for the tests that every kind must pass."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from pydantic import SecretStr

from ingest_project.core.secrets import text_of
from ingest_project.core.settings import Settings
from ingest_project.platform.azure import parse_address
from ingest_project.platform.azure.client import open_file_system
from ingest_project.platform.object_store.s3 import s3_client
from ingest_project.platform.object_store.store import S3Options
from ingest_project.sources import Source
from ingest_project.sources.file_server import FileServerSource
from ingest_project.sources.registry import SourceContext, open_source
from ingest_project.testing.sources import SourceBackend
from ingest_project_tests.services.dfs_calls import SAS
from ingest_project_tests.services.dfs_server import DfsServer
from ingest_project_tests.services.ftp_server import PASSWORD, USER, FtpServer
from ingest_project_tests.services.ftps_server import FtpsServer
from ingest_project_tests.services.listing_server import ListingServer
from ingest_project_tests.services.sftp_server import SftpServer

LONG_AGO = 1_700_000_000.0


OUTSIDE = {
    "local": "/etc/passwd.csv",
    "s3": "s3://another-bucket/a.csv",
    "onelake": "https://example.com/a/b.Lakehouse/Files/a.csv",
    "http": "http://127.0.0.1:1/a.csv",
    "ftp": "/a.csv\r\nDELE /b.csv",
    "sftp": "/a\0.csv",
}


class Backend(SourceBackend):
    """A source that tests can write to."""

    config: dict[str, Any]
    settings: dict[str, Any]

    @property
    def outside(self) -> str:
        """A path that the source refuses."""
        return OUTSIDE[self.config["source_type"]]

    @abstractmethod
    def put_many(self, names: Sequence[str]) -> None:
        """Write small files, in a folder `sub` each, by whatever way is quick."""

    def open(self, below: str = "", **config: object) -> Source:
        """The source, or a folder of it."""
        made = Settings.model_validate(self.settings)
        path = f"{self.config['path'].rstrip('/')}/{below}" if below else self.config["path"]
        merged = {**self.config, "path": path, **config}
        return open_source(merged, SourceContext(made))


@dataclass
class FolderBackend(Backend):
    """A folder of this host, served or not."""

    folder: Path

    def put(self, name: str, content: bytes) -> None:
        """Write a file."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        # Of a time that servers with times to the second keep, another one for each write.
        moment = LONG_AGO + int(time.monotonic() * 1_000) % 100_000_000
        os.utime(target, (moment, moment))

    def put_many(self, names: Sequence[str]) -> None:
        """Write small files."""
        (self.folder / "sub").mkdir(exist_ok=True)
        for name in names:
            (self.folder / name).write_bytes(b"x")

    def remove(self, name: str) -> None:
        """Take a file away."""
        (self.folder / name).unlink()


class LocalBackend(FolderBackend):
    """As local files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.settings = {"polling": {"local_roots": [str(folder)]}}
        self.config = {"source_type": "local", "path": str(folder)}

    def path(self, name: str) -> str:
        """As a listing gives it."""
        return f"{self.folder}/{name}"


class WebBackend(FolderBackend):
    """Over HTTP."""

    def __init__(self, folder: Path, server: ListingServer) -> None:
        super().__init__(folder)
        self.server = server
        self.settings = {"downloads": {"allowed_internal_hosts": ["127.0.0.1"]}}
        self.config = {"source_type": "http", "path": server.url}

    def path(self, name: str) -> str:
        """As a listing gives it."""
        return self.server.url + quote(name)


class FileServerBackend(FolderBackend):
    """On an FTP or SFTP server, let in by a password.

    Args:
        folder: that is served.
        server: the server.
        authority: certificate authority of an FTPS server.
    """

    def __init__(
        self, folder: Path, server: FtpServer | FtpsServer | SftpServer, authority: Path | None = None
    ) -> None:
        super().__init__(folder)
        stored: dict[str, object] = {"username": USER, "password": PASSWORD, "hosts": ["127.0.0.1"]}
        self.config = {"host": "127.0.0.1", "port": server.port, "path": "/", "credentials": "store"}
        if isinstance(server, SftpServer):
            self.config |= {"source_type": "sftp"}
            stored |= {"host_key_fingerprints": [server.fingerprint]}
        else:
            self.config |= {"source_type": "ftp", "tls": "explicit" if authority else "none"}
            stored |= {"plain_http": authority is None}
        self.settings = {"credentials": {"store": stored}, "polling": {"source_ca_file": authority}}
        self._opened: list[FileServerSource] = []

    def open(self, below: str = "", **config: object) -> Source:
        """The source; its connections are kept until `close`."""
        opened = super().open(below, **config)
        assert isinstance(opened, FileServerSource)
        self._opened.append(opened)
        return opened

    def close(self) -> None:
        """Hang up."""
        while self._opened:
            self._opened.pop().pool.close_idle()

    def path(self, name: str) -> str:
        """As a listing gives it."""
        return f"/{name}"


class S3Backend(Backend):
    """In a bucket."""

    has_folders = False

    def __init__(self, options: S3Options, bucket: str) -> None:
        self.bucket = bucket
        self.client = s3_client(options)
        self.client.create_bucket(Bucket=bucket)
        self.settings = {
            "sources": {"backend": {"source_config": {"source_type": "s3", "bucket": bucket}}},
            "storage": {
                "s3_endpoint_url": options.endpoint_url,
                "s3_region": options.region,
                "s3_access_key_id": options.access_key_id,
                "s3_secret_access_key": SecretStr(text_of(options.secret_access_key or "")),
            },
        }
        self.config = {"source_type": "s3", "path": f"s3://{bucket}/in"}

    def put(self, name: str, content: bytes) -> None:
        """Write a file."""
        self.client.put_object(Bucket=self.bucket, Key=f"in/{name}", Body=content)

    def put_many(self, names: Sequence[str]) -> None:
        """Write small files into the memory of the server, which lives in this process."""
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        for name in names:
            backend.put_object(self.bucket, f"in/{name}", b"x")

    def remove(self, name: str) -> None:
        """Take a file away."""
        self.client.delete_object(Bucket=self.bucket, Key=f"in/{name}")

    def path(self, name: str) -> str:
        """As a listing gives it."""
        return f"s3://{self.bucket}/in/{name}"


class OneLakeBackend(Backend):
    """In a lakehouse, entered by SAS."""

    def __init__(self, server: DfsServer, url: str) -> None:
        self.server = server
        self.root = parse_address(url, server.url)
        self.files = open_file_system(self.root, server.options)
        self.settings = {"onelake": {"endpoint": server.url, "sas_token": SecretStr(SAS)}}
        self.config = {"source_type": "onelake", "path": url}
        self.put(".made", b"x")

    def put(self, name: str, content: bytes) -> None:
        """Write a file."""
        self.files.get_file_client(self.root.child(name).path).upload_data(content, overwrite=True)

    def put_many(self, names: Sequence[str]) -> None:
        """Write small files into the memory of the server, which lives in this process."""
        self.server.put_all([self.root.child(name).path for name in names], b"x")

    def remove(self, name: str) -> None:
        """Take a file away."""
        self.files.get_file_client(self.root.child(name).path).delete_file()

    def path(self, name: str) -> str:
        """As a listing gives it."""
        return self.root.child(name).url
