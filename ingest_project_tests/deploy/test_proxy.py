"""The proxy of deploy/proxy in front of Dagster's own webserver: TLS, login, nothing by GET or from other sites."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ingest_project.devstack import free_port
from ingest_project_tests.deploy.compose_file import ROOT
from ingest_project_tests.services.debian import debian_program

NAME, CONSOLE, PASSWORD = "dagster.example.com", "console.example.com", "correct horse"
SECONDS = 60.0
RUN = "5d0e8c6e"
MUTATION = "mutation { setNuxSeen }"
LOGIN = {"Authorization": f"Basic {base64.b64encode(f'alice:{PASSWORD}'.encode()).decode()}"}
WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "graphql-ws",
}


class Site:
    """The proxy as clients see it.

    Args:
        port: it listens on for TLS.
        certificate: that clients trust.
    """

    def __init__(self, port: int, certificate: Path) -> None:
        self._port, self._certificate = port, certificate

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: str | None = None, name: str = NAME
    ) -> urllib3.BaseHTTPResponse:
        """Send one request to a name that leads here."""
        with urllib3.HTTPSConnectionPool(
            "127.0.0.1", self._port, server_hostname=name, assert_hostname=name, ca_certs=str(self._certificate)
        ) as pool:
            return pool.request(
                method, path, body=body, headers={"Host": name, **headers}, redirect=False, retries=False
            )

    def mutate(self, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """Send a mutation as the UI does."""
        sent = {"Content-Type": "application/json", **headers}
        return self.send("POST", "/graphql", sent, json.dumps({"query": MUTATION}))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Nginx with the file of deploy/proxy in front of a webserver without code locations."""
    nginx = debian_program("nginx", "nginx")
    folder = tmp_path_factory.mktemp("proxy")
    upstream, tls, plain, console = free_port(), free_port(), free_port(), free_port()
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    output = folder / "storage" / RUN / "compute_logs"
    output.mkdir(parents=True)
    (folder / "storage" / "kept.db").write_text("of others")
    (output / "step.out").write_text("of a run\n")
    _write_certificate(folder)
    salt = os.urandom(8)
    secret = base64.b64encode(hashlib.sha1(PASSWORD.encode() + salt, usedforsecurity=False).digest() + salt).decode()
    (folder / "ingest.htpasswd").write_text(f"alice:{{SSHA}}{secret}\n")
    (folder / "nginx.conf").write_text(
        _configuration(folder, {"443": tls, "80": plain, "3000": upstream, "8080": console})
    )
    webserver = [sys.executable, "-m", "dagster_webserver", "--empty-workspace", "--port", str(upstream)]
    # Started by root, it would read the test's files as somebody else.
    user = "user root;" if os.geteuid() == 0 else ""
    commands = {
        "webserver": webserver,
        # Not as a daemon: it ends with this test.
        "nginx": [
            str(nginx),
            "-p",
            str(folder),
            "-c",
            "nginx.conf",
            "-e",
            "stderr",
            "-g",
            f"daemon off; pid nginx.pid; {user}",
        ],
    }
    processes = []
    try:
        for name, command in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                environ = {**os.environ, "DAGSTER_HOME": str(folder)}
                processes.append(subprocess.Popen(command, env=environ, cwd=folder, stdout=log, stderr=log))
        made = Site(tls, folder / "ingest.crt")
        _wait_until(lambda: made.send("GET", "/server_info", LOGIN).status == 200, processes, folder)
        yield made
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(30)


def test_nothing_is_shown_or_done_without_the_login(site: Site) -> None:
    wrong = {"Authorization": f"Basic {base64.b64encode(b'alice:guessed').decode()}"}
    for headers in ({}, wrong):
        assert site.send("GET", "/", headers).status == 401
        assert site.mutate(headers).status == 401
        assert site.send("GET", "/graphql", {**WEBSOCKET, **headers}).status == 401


