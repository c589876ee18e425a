"""Connections go to the checked address at every hop, with the credential of that host only."""

from __future__ import annotations

import datetime as dt
import json
import ssl
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ingest_project.core.errors import AddressRejectedError, DownloadFailedError, DownloadRejectedError, SettingsError
from ingest_project.core.settings import Credential
from ingest_project.platform.http import pinned_transport
from ingest_project.platform.http.client import WebClient
from ingest_project.platform.http.pinned_transport import Deadline
from ingest_project_tests.platform.http.conftest import local
from ingest_project_tests.services.http_server import HttpServer

SECRET = "s3cr3t-value"  # noqa: S105 - to look for in messages
LOCAL_HOST = "127.0.0.1"


def _fetch(client: WebClient, url: str, seconds: float = 60) -> bytes:
    with client.get(url, Deadline(timedelta(seconds=seconds))) as answer:
        return b"".join(answer.chunks())


def _echoed(client: WebClient, url: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads(_fetch(client, url))


@contextmanager
def _client(
    internal: Sequence[str] = (LOCAL_HOST,),
    credential: Credential | None = None,
    resolved: dict[str, list[list[str]]] | None = None,
    ca_file: Path | None = None,
) -> Iterator[WebClient]:
    """A client; `resolved` gives a name's addresses, one list for each time it is resolved."""

    def resolve(host: str, _port: int) -> list[str]:
        return resolved[host].pop(0) if resolved and host in resolved else [host]

    downloads = local(allowed_internal_hosts=list(internal), ca_file=ca_file)
    with (
        patch.object(pinned_transport, "system_addresses", resolve),
        WebClient(downloads, {"here": credential} if credential else {}) as client,
    ):
        yield client


def test_an_internal_address_is_not_contacted(http_server: HttpServer) -> None:
    with (
        _client(internal=()) as client,
        pytest.raises(AddressRejectedError, match=r"loopback.*INGEST_ALLOWED_INTERNAL_HOSTS"),
    ):
        _fetch(client, http_server.url("/echo"))
    assert http_server.connections == 0


def test_a_name_with_an_internal_address_is_not_contacted(http_server: HttpServer) -> None:
    with (
        _client(internal=(), resolved={"innocent.example": [["93.184.216.34", LOCAL_HOST]]}) as client,
        pytest.raises(AddressRejectedError, match=r"innocent\.example has the address 127\.0\.0\.1"),
    ):
        _fetch(client, http_server.url("/echo", host="innocent.example"))
    assert http_server.connections == 0


def test_a_name_is_resolved_once_for_check_and_connection(http_server: HttpServer) -> None:
    # The second answer would lead elsewhere; it must not be requested.
    answers = [[LOCAL_HOST], ["169.254.169.254"]]
    with _client(internal=("127.0.0.0/8",), resolved={"rebinding.example": answers}) as client:
        seen = _echoed(client, http_server.url("/echo", host="rebinding.example"))
        assert seen["headers"]["host"] == f"rebinding.example:{http_server.port}"
        assert answers == [["169.254.169.254"]]
        # A pooled connection is to the address that was checked; a new one is checked again.
        _fetch(client, http_server.url("/echo", host="rebinding.example"))
        assert http_server.connections == 1
        _fetch(client, http_server.url("/no-length/a.txt", host="rebinding.example"))
        with pytest.raises(AddressRejectedError, match="link-local"):
            _fetch(client, http_server.url("/echo", host="rebinding.example"))


def test_the_next_checked_address_is_tried_when_one_refuses(http_server: HttpServer) -> None:
    # Nothing listens on 127.0.0.9.
    with _client(internal=("127.0.0.0/8",), resolved={"two.example": [["127.0.0.9", LOCAL_HOST]]}) as client:
        assert _fetch(client, http_server.url("/files/a.txt?size=10", host="two.example"))


def test_a_name_without_an_address_is_a_failure_that_may_pass() -> None:
    with (
        _client(resolved={"nowhere.example": [[]]}) as client,
        pytest.raises(DownloadFailedError, match="cannot be resolved"),
    ):
        _fetch(client, "http://nowhere.example/")


def test_a_host_that_does_not_listen_is_a_failure_that_may_pass(http_server: HttpServer) -> None:
    http_server.close()
    with _client() as client, pytest.raises(DownloadFailedError, match="Connection refused"):
        _fetch(client, http_server.url("/echo"))


def test_ipv6_is_contacted_like_ipv4() -> None:
    with HttpServer(host="::1") as server, _client(internal=["::1"]) as client:
        assert _echoed(client, server.url("/echo"))["headers"]["host"] == f"[::1]:{server.port}"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data/", "link-local"),
        ("http://[::ffff:169.254.169.254]/", "written as IPv6"),
        ("http://2852039166/", "a number that is not written"),
        ("http://[64:ff9b::a9fe:a9fe]/", "link-local"),
        ("http://127.0.0.1\\@example.com/", "user name"),
        ("//10.0.0.1/", "private"),
        ("file:///etc/passwd", "only http and https"),
        ("ftp://example.com/", "only http and https"),
        ("http://user:pw@example.com/", "user name"),
        ("http://[", "not an address|malformed"),
    ],
)
def test_every_redirect_is_checked_again(http_server: HttpServer, target: str, reason: str) -> None:
    with _client() as client, pytest.raises(AddressRejectedError, match=reason):
        _fetch(client, http_server.redirect_to(target))


