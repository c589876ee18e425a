"""S3 sources: many keys, folder markers, other servers, and which credential goes to which server."""

from __future__ import annotations

import socket
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from ingest_project.core.errors import (
    ForbiddenPathError,
    PermanentError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from ingest_project.core.settings import Settings
from ingest_project.platform.object_store.store import S3Options
from ingest_project.sources import Skipped, Source, SourceFile
from ingest_project.sources.registry import SourceContext, open_source
from ingest_project_tests.services.cutting_proxy import CuttingProxy
from ingest_project_tests.sources.backends import S3Backend


@pytest.fixture
def backend(s3_options: S3Options) -> S3Backend:
    return S3Backend(s3_options, f"test-{uuid.uuid4().hex}")


def opened(settings: dict[str, object], **config: object) -> Source:
    made = Settings.model_validate(settings)
    return open_source({"source_type": "s3", **config}, SourceContext(made))


def key(s3_options: S3Options, **more: object) -> dict[str, object]:
    keys = {"access_key_id": s3_options.access_key_id, "secret_access_key": s3_options.secret_access_key}
    fields = {**keys, "buckets": ["bucket", "test-*"], **more}
    return {"credentials": {"key": fields}}


@pytest.mark.long
def test_more_keys_than_one_answer_holds_are_all_listed_once(backend: S3Backend) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: backend.put(f"{number % 7}/{number:05}.csv", b"x"), range(1_100)))
    assert len({entry.path for entry in backend.open().list_files("**")}) == 1_100
    assert len(list(backend.open().list_files("3/*"))) == len(range(3, 1_100, 7))
    assert len(list(backend.open().list_files("*/0000[0-9].csv"))) == 10


def test_folder_markers_and_look_alikes_are_no_files(backend: S3Backend) -> None:
    for name in ("", "sub/", "sub/a.csv", "double//b.csv"):
        backend.put(name, b"" if name.endswith("/") or not name else b"x")
    backend.client.put_object(Bucket=backend.bucket, Key="input-of-another/c.csv", Body=b"x")
    backend.client.put_object(Bucket=backend.bucket, Key="in/cold.csv", Body=b"x", StorageClass="GLACIER")
    found = list(backend.open().list_files("**"))
    assert {entry.path for entry in found if isinstance(entry, SourceFile)} == {
        backend.path("sub/a.csv"),
        backend.path("double//b.csv"),
    }
    assert [(entry.path, "archived" in entry.reason) for entry in found if isinstance(entry, Skipped)] == [
        (backend.path("cold.csv"), True)
    ]


def test_a_bucket_that_is_not_there_is_missing_and_a_server_that_is_away_is_unreachable(
    backend: S3Backend, s3_options: S3Options
) -> None:
    backend.settings["polling"] = {"allowed_buckets": ["no-such-*"]}
    with pytest.raises(SourceNotFoundError, match="no-such-bucket"):
        list(backend.open(path="s3://no-such-bucket-here/x").list_files("*"))
    away = {**key(s3_options, hosts=["127.0.0.1:9"])}
    source = opened(
        away, path="s3://bucket/x", endpoint_url="http://127.0.0.1:9", credentials="key", region="eu-west-1"
    )
    with pytest.raises(SourceUnreachableError, match=r"127\.0\.0\.1:9"):
        source.stat("s3://bucket/x/a.csv")


def test_a_server_that_says_nothing_is_unreachable_after_the_time_that_is_set(s3_options: S3Options) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        settings = {**key(s3_options, hosts=[host]), "polling": {"source_timeout_seconds": 0.1}}
        config = {"path": "s3://bucket/x", "endpoint_url": f"http://{host}", "credentials": "key"}
        source = opened(settings, **config, region="eu-west-1")
        with pytest.raises(SourceUnreachableError, match="Read timeout"):
            source.stat("s3://bucket/x/a.csv")