def test_people_and_programs_with_the_login_see_and_act(site: Site) -> None:
    assert site.send("GET", "/", LOGIN | {"Accept": "text/html"}).status == 200
    assert site.send("GET", "/graphql", LOGIN | {"Accept": "text/html"}).status == 200
    for headers in ({}, {"Origin": f"https://{NAME}", "Sec-Fetch-Site": "same-origin"}):
        answer = site.mutate(LOGIN | headers)
        assert (answer.status, answer.json()) == (200, {"data": {"setNuxSeen": True}})
    # A link from another site may lead here.
    assert site.send("GET", "/", LOGIN | {"Sec-Fetch-Site": "cross-site"}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": f"http://{NAME}"},
        {"Origin": f"https://{NAME}.example.org"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": f"https://{NAME}"},
    ],
)
def test_a_page_of_another_site_cannot_use_its_visitors_login(site: Site, headers: dict[str, str]) -> None:
    assert site.mutate(LOGIN | headers).status == 403
    assert site.send("GET", "/graphql", LOGIN | WEBSOCKET | headers).status == 403


@pytest.mark.parametrize("path", ["/graphql", "//graphql", "/./graphql", "/graphql?x=1&"])
def test_nothing_is_executed_by_get(site: Site, path: str) -> None:
    query = f"{path}{'' if '?' in path else '?'}query={quote(MUTATION)}"
    for method in ("GET", "HEAD"):
        assert site.send(method, query, LOGIN | {"Accept": "*/*"}).status == 405
        assert site.send(method, query, LOGIN | {"Accept": "application/json", "Upgrade": "h2c"}).status in {403, 405}


@pytest.mark.parametrize(
    "path",
    [
        f"/graphql%0A?query={quote(MUTATION)}",
        "/notebook?path=/etc/x.ipynb&repoLocName=x",
        "//dagit//notebook",
        "/x/../notebook",
        "/notebook%0A",
        "/download_debug/x",
        "/download_debug%2Fx",
        "/logs/kept/db",
        "/logs/a/compute_logs/../../kept/db",
    ],
)
def test_the_webserver_serves_no_files_of_the_machine_except_run_logs(site: Site, path: str) -> None:
    assert site.send("GET", path, LOGIN).status == 404
    assert site.send("GET", f"/logs/{RUN}/compute_logs/step/out", LOGIN).data == b"of a run\n"


def test_runs_can_be_followed(site: Site) -> None:
    own = {"Origin": f"https://{NAME}"}
    assert site.send("GET", "/graphql", LOGIN | WEBSOCKET | own).status == 101


def test_the_proxy_answers_only_under_its_own_names(site: Site) -> None:
    with pytest.raises(urllib3.exceptions.SSLError):
        site.send("GET", "/", LOGIN, name="example.org")
    assert site.send("GET", "/", LOGIN | {"Host": "example.org"}).status == 421
    # There is no console behind it here, and the name is its own.
    assert site.send("GET", "/", {}, name=CONSOLE).status == 502


def _configuration(folder: Path, ports: Mapping[str, int]) -> str:
    """Return the file with other ports, and with files of a folder that anyone may write."""
    text = (ROOT / "deploy" / "proxy" / "nginx.conf").read_text(encoding="utf-8").replace("/etc/nginx/", f"{folder}/")
    for usual, port in ports.items():
        text = text.replace(f"listen {usual} ", f"listen 127.0.0.1:{port} ").replace(f":{usual};", f":{port};")
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    lines = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in temporary)
    return text.replace("http {\n", f"http {{\n{lines}", 1)


def _write_certificate(folder: Path) -> None:
    """Write a certificate of both names, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME), x509.DNSName(CONSOLE)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ingest.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "ingest.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _wait_until(true: Callable[[], bool], processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    give_up_at = time.monotonic() + SECONDS
    while time.monotonic() < give_up_at and all(process.poll() is None for process in processes):
        try:
            if true():
                return
        except urllib3.exceptions.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError("\n".join(path.read_text() for path in sorted(folder.glob("*.log"))))