def test_a_redirect_to_another_port_of_this_machine_needs_its_own_permission(http_server: HttpServer) -> None:
    with HttpServer() as other, _client(internal=[f"{LOCAL_HOST}:{http_server.port}"]) as client:
        with pytest.raises(AddressRejectedError, match="loopback"):
            _fetch(client, http_server.redirect_to(other.url("/echo")))
        assert other.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(http_server: HttpServer, status: int) -> None:
    with _client() as client:
        assert _fetch(client, http_server.redirect_to("/files/ä b.txt?size=12", status)).startswith(b"line of")


def test_the_number_of_redirects_is_limited(http_server: HttpServer) -> None:
    with _client() as client, pytest.raises(DownloadRejectedError, match="more than 5 redirects"):
        _fetch(client, http_server.url("/redirect-loop"))
    assert http_server.count("/redirect-loop") == 6


def test_the_body_of_a_redirect_is_not_read(http_server: HttpServer) -> None:
    with _client() as client:
        assert _fetch(client, http_server.url("/redirect-endless"))


def test_cookies_are_not_kept(http_server: HttpServer) -> None:
    with _client() as client:
        _fetch(client, http_server.url("/cookie"))
        assert "cookie" not in _echoed(client, http_server.url("/echo"))["headers"]


def test_proxies_and_password_files_of_the_environment_are_not_used(
    http_server: HttpServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {LOCAL_HOST} login user password {SECRET}\n")
    for name, value in {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(netrc))
    with _client() as client:
        assert "authorization" not in _echoed(client, http_server.url("/echo"))["headers"]


def _credential(server: HttpServer, **fields: Any) -> Credential:  # noqa: ANN401 - any field
    stored = {"hosts": [f"{LOCAL_HOST}:{server.port}"], "secret": SECRET, "password": SECRET, "plain_http": True}
    return Credential.model_validate(stored | fields)


@pytest.mark.parametrize(
    ("fields", "header", "value"),
    [
        ({"kind": "basic", "username": "ada"}, "authorization", "Basic YWRhOnMzY3IzdC12YWx1ZQ=="),
        ({"kind": "bearer"}, "authorization", f"Bearer {SECRET}"),
        ({"kind": "header", "header": "X-Api-Key"}, "x-api-key", SECRET),
    ],
)
def test_a_host_gets_its_credential(http_server: HttpServer, fields: dict[str, str], header: str, value: str) -> None:
    with _client(credential=_credential(http_server, **fields)) as client:
        assert _echoed(client, http_server.url("/echo"))["headers"][header] == value


def test_a_signature_is_added_to_the_query(http_server: HttpServer) -> None:
    query = "sv=1&sig=a%2Bb"
    with _client(credential=_credential(http_server, kind="query", secret="?" + query)) as client:
        assert _echoed(client, http_server.url("/echo?x=1"))["query"] == {"x": "1", "sv": "1", "sig": "a+b"}


@pytest.mark.parametrize("kind", ["bearer", "query"])
def test_a_credential_never_goes_to_another_host(http_server: HttpServer, kind: str) -> None:
    with HttpServer() as other, _client(credential=_credential(http_server, kind=kind)) as client:
        seen = _echoed(client, http_server.redirect_to(other.url("/echo")))
        assert SECRET not in json.dumps(seen)
        assert "authorization" not in seen["headers"]
        # And it is sent again to the one that it belongs to.
        assert SECRET in json.dumps(_echoed(client, other.redirect_to(http_server.url("/echo"))))


def test_a_credential_is_for_the_default_port_and_tls_unless_it_says_otherwise(http_server: HttpServer) -> None:
    for fields in ({"hosts": [LOCAL_HOST]}, {"plain_http": False}):
        with _client(credential=_credential(http_server, kind="bearer", **fields)) as client:
            assert "authorization" not in _echoed(client, http_server.url("/echo"))["headers"]


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "basic"},
        {"kind": "bearer", "username": "ada"},
        {"kind": "header"},
        {"kind": "header", "header": "X-A: b"},
        {"kind": "bearer", "secret": "a\r\nX: b"},
        {"kind": "bearer", "secret": ""},
        {"kind": "bearer", "hosts": []},
    ],
)
def test_a_credential_that_cannot_work_is_refused_without_showing_it(fields: dict[str, Any]) -> None:
    stored = Credential.model_validate({"hosts": ["a.example"], "secret": SECRET, "password": SECRET, **fields})
    with pytest.raises(SettingsError, match="'here'") as refused, _client(credential=stored):
        pass
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("path", "seconds"),
    [
        ("/status/403", 60),
        ("/status/503", 60),
        ("/silent", 0.5),
        ("/not-http", 60),
        ("/redirect?to=file%3A%2F%2Fx", 60),
    ],
)
def test_no_error_shows_a_secret(http_server: HttpServer, path: str, seconds: float) -> None:
    credential = _credential(http_server, kind="query", secret=f"sig={SECRET}")
    separator = "&" if "?" in path else "?"
    with (
        _client(credential=credential) as client,
        pytest.raises((AddressRejectedError, DownloadFailedError, DownloadRejectedError)) as failed,
    ):
        _fetch(client, http_server.url(f"{path}{separator}token={SECRET}"), seconds)
    shown = "".join(traceback.format_exception(failed.value, chain=True)) + repr(credential) + repr(failed.value)
    assert SECRET not in shown
    assert failed.value.__context__ is None


