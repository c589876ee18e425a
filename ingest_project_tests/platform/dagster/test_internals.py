"""The internals of Dagster that the platform depends on behave as expected, and only one package depends on them."""

import ast
import inspect
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.events import DagsterEvent, EngineEventData, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.test_utils import create_run_for_test
from dagster._daemon import controller, sensor
from dagster._grpc import server
from dagster_shared.error import SerializableErrorInfo
from pydantic import SecretStr

import ingest_project
from ingest_project.core.errors import DatabaseUnavailableError
from ingest_project.platform.dagster.instance import (
    TeeLogManager,
    WatchedRunLauncher,
    _columns_of_tables,
    _found_in,
    shared_engine,
    shared_storage,
)
from ingest_project.platform.dagster.run_records import innermost
from ingest_project_tests.services.postgres import PostgresServer

PACKAGE = Path(ingest_project.__file__).parent
ROOM = PACKAGE / "platform" / "dagster"


def is_internal(module: str) -> bool:
    top, _, below = module.partition(".")
    return top == "dagster_postgres" or (top == "dagster" and below.startswith("_") and below != "__version__")


def imported(path: Path) -> Iterator[str]:
    """Yield the modules and names that a module imports; none of one that does not name Dagster."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source if "dagster" in source else "")):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize(
    "module", ["dagster._core.events", "dagster._serdes", "dagster_postgres.utils", "dagster._grpc"]
)
def test_imports_of_dagsters_internals_are_recognised(module: str, tmp_path: Path) -> None:
    for number, line in enumerate([f"import {module}", f"def late():\n    from {module} import anything"]):
        (tmp_path / f"{number}.py").write_text(line)
        assert any(map(is_internal, imported(tmp_path / f"{number}.py")))
    assert not any(map(is_internal, ["dagster", "dagster.DagsterInstance", "dagster.__version__", "dagster_aws.s3"]))


def test_only_one_package_touches_dagsters_internals() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {module}"
        for path in PACKAGE.rglob("*.py")
        if not path.is_relative_to(ROOM)
        for module in imported(path)
        if is_internal(module)
    }
    assert found == set()
    assert any(is_internal(module) for path in ROOM.glob("*.py") for module in imported(path))


@contextmanager
def statements(url: str) -> Iterator[list[str]]:
    """Collect the statements that the pool of this process executes."""
    seen: list[str] = []

    def note(*arguments: object) -> None:
        seen.append(str(arguments[2]))

    engine = shared_engine(SecretStr(url))
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def url_of(instance: dg.DagsterInstance) -> str:
    return str(instance.event_log_storage.postgres_url)  # type: ignore[attr-defined]


def test_dagster_stores_a_batch_of_materialisations_by_one_statement(dagster_instance: dg.DagsterInstance) -> None:
    asset = dg.AssetKey("a")
    events = [
        EventLogEntry(  # type: ignore[no-untyped-call]  # Dagster's own class has no annotations here
            error_info=None,
            level=10,
            user_message="",
            run_id="run",
            timestamp=1_760_000_000.0,
            dagster_event=DagsterEvent(
                event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
                job_name="job",
                event_specific_data=StepMaterializationData(dg.AssetMaterialization(asset, partition=partition), []),
            ),
        )
        for partition in "abc"
    ]
    with statements(url_of(dagster_instance)) as seen:
        dagster_instance.event_log_storage.store_event_batch(events)
    assert len([statement for statement in seen if statement.startswith("INSERT INTO event_logs")]) == 1
    assert len([statement for statement in seen if statement.startswith("INSERT INTO asset_keys")]) == 1
    assert dagster_instance.get_materialized_partitions(asset) == set("abc")
    assert dagster_instance.get_latest_materialization_event(asset) == events[-1]


def test_all_storages_of_all_instances_share_one_pool(dagster_instance: dg.DagsterInstance) -> None:
    storages = (dagster_instance.event_log_storage, dagster_instance.run_storage, dagster_instance.schedule_storage)
    assert all(storage._engine is shared_engine(SecretStr(url_of(dagster_instance))) for storage in storages)  # type: ignore[union-attr]


def test_connections_that_the_server_ended_are_replaced_before_they_are_used(
    dagster_instance: dg.DagsterInstance, postgres_server: PostgresServer
) -> None:
    assert dagster_instance.get_runs_count() == 0
    postgres_server.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        f" WHERE datname = '{shared_engine(SecretStr(url_of(dagster_instance))).url.database}'"
    )
    assert dagster_instance.get_runs_count() == 0


def test_answers_of_the_system_catalogue_are_cached(dagster_instance: dg.DagsterInstance) -> None:
    def use(instance: dg.DagsterInstance) -> None:
        instance.all_instigator_state()
        instance.get_runs()
        instance.add_dynamic_partitions("files", ["a"])
        instance.report_runless_asset_event(dg.AssetMaterialization("a", partition="a", tags={"colour": "red"}))

    use(dagster_instance)
    with statements(url_of(dagster_instance)) as seen:
        use(dagster_instance)
    assert seen
    assert not [statement for statement in seen if "pg_catalog" in statement]


def test_a_process_looks_once_for_tables_that_are_there(dagster_instance: dg.DagsterInstance) -> None:
    url = url_of(dagster_instance)
    shared_storage.cache_clear()
    with statements(url) as seen:
        storage = shared_storage(SecretStr(url))
    assert len([statement for statement in seen if "pg_class" in statement]) == 1
    assert storage.run_storage.get_runs() == dagster_instance.get_runs()


def test_processes_that_start_at_once_create_the_tables_once(empty_postgres_url: str) -> None:
    address = SecretStr(empty_postgres_url)
    with ThreadPoolExecutor(4) as pool:
        # Uncached, as in processes of their own.
        opened = [pool.submit(shared_storage.__wrapped__, address) for _ in range(4)]
        assert [one.result().run_storage.get_runs() for one in opened] == [[]] * 4
    shared_engine(address).dispose()


def test_the_schema_answers_of_one_query_equal_dagsters_own(dagster_instance: dg.DagsterInstance) -> None:
    storages = {
        name: storage
        for storage in (dagster_instance.event_log_storage, dagster_instance.run_storage)
        for name in ("has_table", "has_asset_key_col", "has_run_stats_index_cols", "has_backfill_id_column")
        if hasattr(storage, name)
    }
    with shared_engine(SecretStr(url_of(dagster_instance))).connect() as connection:
        known = _found_in(_columns_of_tables(connection))
    said = {(name, *sought) for name, *sought in known if name in storages}
    assert {name for name, *_ in said} == storages.keys()
    for name, *sought in said:
        looks = next(vars(kind)[name] for kind in type(storages[name]).__mro__[1:] if name in vars(kind))
        assert looks(storages[name], *sought), (name, *sought)
    assert not dagster_instance.event_log_storage.has_table("no_such_table")  # type: ignore[attr-defined]


PRINTS = """
import os, subprocess, sys, time
from ingest_project.platform.dagster.instance import TeeLogManager
with TeeLogManager(sys.argv[1]).capture_logs(["run", "step"]):
    print("by Python")
    os.write(1, b"by a library\\n")
    subprocess.run(["echo", "by a program"], check=True)
    print("an error", file=sys.stderr)
    if sys.argv[2:]:
        os.write(2, b"the last words")
        os.kill(os.getpid(), 9)
