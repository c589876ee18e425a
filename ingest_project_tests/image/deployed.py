"""The Compose file's processes in containers of the image: they do their work, are killed, end when asked, and upgrade.

`make image-test` runs it in a network of its own, in this order; each step builds on the one before.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from confluent_kafka import Producer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from examples.demo.attachments import FileServer
from ingest_project_tests.deploy.compose_file import ROOT
from ingest_project_tests.image.building import IMAGE, NEXT_IMAGE, REPORTED_PARTS, sizes
from ingest_project_tests.image.containers import TOKEN, Composed, podman
from ingest_project_tests.journeys.system import readings

pytestmark = pytest.mark.timeout(1_800)

LARGEST_IMAGE = 920_000_000
READY_SECONDS = 10.0
DONE_SECONDS = 600.0
STAY = ("code-server", "daemon", "webserver", "monitor")
IMAGE_USER = 10_001
ROWS = 20
# Prints the modules of which there is no bytecode to read once all is imported.
NOT_COMPILED = """
import os, sys, ingest_project.platform.dagster.code_server, ingest_project.definitions, dagster._cli.api
specs = [module.__spec__ for module in list(sys.modules.values()) if getattr(module, "__spec__", None)]
specs = [spec for spec in specs if (spec.origin or "").startswith("/opt/venv") and spec.origin.endswith(".py")]
print([spec.name for spec in specs if not os.access(spec.cached, os.R_OK)])
"""
SAMPLE_STREAM = ROOT / "dummy_data" / "streams" / "user_activity_events.jsonl"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """Serve attachments on the loopback interface."""
    folder = tmp_path_factory.mktemp("web")
    for number in range(40):
        (folder / f"claim-{number}.pdf").write_bytes(b"%PDF-1.4\n" + bytes(str(number), "ascii") * 2_000)
    with FileServer(folder) as server:
        yield server


@pytest.fixture(scope="module")
def system(web: FileServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Bring up Kafka, PostgreSQL and every process of ours, as the file orders them."""
    podman("rm", "--force", "--all", "--time", "1", check=False)
    podman("volume", "rm", "--force", "--all", check=False)
    folder = tmp_path_factory.mktemp("composed")
    for place in (folder, *folder.parents[:2]):
        place.chmod(0o755)
    system = Composed(
        folder,
        IMAGE,
        {"INGEST_ALLOWED_INTERNAL_HOSTS": web.host_and_port, "INGEST_USER_ACTIVITY_HOURLY_REFRESH_SECONDS": "0"},
    )
    try:
        system.start_postgres()
        system.start_kafka()
        yield system
    except BaseException:
        for name in STAY:
            say(f"--- {name}\n{system.log(name)}")
        raise
    finally:
        system.close()


def test_the_image_is_small_and_holds_no_secret_of_the_build() -> None:
    folder = Path(podman("image", "mount", IMAGE).stdout.strip())
    try:
        total, parts = sizes(folder)
        for name, size in parts.most_common(REPORTED_PARTS):
            say(f"  {size / 1e6:7.1f} MB  {name}")
        listed = int(podman("image", "inspect", "--format", "{{.Size}}", IMAGE).stdout)
        say(f"files {total / 1e6:.0f} MB; size of the image {listed / 1e6:.0f} MB")
        assert listed < LARGEST_IMAGE
        assert not [path for path in ("etc/pip.conf", "run/secrets") if (folder / path).exists()]
        assert not list(folder.glob("opt/venv/bin/pip*"))
        assert not [tool for tool in ("gcc", "strip") if (folder / "usr/bin" / tool).exists()]
    finally:
        podman("image", "unmount", IMAGE)
    history = podman("history", "--no-trunc", IMAGE).stdout + podman("image", "inspect", IMAGE).stdout
    assert "ca-certificates.crt" not in history
    assert "default-timeout" not in history


