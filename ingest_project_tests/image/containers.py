"""Run services of the Compose file from the image with podman, as the file writes them.

Images that cannot be pulled are replaced: Apache Kafka runs from its jars, PostgreSQL from Debian's package, both with
the configuration of the file. All share one network, in which every name of a service is the loopback address.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingest_project_tests.deploy.compose_file import ROOT, compose, shipped_settings
from ingest_project_tests.image.building import STORAGE
from ingest_project_tests.services.debian import debian_program
from ingest_project_tests.services.kafka import kafka_jars

PODMAN = ("podman", *STORAGE, "--runtime", "runc", "--cgroup-manager", "cgroupfs")
PASSWORD, TOKEN = "canary-password", "canary-token-of-the-tests"
START_SECONDS = 600.0
KAFKA_USER = 1000


def podman(*arguments: str, check: bool = True, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run podman on the storage of these tests."""
    done = subprocess.run([*PODMAN, *arguments], capture_output=True, text=True, check=False, timeout=timeout)
    assert not check or done.returncode == 0, (
        f"podman {' '.join(arguments)}: {done.stdout[-2_000:]}{done.stderr[-4_000:]}"
    )
    return done


def seconds(duration: str) -> float:
    """Return the seconds of a duration, as the file writes all of them."""
    return float(duration.removesuffix("s"))