def test_an_endpoint_that_only_the_message_names_is_refused_and_our_key_goes_to_its_own_alone(
    backend: S3Backend, s3_options: S3Options
) -> None:
    backend.put("a.csv", b"x")
    endpoint = s3_options.endpoint_url or ""
    host = endpoint.removeprefix("http://")
    config = {"path": f"s3://{backend.bucket}/in", "endpoint_url": endpoint, "region": "us-east-1"}
    with pytest.raises(ForbiddenPathError, match="INGEST_ALLOWED_SOURCE_HOSTS"):
        opened({}, **config)
    with pytest.raises(ForbiddenPathError, match="not for this host"):
        opened(key(s3_options, hosts=["elsewhere.example.com"]), **config, credentials="key")
    (file,) = opened(key(s3_options, hosts=[host]), **config, credentials="key").list_files("*")
    assert file.path == backend.path("a.csv")
    unsigned = opened({"polling": {"allowed_source_hosts": [host], "allowed_buckets": [backend.bucket]}}, **config)
    assert unsigned.canonical_location(file.path) == f"s3+{endpoint}/{backend.bucket}/in/a.csv"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"path": "in"}, "needs one 'bucket'"),
        ({"path": "s3://a-bucket/x", "bucket": "another"}, "needs one 'bucket'"),
        ({"bucket": "no name!"}, "no name of a bucket"),
        ({"bucket": "private"}, "INGEST_ALLOWED_BUCKETS"),
        ({"bucket": "in-a", "endpoint_url": "ftp://x"}, "http\\(s\\)://host:port"),
        ({"bucket": "in-a", "endpoint_url": "http://user:pw@host"}, "http\\(s\\)://host:port"),
        ({"bucket": "in-a", "region": "../x"}, "region"),
    ],
)
def test_a_contradictory_job_is_refused_without_any_request(config: dict[str, object], reason: str) -> None:
    with pytest.raises(PermanentError, match=reason) as refused:
        opened({"polling": {"allowed_buckets": ["in-*", "a-bucket"]}}, **config)
    assert "pw" not in str(refused.value)


def test_a_read_goes_on_with_the_version_it_began_with(backend: S3Backend) -> None:
    backend.put("a.csv", b"a" * 3_000_000)
    with backend.open().open(backend.path("a.csv")) as stream:
        assert stream.read(10) == b"a" * 10
        backend.put("a.csv", b"b" * 3_000_000)
        assert set(stream.read()) == {ord("a")}


def test_a_read_that_is_cut_goes_on_where_it_was_with_the_same_version(
    backend: S3Backend, s3_options: S3Options
) -> None:
    content = bytes(range(256)) * 20_000
    backend.put("a.csv", content)
    with CuttingProxy(urlsplit(s3_options.endpoint_url or "").port or 0, cut_after=1_500_000, cuts=2) as proxy:
        through = through_proxy(proxy, backend, s3_options)
        with through.open(backend.path("a.csv")) as stream:
            assert stream.read() == content
        assert proxy.cuts == 0

        proxy.cuts = 1
        with pytest.raises(SourceChangedError), through.open(backend.path("a.csv")) as stream:  # noqa: PT012 - it fails while it is read
            stream.read(1_000)
            backend.put("a.csv", content[::-1])
            stream.read()


def test_a_read_that_is_cut_repeatedly_fails(backend: S3Backend, s3_options: S3Options) -> None:
    backend.put("a.csv", b"x" * 3_000_000)
    with CuttingProxy(urlsplit(s3_options.endpoint_url or "").port or 0, cut_after=1_000, cuts=1_000) as proxy:
        source = through_proxy(proxy, backend, s3_options)
        with pytest.raises(SourceUnreachableError), source.open(backend.path("a.csv")) as stream:
            stream.read()


def through_proxy(proxy: CuttingProxy, backend: S3Backend, s3_options: S3Options) -> Source:
    config = {"path": f"s3://{backend.bucket}/in", "endpoint_url": proxy.url, "region": "us-east-1"}
    return opened(key(s3_options, hosts=[proxy.url.removeprefix("http://")]), **config, credentials="key")
