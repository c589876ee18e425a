"""The embedded services: started, used, killed, started again, and never left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import adbc_driver_postgresql.dbapi
import psycopg2
import pytest
from confluent_kafka.admin import AdminClient

from ingest_project import devstack as restarts
from ingest_project.core.errors import PermanentError, SettingsError
from ingest_project.core.settings import LoadedSettings, Origin, load_settings
from ingest_project.devstack import Command, ServiceFailedError, free_port, postgres, start, supervisor
from ingest_project.devstack.dagster_processes import DagsterHome
from ingest_project.devstack.state_folder import (
    StateFolderInUseError,
    StateFolderUnusableError,
    child_environment,
    prepare,
)
from ingest_project.devstack.supervisor import Stack, StepState, choose_port, failures_explained, running_stack
from ingest_project.platform.dagster.records import DagsterRecordsUnavailableError
from ingest_project_tests.cli.running import started_stack, wait_until_nothing_is_left


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One state folder for the module: making a database takes longer than all else here."""
    folder = tmp_path_factory.mktemp("state")
    yield folder
    assert wait_until_nothing_is_left(folder) == {}


def settings_of(state_dir: Path, folder: Path, **variables: str) -> LoadedSettings:
    return load_settings({"INGEST_STATE_DIR": str(state_dir), **variables}, folder)


