"""The processes of docker-compose.yml, started by hand: the same commands, settings, user and read-only home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ingest_project.core.settings import TopicSettings
from ingest_project.devstack import free_port, process_guard
from ingest_project_tests.deploy.compose_file import ROOT, services
from ingest_project_tests.services.postgres import BECOME

# The user of the image.
IMAGE_USER = 10_001
IMAGE_HOME = "/opt/ingest/dagster_home"
START_SECONDS = 60.0
# Waits for the end of its input, which comes when the tests end in any way, then ends what they left and clears up.
WATCHER = """
import os, shutil, signal, sys
sys.stdin.buffer.read()
folder = sys.argv[1]
for name in os.listdir(folder):
    if name.endswith(".pid"):
        try:
            with open(os.path.join(folder, name)) as file:
                os.killpg(int(file.read()), signal.SIGKILL)
        except (OSError, ValueError):
            pass
shutil.rmtree(folder, ignore_errors=True)
"""
PORTS = {"code-server": "4000", "webserver": "3000", "monitor": "8080"}


@dataclass
class Deployment:
    """One host's folders and processes.

    Args:
        addresses: DATABASE_URL, DAGSTER_POSTGRES_URL and KAFKA_BOOTSTRAP_SERVERS.
        topics: the prefix of every topic.
        folder: holds everything; of the image's user.
        prefix: what stands before each command, e.g. to run it in a network namespace.
        code_server: where the daemon and the webserver look for the code server.
        bind: what the processes listen on.
        share: holds inbox and state, which hosts may have in common; the folder itself by default.
        configuration: changes to dagster.yaml.
    """

    addresses: Mapping[str, str]
    topics: str
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ingest-deploy-")))
    prefix: Sequence[str] = ()
    code_server: str = "127.0.0.1"
    bind: str = "127.0.0.1"
    share: Path | None = None
    configuration: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in PORTS})
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.home / "storage").mkdir(parents=True)
        for folder in (self.inbox, self.state):
            folder.mkdir(exist_ok=True)
        configuration = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
        for section, changes in self.configuration.items():
            configuration[section] |= changes
        (self.home / "dagster.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
        workspace = yaml.safe_load((ROOT / "deploy" / "workspace.yaml").read_text(encoding="utf-8"))
        workspace["load_from"][0]["grpc_server"]["port"] = self.ports["code-server"]
        (self.home / "workspace.yaml").write_text(yaml.safe_dump(workspace), encoding="utf-8")
        # Another user reads them, whatever umask the tests are run with.
        for path in (self.folder, self.home, *self.home.glob("*.yaml")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if as_image_user():
            for path in (self.state, self.home / "storage"):
                os.chown(path, IMAGE_USER, IMAGE_USER)
        else:
            self.home.chmod(0o555)
        self._watcher = subprocess.Popen(
            [sys.executable, "-S", "-c", WATCHER, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )

    @property
    def home(self) -> Path:
        """DAGSTER_HOME."""
        return self.folder / "home"

    @property
    def inbox(self) -> Path:
        """The folder that jobs may read."""
        return (self.share or self.folder) / "inbox"

    @property
    def state(self) -> Path:
        """The state folder."""
        return (self.share or self.folder) / "state"

    def environment(self, service: str) -> dict[str, str]:
        """What the compose file sets for a service, with the addresses of this machine."""
        topics = {f"KAFKA_TOPIC_{name.upper()}": f"{self.topics}.{name}" for name in TopicSettings.model_fields}
        return {
            **{name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ},
            **services()[service]["environment"],
            **self.addresses,
            **topics,
            "HOME": "/tmp",  # noqa: S108 - as in the image
            "PYTHONDONTWRITEBYTECODE": "1",
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_CODE_SERVER_HOST": self.code_server,
            "INGEST_STATE_DIR": str(self.state),
            "INGEST_LOCAL_ROOTS": str(self.inbox),
            "INGEST_WEBSERVER_URL": f"http://127.0.0.1:{self.ports['webserver']}",
        }

    def command(self, service: str) -> list[str]:
        """The command of a service, with the programs, ports and paths of this machine."""
        program, *arguments = map(str, services()[service]["command"])
        return [
            *self.prefix,
            *as_image_user(),
            *_program(program),
            *(self._local(service, argument) for argument in arguments),
        ]

    def health_check(self, service: str) -> bool:
        """Whether the health check of the compose file succeeds, in the time it has."""
        check = services()[service]["healthcheck"]
        program, *arguments = map(str, check["test"][1:])
        command = [*self.prefix, *as_image_user(), *_program(program)]
        try:
            done = subprocess.run(
                [*command, *(self._local(service, argument) for argument in arguments)],
                cwd=self.folder,
                env=self.environment(service),
                capture_output=True,
                check=False,
                timeout=_seconds(check["timeout"]),
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def run(self, service: str, *more: str) -> str:
        """Run a service that ends by itself; what it says."""
        done = subprocess.run(
            [*self.command(service), *more],
            cwd=self.folder,
            env=self.environment(service),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, service: str) -> None:
        """Start a service that stays."""
        with (self.folder / f"{service}.log").open("ab") as log:
            self.running[service] = subprocess.Popen(
                self.command(service),
                cwd=self.folder,
                env=self.environment(service),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # What it starts is in its process group, for `kill`.
                start_new_session=True,
            )
        self._pid_file(service).write_text(str(self.running[service].pid), encoding="ascii")

    def wait_until_healthy(self, service: str) -> None:
        """Return once the health check succeeds; an assertion fails when that takes too long."""
        give_up_at = time.monotonic() + START_SECONDS
        while not self.health_check(service):
            assert self.running[service].poll() is None, self.log(service)
            assert time.monotonic() < give_up_at, self.log(service)
            time.sleep(0.2)

    def stop(self, service: str) -> float:
        """Ask a service to end, as `docker stop` does; how many seconds it took."""
        started = time.monotonic()
        self.running[service].send_signal(signal.SIGTERM)
        self.running[service].wait(timeout=_seconds(services()[service]["stop_grace_period"]))
        return time.monotonic() - started

    def kill(self, service: str) -> None:
        """End a service and everything it started, as a container that is killed."""
        process = self.running.pop(service)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._pid_file(service).unlink()

    def log(self, service: str) -> str:
        """The end of what a service said."""
        return (self.folder / f"{service}.log").read_text("utf-8", "replace")[-4_000:]

    def close(self) -> None:
        """End everything and remove the folder."""
        for service in list(self.running):
            self.kill(service)
        self._watcher.communicate()

    def _pid_file(self, service: str) -> Path:
        return self.folder / f"{service}.pid"

    def _local(self, service: str, argument: str) -> str:
        port = PORTS.get(service)
        if argument == "0.0.0.0":  # noqa: S104 - a container's own address, not this machine's
            return self.bind
        if argument == port:
            return str(self.ports[service])
        argument = argument.replace(f"127.0.0.1:{port}/", f"{self.bind}:{self.ports.get(service)}/")
        return argument.replace(IMAGE_HOME, str(self.home))


def as_image_user() -> list[str]:
    """What to put before a command so that it runs as the image's user; nothing where this one may not do that."""
    if os.geteuid() != 0:
        return []
    # Python itself may be installed in a folder that is closed to that user, e.g. in root's home.
    python = Path(sys.executable).resolve()
    closed = any(not place.stat().st_mode & 0o001 for place in (*ROOT.parents, ROOT, *python.parents))
    whom = {"uid": IMAGE_USER, "gid": IMAGE_USER, "reach_all_folders": closed}
    return [sys.executable, "-c", BECOME, str(Path(process_guard.__file__).parent), json.dumps(whom)]


def _program(name: str) -> list[str]:
    if name == "python":
        return [sys.executable]
    return [str(Path(sys.executable).with_name(name))]


def _seconds(duration: str) -> float:
    """Of a duration as the compose file writes all of them."""
    return float(duration.removesuffix("s"))