def test_everything_starts_in_the_order_of_the_file(system: Composed) -> None:
    said = system.run("migrate")
    assert "topics made with 12 partitions; 0 were there" in said
    assert "0 topics made" in system.run("migrate")
    system.start("code-server")
    took, used = ready(system)
    say(f"code server ready after {took:.1f} s, {used:.1f} CPU seconds (limit {READY_SECONDS:.0f} s)")
    assert min(took, used) < READY_SECONDS
    system.wait_until_healthy("code-server")
    for name in STAY[1:]:
        system.start(name)
    for name in STAY[1:]:
        say(f"{name} healthy after {system.wait_until_healthy(name):.1f} s")


@pytest.mark.usefixtures("system")
def test_every_import_of_the_code_server_is_compiled() -> None:
    # For the image's own user: bytecode that it may not read is as good as none.
    said = podman("exec", "code-server", "python", "-c", NOT_COMPILED).stdout.strip()
    assert said == "[]"


@pytest.mark.parametrize("name", STAY)
def test_each_process_runs_as_the_file_says(system: Composed, name: str) -> None:
    limits = system.services[name]["deploy"]["resources"]["limits"]
    status = Path(f"/proc/{system.process_id(name)}/status").read_text(encoding="ascii")
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert values["Uid"].split() == [str(IMAGE_USER)] * 4
    assert {values[kind] for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert values["NoNewPrivs"] == "1"
    assert values["Seccomp"] == "2"
    assert "Read-only file system" in podman("exec", name, "touch", "/opt/ingest/x", check=False).stderr
    assert podman("exec", name, "touch", "/tmp/x").returncode == 0  # noqa: S108 - the container's own
    found = podman(
        "exec", name, "sh", "-c", "cd /sys/fs/cgroup && cat memory/memory.limit_in_bytes pids/pids.max"
    ).stdout
    memory, pids = map(int, found.split())
    assert memory == in_bytes(limits["memory"])
    assert pids == limits["pids"]


def test_a_file_an_attachment_and_a_stream_go_through(system: Composed, web: FileServer) -> None:
    send_files(system, "first", 1)
    system.ingest(
        "send", "attachment-event", web.url("claim-0.pdf"), "--domain", "claims", "--event-type", "claim.sent"
    )
    lines = SAMPLE_STREAM.read_bytes().splitlines()
    publish("user-activity-events", lines)
    wait_until(lambda: stored_rows(system) == ROWS, "the rows of the file")
    wait_until(lambda: stored_attachments(system) == 1, "the attachment")
    # One of the sample has no timestamp, which makes it a dead letter.
    events = {event["event_id"]: event["timestamp"] for event in map(json.loads, lines) if "timestamp" in event}
    hours = {timestamp[:13].replace("T", "-") + ":00" for timestamp in events.values()}
    wait_until(lambda: stored_events(system, hours) == len(events), "the events")
    assert reached("http://127.0.0.1:8080/metrics", TOKEN) == 200
    assert reached("http://127.0.0.1:3000/server_info") == 200


@pytest.mark.parametrize("name", STAY)
def test_a_killed_process_is_replaced_and_nothing_is_lost(system: Composed, name: str) -> None:
    before = stored_rows(system)
    send_files(system, f"killed-{name}", 10)
    time.sleep(1.0)
    killed = system.kill(name)
    wait_until(lambda: system.process_id(name) not in (0, killed), f"the restart of {name}")
    say(f"{name} killed, healthy again after {system.wait_until_healthy(name):.1f} s")
    wait_until(lambda: stored_rows(system) == before + 10 * ROWS, "all rows")
    assert_nothing_twice(system)


@pytest.mark.parametrize("name", STAY)
def test_a_stopped_process_ends_in_its_grace_period_without_loss(system: Composed, name: str) -> None:
    before = stored_rows(system)
    send_files(system, f"stopped-{name}", 10)
    time.sleep(2.0)
    took, code = system.stop(name)
    say(f"{name} ended {took:.1f} s after SIGTERM with exit code {code}; it has {system.grace(name):.0f} s")
    assert took < system.grace(name)
    assert code != 137
    system.start(name)
    system.wait_until_healthy(name)
    wait_until(lambda: stored_rows(system) == before + 10 * ROWS, "all rows")
    assert_nothing_twice(system)


def test_the_next_version_takes_over_after_its_migration(system: Composed, web: FileServer) -> None:
    before = stored_rows(system)
    # As docs/deployment.md orders an upgrade: the daemon first, and events go on arriving.
    system.stop("daemon")
    send_files(system, "upgrade", 10)
    system.use(NEXT_IMAGE)
    assert "0 topics made" in system.run("migrate")
    for name in ("code-server", "webserver", "monitor"):
        system.stop(name)
        system.start(name)
    system.wait_until_healthy("code-server")
    system.start("daemon")
    wait_until(lambda: stored_rows(system) == before + 10 * ROWS, "the rows sent during the upgrade")
    system.ingest(
        "send", "attachment-event", web.url("claim-1.pdf"), "--domain", "claims", "--event-type", "claim.sent"
    )
    wait_until(lambda: stored_attachments(system) == 2, "the attachment sent after the upgrade")
    for name in STAY:
        system.wait_until_healthy(name)
        version = "from importlib.metadata import version; print(version('ingest_project'))"
        assert podman("exec", name, "python", "-c", version).stdout.strip() == "0.1.1"
    assert_nothing_twice(system)


def say(text: str) -> None:
    """Print what was seen or measured."""
    print(text, flush=True)  # noqa: T201 - a report for whoever watches


def ready(system: Composed) -> tuple[float, float]:
    """Wait until the code server answers; return seconds and CPU seconds since its container was made."""
    began = time.monotonic()
    with grpc.insecure_channel("127.0.0.1:4000") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                stub.Check(health_pb2.HealthCheckRequest(service="DagsterApi"), timeout=1, wait_for_ready=True)
                break
            except grpc.RpcError:
                assert time.monotonic() - began < DONE_SECONDS, system.log("code-server")
    took = time.monotonic() - began
    group = Path(f"/proc/{system.process_id('code-server')}/cgroup").read_text(encoding="ascii")
    path = next(line.split(":", 2)[2] for line in group.splitlines() if ":cpuacct:" in line)
    return took, int(Path(f"/sys/fs/cgroup/cpuacct{path}/cpuacct.usage").read_text(encoding="ascii")) / 1e9


def in_bytes(size: str) -> int:
    """Return the bytes of a size as the file writes it."""
    return int(size[:-1]) * {"M": 2**20, "G": 2**30}[size[-1]]


def send_files(system: Composed, name: str, count: int) -> None:
    """Put files into the inbox and announce each with an event, as any producer does."""
    events = []
    for number in range(count):
        path = system.inbox / f"{name}-{number}.csv"
        path.write_text(readings(ROWS, device=f"{name}-{number}"), encoding="utf-8")
        events.append(json.dumps({"file_path": f"/inbox/{path.name}", "file_name": path.name}).encode())
    publish("file_events", events)


def publish(topic: str, messages: list[bytes]) -> None:
    """Write messages to Kafka's listener for this machine."""
    producer = Producer({"bootstrap.servers": "localhost:9092"})
    for message in messages:
        producer.produce(topic, message)
    assert producer.flush(60) == 0


def stored_rows(system: Composed) -> int:
    """Count the rows of all files."""
    return int(system.psql("warehouse", "SELECT count(*) FROM raw_sensor_data"))


def assert_nothing_twice(system: Composed) -> None:
    """Fail if a row is stored twice."""
    doubled = "SELECT count(*) - count(DISTINCT (file_key, line_number)) FROM raw_sensor_data"
    assert system.psql("warehouse", doubled) == "0"


def stored_attachments(system: Composed) -> int:
    """Count stored attachments, of which each file must be in the volume."""
    return len(system.ingest("attachments", "list", "--state", "stored")["attachments"])


def stored_events(system: Composed, hours: set[str]) -> int:
    """Count the events of the stream in these hours."""
    return sum(one["events"] for hour in hours for one in system.ingest("activity", "hour", hour)["types"])


def reached(address: str, token: str = "") -> int:
    """Return the status of an HTTP request."""
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - fixed addresses of this machine
        return int(answer.status)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something to happen; fail where it takes too long."""
    give_up_at = time.monotonic() + DONE_SECONDS
    while not holds():
        assert time.monotonic() < give_up_at, f"{what} did not come"
        time.sleep(0.5)