def silent(_step: str, _state: StepState) -> None:
    pass


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_the_services_answer_our_clients_are_found_while_they_run_and_belong_to_one_stack(
    state_dir: Path, tmp_path: Path
) -> None:
    steps: list[tuple[str, StepState]] = []
    with running_stack(settings_of(state_dir, tmp_path), lambda *step: steps.append(step), dagster=False) as stack:
        _require_answers(stack)
        url = stack.settings.warehouse.database_url.get_secret_value().replace("+psycopg2", "")
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(url, password="guessed")  # noqa: S106 - that is the point
        found = settings_of(state_dir, tmp_path)
        assert found.settings.kafka == stack.settings.kafka
        assert found.settings.warehouse == stack.settings.warehouse
        assert found.origins["kafka.bootstrap_servers"] is Origin.EMBEDDED
        for secret in ("services.json", "postgres.password"):
            assert (state_dir / secret).stat().st_mode & 0o077 == 0
        with (
            pytest.raises(StateFolderInUseError, match=rf"process {os.getpid()}\).*INGEST_STATE_DIR"),
            running_stack(found, silent, dagster=False),
        ):
            pass
        generation = stack.settings.kafka.generation
    assert {("broker", StepState.READY), ("database", StepState.READY)} <= {*steps}
    assert wait_until_nothing_is_left(state_dir) == {}
    assert settings_of(state_dir, tmp_path).settings.kafka.bootstrap_servers == ""
    # As an ended server leaves it, whose number another program has by now.
    (state_dir / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\n{state_dir}/postgres\n")
    with running_stack(settings_of(state_dir, tmp_path), silent, dagster=False) as stack:
        assert stack.settings.kafka.generation != generation


def _require_answers(stack: Stack) -> None:
    url = stack.settings.warehouse.database_url.get_secret_value()
    query(url, "CREATE TABLE IF NOT EXISTS kept (n int)")
    query(url, "INSERT INTO kept VALUES (1)")
    with (
        adbc_driver_postgresql.dbapi.connect(url.replace("+psycopg2", "")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT current_database(), current_setting('synchronous_commit')")
        assert cursor.fetchall() == [("warehouse", "on")]
    dagster_url = stack.settings.dagster.postgres_url.get_secret_value()
    assert query(dagster_url, "SELECT current_database()") == [("dagster",)]
    broker = AdminClient({"bootstrap.servers": stack.settings.kafka.bootstrap_servers})
    assert broker.list_topics(timeout=10).brokers


def test_after_kill_9_no_process_is_left_and_the_next_start_works_on_the_same_data(
    state_dir: Path, tmp_path: Path
) -> None:
    with started_stack(state_dir) as stack:
        query(stack.addresses["database"], "CREATE TABLE survivor (n int)")
        query(stack.addresses["database"], "INSERT INTO survivor VALUES (42)")
        stack.end(signal.SIGKILL)
    # At once, while the guards of the killed one may still be ending things.
    with running_stack(settings_of(state_dir, tmp_path), silent, dagster=False) as again:
        assert query(again.settings.warehouse.database_url.get_secret_value(), "SELECT n FROM survivor") == [(42,)]
    assert wait_until_nothing_is_left(state_dir) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_ends_everything_in_good_order(state_dir: Path, number: signal.Signals) -> None:
    with started_stack(state_dir) as stack:
        assert stack.end(number) == 130
    assert wait_until_nothing_is_left(state_dir) == {}
    assert "database system is shut down" in (state_dir / "logs" / "postgres.log").read_text()


def test_killing_the_guards_as_well_leaves_no_process(state_dir: Path) -> None:
    with started_stack(state_dir) as stack:
        children = Path(f"/proc/{stack.process.pid}/task/{stack.process.pid}/children").read_text().split()
        assert len(children) == 2
        for pid in (*map(int, children), stack.process.pid):
            os.kill(pid, signal.SIGKILL)
    assert wait_until_nothing_is_left(state_dir) == {}


def test_a_database_server_that_was_left_running_is_taken_over(state_dir: Path, tmp_path: Path) -> None:
    data = state_dir / "postgres"
    if not data.exists():
        # No test before this one has made the database in this process.
        with running_stack(settings_of(state_dir, tmp_path), silent, dagster=False):
            pass
    run_as = postgres.server_user(data)
    sockets = state_dir / "pg"
    command = Command(
        "orphan", [str(postgres.binaries() / "postgres"), "-D", str(data), "-k", str(sockets), "-h", ""], run_as=run_as
    )
    orphan = start(command, tmp_path)
    try:
        _wait_for((data / "postmaster.pid").exists)
        with running_stack(settings_of(state_dir, tmp_path), silent, dagster=False) as stack:
            assert not orphan.running
            query(stack.settings.warehouse.database_url.get_secret_value(), "SELECT 1")
    finally:
        orphan.stop()


def kill_postgres(state_dir: Path) -> None:
    os.kill(int((state_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)


def test_parts_that_end_are_started_again_and_one_that_ends_again_and_again_ends_the_stack(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, StepState]] = []
    with running_stack(settings_of(state_dir, tmp_path), lambda *step: steps.append(step), dagster=False) as stack:
        require_database_again(stack, state_dir, steps)
        require_broker_again(stack, state_dir, tmp_path)
        monkeypatch.setattr(restarts, "PAUSES_SECONDS", (0.0, 0.0))

        def kill_again_and_again() -> None:
            for _ in range(3):
                kill_postgres(state_dir)
                stack.wait(2)

        expected = r"(?s)postgres ended.*3 times in a short while.*postgres\.log.*ready to accept connections"
        with pytest.raises(ServiceFailedError, match=expected):
            kill_again_and_again()
    said = [step for step, state in steps if state is StepState.NOTE]
    assert any("postgres ended and is started again in 0.5 s" in one and "postgres.log" in one for one in said)
    assert any("The messages in the broker are lost" in one for one in said)
    assert wait_until_nothing_is_left(state_dir) == {}


def require_database_again(stack: Stack, state_dir: Path, steps: list[tuple[str, StepState]]) -> None:
    """It is there again with what was committed."""
    url = stack.settings.warehouse.database_url.get_secret_value()
    query(url, "CREATE TABLE committed (n int)")
    query(url, "INSERT INTO committed VALUES (7)")
    kill_postgres(state_dir)
    until = time.monotonic() + 30
    while ("postgres", StepState.READY) not in steps and time.monotonic() < until:
        stack.wait(0.1)
    assert query(url, "SELECT n FROM committed") == [(7,)]


def require_broker_again(stack: Stack, state_dir: Path, folder: Path) -> None:
    """It is there again at its address, as another generation, with its topics."""
    before = stack.settings.kafka
    broker = next(child for child in stack.children if child.name == "broker")
    # The guard, so that the broker itself is ended by the kernel.
    broker.guard.kill()
    broker.guard.wait()
    stack.require_running()
    assert stack.settings.kafka.bootstrap_servers == before.bootstrap_servers
    assert stack.settings.kafka.generation != before.generation
    assert settings_of(state_dir, folder).settings.kafka == stack.settings.kafka
    admin = AdminClient({"bootstrap.servers": before.bootstrap_servers})
    assert "polling-queue" in admin.list_topics(timeout=10).topics


def test_pauses_between_restarts_grow_and_a_part_that_ran_long_has_its_restarts_back() -> None:
    counted = restarts.Restarts()
    assert [counted.pause_after_end("daemon", second) for second in range(6)] == [*restarts.PAUSES_SECONDS, None]
    assert counted.pause_after_end("webserver", 6.0) == restarts.PAUSES_SECONDS[0]
    assert counted.pause_after_end("daemon", 10 + restarts.REMEMBERED_SECONDS) == restarts.PAUSES_SECONDS[0]


def test_a_part_that_ends_on_a_full_disk_is_started_again_once_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def free_space(step: str, _state: StepState) -> None:
        steps.append(step)
        monkeypatch.setattr(supervisor, "SPACE_TO_START_BYTES", 0)

    stack = Stack(settings_of(tmp_path, tmp_path), free_space)
    stack.log_folder.mkdir()
    short_of_space = sys.maxsize
    monkeypatch.setattr(supervisor, "SPACE_TO_START_BYTES", short_of_space)
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(restarts, "PAUSES_SECONDS", (0.0,))
    stack.children.append(start(Command("part", [sys.executable, "-c", ""]), stack.log_folder))
    try:
        _wait_for(lambda: not stack.children[0].running)
        stack.require_running()
        assert re.fullmatch(rf"{tmp_path}: its disk is full \(\d+ MiB free\). The part ended and is .*", steps[0])
        assert steps[1:] == [f"The part ended and is started again in 0 s. See {stack.log_folder / 'part.log'}", "part"]
        monkeypatch.setattr(supervisor, "SPACE_TO_START_BYTES", short_of_space)
        with (
            pytest.raises(StateFolderUnusableError, match=rf"{tmp_path} .*MiB free\), and the part needs more"),
            failures_explained(stack),
        ):
            raise stack.children[0].failed("ended")
    finally:
        stack.children[0].stop()


def test_parts_that_settings_locate_elsewhere_are_not_started(tmp_path: Path) -> None:
    steps: list[tuple[str, StepState]] = []
    elsewhere = settings_of(
        tmp_path / "state",
        tmp_path,
        KAFKA_BROKERS="kafka.example:9092",
        DATABASE_URL="sqlite:////tmp/warehouse.db",
        DAGSTER_POSTGRES_URL="postgresql://dagster@db.example/dagster",
    )
    with running_stack(elsewhere, lambda *step: steps.append(step), dagster=False) as stack:
        assert stack.children == []
        assert stack.settings == elsewhere.settings
    assert steps == [("broker", StepState.EXTERNAL), ("database", StepState.EXTERNAL)]


def test_a_database_of_dagsters_that_is_away_when_it_starts_is_one_line(tmp_path: Path) -> None:
    url = f"postgresql://dagster:s3cret@127.0.0.1:{free_port()}/dagster"
    elsewhere = {"KAFKA_BROKERS": "kafka.example:9092", "DATABASE_URL": "sqlite:////tmp/warehouse.db"}
    loaded = settings_of(tmp_path / "state", tmp_path, DAGSTER_POSTGRES_URL=url, INGEST_WEBSERVER_PORT="0", **elsewhere)
    with pytest.raises(DagsterRecordsUnavailableError) as found, running_stack(loaded, silent):
        pass
    assert "DAGSTER_POSTGRES_URL" in str(found.value)
    assert "s3cret" not in str(found.value)
    assert "\n" not in str(found.value)
    assert wait_until_nothing_is_left(tmp_path / "state") == {}


def test_a_part_that_ends_without_dagsters_database_is_one_line_and_with_it_the_end_of_its_log(
    tmp_path: Path, postgres_url: str
) -> None:
    home = DagsterHome(tmp_path, tmp_path / "code.sock", "nothing", 0)
    away = f"postgresql://dagster@127.0.0.1:{free_port()}/dagster"
    for url, expected in ((away, DagsterRecordsUnavailableError), (postgres_url, ServiceFailedError)):
        stack = Stack(settings_of(tmp_path, tmp_path, DAGSTER_POSTGRES_URL=url), silent, home=home)
        with pytest.raises(expected), failures_explained(stack):
            raise ServiceFailedError("code server", "ended", tmp_path / "log", "Traceback")


def test_data_of_another_major_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    data = tmp_path / "state" / "postgres"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("15\n")
    with (
        pytest.raises(PermanentError, match=r"PostgreSQL 15.*Move the folder away"),
        running_stack(settings_of(tmp_path / "state", tmp_path), silent, dagster=False),
    ):
        pass
    assert wait_until_nothing_is_left(tmp_path / "state") == {}


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_used_port_that_was_configured_is_a_clear_error(tmp_path: Path, taken_port: int) -> None:
    loaded = settings_of(tmp_path, tmp_path, INGEST_WEBSERVER_PORT=str(taken_port))
    expected = rf"Port {taken_port} is taken \(by process {os.getpid()}, .*Set INGEST_WEBSERVER_PORT"
    with pytest.raises(SettingsError, match=expected):
        choose_port(loaded, "The UI", "dagster.webserver_port", silent)


def test_a_used_default_port_is_replaced_with_a_note(tmp_path: Path, taken_port: int) -> None:
    loaded = settings_of(tmp_path, tmp_path, INGEST_WEBSERVER_PORT=str(taken_port))
    notes: list[str] = []
    nobody_asked = LoadedSettings(loaded.settings, {})
    chosen = choose_port(nobody_asked, "The UI", "dagster.webserver_port", lambda step, _state: notes.append(step))
    assert chosen != taken_port
    assert f"Port {taken_port} is taken" in notes[0]
    assert str(chosen) in notes[0]


def test_a_state_folder_of_an_earlier_version_is_closed_to_others_and_a_shared_folder_is_left_alone(
    tmp_path: Path,
) -> None:
    ours, shared = tmp_path / "ours", tmp_path / "shared"
    for folder in (ours, shared):
        folder.mkdir()
        folder.chmod(0o755)
    (ours / "lock").touch()
    prepare(ours)
    prepare(shared)
    prepare(tmp_path / "new" / "state")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (ours, shared, shared / "logs", tmp_path / "new")}
    assert modes == {"ours": 0o700, "shared": 0o755, "logs": 0o700, "new": 0o700}


def test_a_state_folder_whose_path_is_too_long_for_a_socket_and_closed_to_the_database_s_user_works(
    tmp_path: Path,
) -> None:
    closed = tmp_path / ("d" * 120) / "closed"
    closed.mkdir(parents=True)
    closed.chmod(0o700)
    with running_stack(settings_of(closed / "state", tmp_path), silent, dagster=False) as stack:
        query(stack.settings.warehouse.database_url.get_secret_value(), "SELECT 1")
        assert stat.S_IMODE((closed / "state").stat().st_mode) == 0o700
        assert stat.S_IMODE((closed / "state" / "logs" / "postgres.log").stat().st_mode) == 0o600
    assert wait_until_nothing_is_left(closed) == {}


def failure_of_dev(state_dir: Path, *prefix: str) -> str:
    """What `ingest dev` says on standard error."""
    environ = {
        "INGEST_STATE_DIR": str(state_dir),
        "INGEST_CONFIG_DIR": str(state_dir.parent),
        "PATH": os.environ["PATH"],
    }
    command = [*prefix, sys.executable, "-m", "ingest_project.cli.main", "dev", "--services-only"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize("further", ["", "first", ":first"])
def test_a_file_in_the_current_folder_replaces_no_module_of_a_part(tmp_path: Path, further: str) -> None:
    (tmp_path / "graphql.py").write_text("raise SystemExit('of the current folder')")
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "own.py").touch()
    environ = child_environment(load_settings({}, tmp_path), {"PYTHONPATH": further})
    # Dagster removes the first folder of the path when it loads definitions.
    program = f"import graphql, sys; sys.path.remove(sys.path[0]); import {'own' if further else 'json'}"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environ)


def test_a_state_folder_that_is_a_file_or_in_one_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateFolderUnusableError) as refused:
        prepare(tmp_path / "file")
    for said in (str(refused.value), failure_of_dev(tmp_path / "file" / "state")):
        assert f"{tmp_path / 'file'} is a file" in said
        assert "set INGEST_STATE_DIR" in said


@pytest.mark.parametrize("name", ["lock", "logs", "postgres.password", "services.json"])
def test_a_part_of_the_state_folder_that_cannot_be_used_is_one_line_with_the_remedy(name: str, tmp_path: Path) -> None:
    part = tmp_path / "state" / name
    part.mkdir(parents=True)
    if name == "logs":
        part.rmdir()
        part.touch()
    said = failure_of_dev(tmp_path / "state")
    assert f"The state folder {tmp_path / 'state'} cannot be used" in said
    assert name in said
    assert "set INGEST_STATE_DIR" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_state_folder_of_another_user_is_one_line_that_names_both() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as state_dir:
        Path(state_dir).chmod(0o777)
        command = [sys.executable, "-c", STRANGER, state_dir]
        said = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr
    assert "it belongs to user root, and this is user nobody" in said
    assert "INGEST_STATE_DIR" in said


# Everything is imported before it becomes another user, who could not read the project below root's home.
STRANGER = """
import os, sys
from pathlib import Path
from ingest_project.devstack.state_folder import StateFolderUnusableError, prepare
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    prepare(Path(sys.argv[1]))
except StateFolderUnusableError as error:
    sys.stderr.write(str(error))
"""


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
