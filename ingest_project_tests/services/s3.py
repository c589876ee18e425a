"""An S3 server (moto) on a free port, and an empty prefix for each test that needs one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer
from mypy_boto3_s3 import S3Client

from ingest_project.platform.object_store.s3 import s3_client
from ingest_project.platform.object_store.store import S3Options

BUCKET = "test-of-all"


@pytest.fixture(scope="session")
def s3_options() -> Iterator[S3Options]:
    """How to reach the server all tests share; it lives in a thread of the test process and ends with it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Options(f"http://{host}:{port}", "us-east-1", "test-key", "test-secret")
    server.stop()


@pytest.fixture(scope="session")
def s3_administrator(s3_options: S3Options) -> S3Client:
    """A client of the server, made once: the certificates that it loads take 40 ms."""
    return s3_client(s3_options)


@pytest.fixture
def s3_url(s3_administrator: S3Client) -> str:
    """Address of an empty prefix of this test alone."""
    # It is there already, unless a test that mocks AWS in this process has emptied the server as well.
    s3_administrator.create_bucket(Bucket=BUCKET)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/prefix"