def test_a_connection_that_cannot_be_made_shows_no_secret() -> None:
    with _client() as client, pytest.raises(DownloadFailedError) as failed:
        _fetch(client, f"http://{LOCAL_HOST}:1/a?token={SECRET}")
    assert SECRET not in "".join(traceback.format_exception(failed.value))


def _certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    authority = folder / "authority.pem"
    authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return authority, context


def test_tls_checks_the_name_although_the_address_is_pinned(tmp_path: Path) -> None:
    authority, context = _certificate(tmp_path, "files.example")
    server_names: list[str] = []
    context.sni_callback = lambda _socket, name, _context: server_names.append(name or "")
    names = {"files.example": [[LOCAL_HOST]] * 2, "other.example": [[LOCAL_HOST]]}
    with HttpServer(tls=context) as server:
        with _client(resolved=names, ca_file=authority) as client:
            assert _fetch(client, server.url("/files/a.pdf", host="files.example"))
            assert server_names == ["files.example"]
            with pytest.raises(DownloadFailedError, match=r"TLS.*[Hh]ostname mismatch"):
                _fetch(client, server.url("/files/a.pdf", host="other.example"))
        with _client(resolved=names) as client, pytest.raises(DownloadFailedError, match=r"TLS.*self-signed"):
            _fetch(client, server.url("/files/a.pdf", host="files.example"))


def test_slow_headers_and_tls_keep_to_the_deadline(tmp_path: Path) -> None:
    authority, context = _certificate(tmp_path, "files.example")
    with (
        HttpServer(tls=context) as server,
        _client(resolved={"files.example": [[LOCAL_HOST]]}, ca_file=authority) as client,
        pytest.raises(DownloadFailedError, match=r"not finished within 0\.6 s"),
    ):
        _fetch(client, server.url("/slow/headers", host="files.example"), seconds=0.6)


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path, http_server: HttpServer) -> None:
    authority, context = _certificate(tmp_path, "files.example")
    with (
        HttpServer(tls=context) as server,
        _client(resolved={"files.example": [[LOCAL_HOST]]}, ca_file=authority) as client,
    ):
        url = server.url(f"/redirect?to={http_server.url('/echo')}", host="files.example")
        with pytest.raises(AddressRejectedError, match="from https to http"):
            _fetch(client, url)
    assert http_server.connections == 0