class Composed:
    """The services of the file.

    Args:
        folder: for the data of Kafka and PostgreSQL, and the inbox.
        image: of our own processes.
        settings: lines of the file `deploy/ingest.env`.
    """

    def __init__(self, folder: Path, image: str, settings: Mapping[str, str]) -> None:
        self.folder, self.inbox = folder, folder / "inbox"
        self.inbox.mkdir()
        self._settings = folder / "ingest.env"
        # The later file wins over the shipped one.
        given = {**shipped_settings({}), **settings}
        self._settings.write_text("".join(f"{name}={value}\n" for name, value in given.items()), "utf-8")
        (folder / "declarations").mkdir()
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self.use(image)

    def use(self, image: str) -> None:
        """Read the file with another image."""
        variables = {
            "POSTGRES_PASSWORD": PASSWORD,
            "MONITOR_TOKEN": TOKEN,
            "GRAFANA_PASSWORD": PASSWORD,
            "INBOX_FOLDER": str(self.inbox),
            "DECLARATIONS_FOLDER": str(self.folder / "declarations"),
        }
        self.services: dict[str, dict[str, Any]] = compose({**variables, "INGEST_IMAGE": image})["services"]

    def grace(self, name: str) -> float:
        """Return the seconds that a service has to end."""
        return seconds(self.services[name].get("stop_grace_period", "10s"))

    def arguments(self, name: str) -> list[str]:
        """Return the arguments of `podman run` that say what the file says of a service."""
        service = self.services[name]
        limits = service["deploy"]["resources"]["limits"]
        given = [
            f"--name={name}", "--network=host", f"--user={service['user']}", f"--restart={service['restart']}",
            # This machine may not raise limits of open files, which podman would.
            "--ulimit=nofile=20000:20000", "--ulimit=nproc=20000:20000",
            f"--memory={limits['memory'].lower()}", f"--memory-swap={limits['memory'].lower()}",
            f"--pids-limit={limits['pids']}", f"--cpus={min(float(limits['cpus']), os.cpu_count() or 1)}",
            f"--stop-timeout={self.grace(name):.0f}",
        ]  # fmt: skip
        given += [f"--cap-drop={capability}" for capability in service["cap_drop"]]
        given += [f"--security-opt={option.partition(':')[0]}" for option in service["security_opt"]]
        given += [f"--tmpfs={entry}" for entry in service["tmpfs"]]
        given += [f"--volume={volume}" for volume in service.get("volumes", [])]
        given += [option for option, key in (("--init", "init"), ("--read-only", "read_only")) if service[key]]
        if signal_name := service.get("stop_signal"):
            given.append(f"--stop-signal={signal_name}")
        variables = self.folder / f"{name}.env"
        variables.write_text("".join(f"{key}={value}\n" for key, value in service["environment"].items()), "utf-8")
        assert [entry["path"] for entry in service["env_file"]] == ["deploy/compose.settings.env", "deploy/ingest.env"]
        # The file's own variables win over those of env_file, as in Compose: the last one counts.
        return [*given, f"--env-file={self._settings}", f"--env-file={variables}"]

    def command(self, name: str) -> list[str]:
        """Return image and command of a service."""
        service = self.services[name]
        return [f"localhost/{service['image'].removeprefix('localhost/')}", *map(str, service["command"])]

    def run(self, name: str) -> str:
        """Run a service that ends; return what it printed."""
        given = [one for one in self.arguments(name) if not one.startswith("--restart")]
        done = podman("run", "--rm", *given, *self.command(name))
        return done.stdout + done.stderr

    def start(self, name: str) -> None:
        """Start a service that stays."""
        podman("run", "--detach", *self.arguments(name), *self.command(name))

    def is_healthy(self, name: str) -> bool:
        """Return whether the health check of the file succeeds, inside the container and in the time it has."""
        check = self.services[name]["healthcheck"]
        try:
            return (
                podman("exec", name, *check["test"][1:], check=False, timeout=seconds(check["timeout"])).returncode == 0
            )
        except subprocess.TimeoutExpired:
            return False

    def wait_until_healthy(self, name: str) -> float:
        """Wait for the first success of the health check; return the seconds waited."""
        began = time.monotonic()
        while not self.is_healthy(name):
            assert time.monotonic() - began < START_SECONDS, f"{name} is not healthy:\n{self.log(name)}"
            time.sleep(0.2)
        return time.monotonic() - began

    def stop(self, name: str) -> tuple[float, int]:
        """Stop a service as Compose does; return the seconds that took and the exit code. 137: it was killed."""
        began = time.monotonic()
        podman("stop", name)
        took = time.monotonic() - began
        code = int(podman("inspect", "--format", "{{.State.ExitCode}}", name).stdout)
        podman("rm", name)
        return took, code

    def kill(self, name: str) -> int:
        """Kill the first process of a container, and so all of it; return its former process id."""
        process = self.process_id(name)
        os.kill(process, signal.SIGKILL)
        return process

    def process_id(self, name: str) -> int:
        """Return the id of the first process of a container; 0 where it does not run."""
        found = podman("inspect", "--format", "{{.State.Pid}}", name, check=False).stdout.strip()
        return int(found or 0)

    def ingest(self, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        """Run a command of `ingest` in the code server's container, as `docker compose exec` does."""
        return json.loads(podman("exec", "code-server", "ingest", *arguments, "--json").stdout)

    def log(self, name: str) -> str:
        """Return the end of what a container printed."""
        done = podman("logs", "--tail", "60", name, check=False)
        return (done.stdout + done.stderr)[-6_000:]

    def start_postgres(self) -> None:
        """Start Debian's PostgreSQL with the options, user, databases and passwords of the file."""
        service = self.services["postgres"]
        variables, user = service["environment"], service["user"].partition(":")[0]
        # Debian's wrappers in /usr/bin do not have the server.
        programs = debian_program("initdb", "postgresql-15").resolve().parent
        data = self.folder / "postgres"
        password = self.folder / "password"
        password.write_text(variables["POSTGRES_PASSWORD"], "utf-8")
        data.mkdir()
        for path in (data, password):
            os.chown(path, int(user), int(user))
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        options = [*variables["POSTGRES_INITDB_ARGS"].split(), f"--username={variables['POSTGRES_USER']}"]
        subprocess.run(
            [*become, programs / "initdb", *options, "--pwfile", password, "--encoding=UTF8", data],
            check=True, stdout=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        # As the start script of the image writes it.
        with (data / "pg_hba.conf").open("a", encoding="ascii") as rules:
            rules.write("host all all all scram-sha-256\n")
        with (self.folder / "postgres.log").open("wb") as log:
            self._servers["postgres"] = subprocess.Popen(
                [*become, programs / service["command"][0], *service["command"][1:], "-D", data, "-c",
                 f"unix_socket_directories={data}"],
                stdout=log, stderr=log, cwd="/",
            )  # fmt: skip
        check = service["healthcheck"]["test"][1:]
        self._wait([str(programs / check[0]), *check[1:]])
        variables = {**os.environ, "PGPASSWORD": variables["POSTGRES_PASSWORD"]}
        for statement in (f"CREATE DATABASE {service['environment']['POSTGRES_DB']}", *self._first_statements()):
            self.psql("postgres", statement)

    def psql(self, database: str, statement: str) -> str:
        """Run SQL as the user of the file; return the values, one a line."""
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        command = ["psql", "-h", "127.0.0.1", "-U", "ingest", "-d", database, "-AtXc", statement]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.strip()

    def start_kafka(self) -> None:
        """Start Apache Kafka with the variables of the file, which its image makes into properties."""
        service = self.services["kafka"]
        variables = dict(service["environment"])
        heap = variables.pop("KAFKA_HEAP_OPTS").split()
        data = self.folder / "kafka"
        data.mkdir()
        os.chown(data, KAFKA_USER, KAFKA_USER)
        variables["KAFKA_LOG_DIRS"] = str(data / "logs")
        properties = self.folder / "server.properties"
        lines = (
            f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={value}" for name, value in variables.items()
        )
        properties.write_text("\n".join(lines), "utf-8")
        become = ["setpriv", f"--reuid={KAFKA_USER}", f"--regid={KAFKA_USER}", "--clear-groups", "--no-new-privs"]
        jars = kafka_jars()
        # Another user reads them, wherever the cache is and whoever may read it.
        local = self.folder / "jars"
        local.mkdir()
        for jar in jars.glob("*.jar"):
            shutil.copyfile(jar, local / jar.name)
            (local / jar.name).chmod(0o644)
        java = [*become, "java", *heap, "-cp", f"{local}/*"]
        arguments = ["format", "--cluster-id=MkU3OEVBNTcwNTJENDM2Qk", "-c", str(properties)]
        subprocess.run([*java, "kafka.tools.StorageTool", *arguments], check=True, stdout=subprocess.DEVNULL, cwd=data)
        with (self.folder / "kafka.log").open("wb") as log:
            self._servers["kafka"] = subprocess.Popen(
                [*java, "kafka.Kafka", str(properties)], stdout=log, stderr=log, cwd=data
            )
        self._wait(["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/19092"])

    def close(self) -> None:
        """Remove the containers and end the servers."""
        podman("rm", "--force", "--all", "--time", "1", check=False)
        podman("volume", "rm", "--force", "--all", check=False)
        for process in self._servers.values():
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()

    def _first_statements(self) -> list[str]:
        mounted = next(v for v in self.services["postgres"]["volumes"] if "docker-entrypoint-initdb.d" in v)
        text = (ROOT / mounted.partition(":")[0]).read_text(encoding="utf-8")
        lines = " ".join(line for line in text.splitlines() if not line.startswith("--"))
        return [statement for statement in map(str.strip, lines.split(";")) if statement]

    def _wait(self, command: list[str]) -> None:
        give_up_at = time.monotonic() + START_SECONDS
        while subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            assert time.monotonic() < give_up_at, f"{command} does not succeed"
            for name, process in self._servers.items():
                assert process.poll() is None, (self.folder / f"{name}.log").read_text("utf-8", "replace")[-2_000:]
            time.sleep(0.3)
