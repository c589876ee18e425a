"""An S3 server (moto) on a free port, and an empty prefix for each test that needs one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer

from ingest_project.platform.object_store.s3 import s3_client
from ingest_project.platform.object_store.store import S3Options


@pytest.fixture(scope="session")
def s3_options() -> Iterator[S3Options]:
    """How to reach the server all tests share; it lives in a thread of the test process and ends with it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Options(f"http://{host}:{port}", "us-east-1", "test-key", "test-secret")
    server.stop()


@pytest.fixture(scope="session")
def s3_bucket(s3_options: S3Options) -> str:
    """Name of the bucket of all tests."""
    name = f"test-{uuid.uuid4().hex}"
    s3_client(s3_options).create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3_url(s3_bucket: str) -> str:
    """Address of an empty prefix of this test alone."""
    return f"s3://{s3_bucket}/{uuid.uuid4().hex}/prefix"