print("afterwards")
"""


def test_the_output_of_a_step_is_in_its_log_files_and_on_the_console(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PRINTS, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    manager = LocalComputeLogManager(str(tmp_path))
    files = manager.get_log_data(["run", "step"])
    assert files.stdout is not None
    assert sorted(files.stdout.splitlines()) == [b"by Python", b"by a library", b"by a program"]
    assert (shown.stdout, shown.stderr) == (f"{files.stdout.decode()}afterwards\n", "an error\n")
    assert files.stderr == b"an error\n"
    assert manager.is_capture_complete(["run", "step"])


def test_the_last_words_of_a_killed_step_are_in_its_file(tmp_path: Path) -> None:
    # It returns only once nothing has the console open any more: `tee` has ended by itself.
    shown = subprocess.run(
        [sys.executable, "-c", PRINTS, str(tmp_path), "killed"], capture_output=True, check=False, timeout=60
    )
    assert shown.returncode == -signal.SIGKILL
    files = LocalComputeLogManager(str(tmp_path)).get_log_data(["run", "step"])
    assert files.stderr == shown.stderr == b"an error\nthe last words"


def test_dagsters_own_configuration_names_the_files_under_its_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    shutil.copy(PACKAGE.parent / "dagster.yaml", tmp_path)
    default = InstanceRef.from_dir(str(tmp_path)).compute_log_manager
    assert isinstance(default, TeeLogManager)
    assert Path(default.get_captured_local_path(["a"], "out")).is_relative_to(tmp_path / "storage")


def status_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    stored = instance.get_run_by_id(run.run_id)
    assert stored is not None
    return stored.status


def test_a_run_that_is_canceled_and_started_at_once_ends_canceled(dagster_instance: dg.DagsterInstance) -> None:
    start = dg.DagsterEventType.PIPELINE_STARTING.value
    with ThreadPoolExecutor(4) as pool:
        for _ in range(15):
            run = create_run_for_test(dagster_instance)
            events = [DagsterEvent(start, run.job_name) for _ in range(3)]
            started = [pool.submit(dagster_instance.run_storage.handle_run_event, run.run_id, one) for one in events]
            dagster_instance.report_run_canceled(run)
            for one in started:
                one.result()
            assert status_of(dagster_instance, run) is dg.DagsterRunStatus.CANCELED


@pytest.mark.parametrize("later", [dg.DagsterEventType.PIPELINE_ENQUEUED, dg.DagsterEventType.PIPELINE_STARTING])
def test_a_run_that_was_canceled_by_force_stays_canceled(
    dagster_instance: dg.DagsterInstance, later: dg.DagsterEventType
) -> None:
    run = create_run_for_test(dagster_instance)
    dagster_instance.report_run_canceled(run)
    dagster_instance.report_dagster_event(DagsterEvent(later.value, run.job_name), run_id=run.run_id)
    assert status_of(dagster_instance, run) is dg.DagsterRunStatus.CANCELED


@pytest.mark.parametrize("ended", [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE])
def test_a_run_that_ended_before_its_cancellation_keeps_its_outcome(
    dagster_instance: dg.DagsterInstance, ended: dg.DagsterRunStatus
) -> None:
    run = create_run_for_test(dagster_instance, status=ended)
    dagster_instance.report_run_canceling(run)
    dagster_instance.report_run_canceled(run)
    assert status_of(dagster_instance, run) is ended


def test_the_shown_reason_is_the_first_that_names_a_remedy_or_else_the_innermost() -> None:
    def info(message: str, cause: SerializableErrorInfo | None = None) -> SerializableErrorInfo:
        return SerializableErrorInfo(message, [], None, cause)

    driver = info("psycopg2.errors.ReadOnlySqlTransaction: cannot execute INSERT\n")
    ours = info(f"{DatabaseUnavailableError.__module__}.DatabaseUnavailableError: It is read-only.\n", driver)
    assert innermost(info("dagster._core.errors.SensorExecutionError: Error occurred\n", ours)) == ours
    assert innermost(info("dagster._core.errors.SensorExecutionError: Error occurred\n", driver)) == driver


def test_the_launcher_detects_that_no_code_server_has_a_run(dagster_instance: dg.DagsterInstance) -> None:
    launcher = WatchedRunLauncher()
    launcher.register_instance(dagster_instance)
    health = launcher.check_run_worker_health(create_run_for_test(dagster_instance))
    assert (health.status, health.msg) == (WorkerStatus.NOT_FOUND, "No code server is on record for it.")


@pytest.mark.parametrize(
    ("pid", "seconds_later", "status"),
    [
        (os.getpid(), 0, WorkerStatus.RUNNING),
        # Another process got the id after a restart of the machine.
        (os.getpid(), -1_000_000, WorkerStatus.NOT_FOUND),
        # Larger than any process id.
        (2**22 + 1, 0, WorkerStatus.NOT_FOUND),
    ],
)
def test_a_run_that_a_command_executes_itself_counts_as_running_while_the_command_lives(
    dagster_instance: dg.DagsterInstance, pid: int, seconds_later: int, status: WorkerStatus
) -> None:
    launcher, run = WatchedRunLauncher(), create_run_for_test(dagster_instance)
    launcher.register_instance(dagster_instance)
    event = DagsterEvent(
        dg.DagsterEventType.ENGINE_EVENT.value, run.job_name, event_specific_data=EngineEventData.in_process(pid)
    )
    dagster_instance.report_dagster_event(event, run.run_id, timestamp=time.time() + seconds_later)
    assert launcher.check_run_worker_health(run).status is status


def test_the_code_server_starts_its_workers_in_the_way_that_is_replaced() -> None:
    assert 'multiprocessing.get_context("spawn")' in inspect.getsource(server)


def test_dagster_finds_by_name_what_resting_sensors_replace() -> None:
    """`quiet_sensors.install` would change nothing otherwise."""
    assert "is_under_min_interval" in sensor._process_tick_generator.__code__.co_names
    assert "SensorLaunchContext" in sensor._process_tick_generator.__code__.co_names
    assert "is_under_min_interval" in sensor.execute_sensor_iteration.__code__.co_names
    created = controller.create_daemon_of_type.__code__.co_names
    assert {"SensorDaemon", "QueuedRunCoordinatorDaemon"} <= set(created)
    # The loop over the sensors only waits for this event.
    waited = sensor.execute_sensor_iteration_loop.__code__
    assert "wait" in waited.co_names
    assert "is_set" not in waited.co_names
