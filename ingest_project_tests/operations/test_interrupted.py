"""`kill -9` in the middle of each action: the record says what was done, and performing it again doubles nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from dagster import DagsterInstance
from dagster._serdes import serialize_value

from ingest_project.attachments.tables import AttachmentState
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project.operations.actions import ACTIONS
from ingest_project.operations.alerts.conditions import assess
from ingest_project.operations.alerts.incidents import History
from ingest_project.operations.monitor import Monitor
from ingest_project.platform.actions import (
    ActionRecord,
    ActionRequest,
    action_record,
    action_records,
    items_of_action,
    perform,
    settle_interrupted,
)
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.work_queue.consume import dead_letter_message
from ingest_project.platform.work_queue.queue import JobState
from ingest_project_tests.cli import known_attachments
from ingest_project_tests.cli.known_files import ARRIVED, arrive, finish, job_arrives
from ingest_project_tests.cli.test_status import save_cursor
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint
from ingest_project_tests.journeys.system import close, environment
from ingest_project_tests.operations.conftest import running
from ingest_project_tests.services.kafka import FaultyBroker

ACTION_ID = "a" * 32
QUEUE = "ingest_project.platform.work_queue.queue:WorkQueue"
FILES = "ingest_project.file_ingest.file_queue:FileQueue"
CONTROL = "ingest_project.platform.dagster.control"
BEGUN = KillPoint("recorded", "ingest_project.platform.actions:_begin")
RAW = "events.raw"


@dataclass
class Operator:
    """The process that performs an action and dies."""

    settings: Settings
    instance: DagsterInstance
    folder: Path
    cursors: Mapping[str, str | None]

    def act(self) -> None:
        """Perform the action that the folder names."""
        action, parameters = json.loads((self.folder / "action.json").read_text())
        request = ActionRequest(parameters=parameters, reason="mended", who="ada@host", action_id=ACTION_ID)
        perform(SystemResources(self.settings), ACTIONS[action], request)


@dataclass(frozen=True)
class Case:
    """An action that is killed.

    Args:
        action: its name.
        point: where it dies.
        prepare: makes its items, and returns its parameters.
        done: how many items it had acted on.
        items: of how many.
        after: what holds once it was performed again.
        repeated: how many items the second one acts on; by default those that were left.
    """

    action: str
    point: KillPoint
    prepare: Callable[[SystemResources, DagsterInstance, Path], dict[str, str]]
    done: int
    items: int
    after: Callable[[SystemResources, DagsterInstance], bool]
    repeated: int | None = field(default=None)


def quarantined(services: SystemResources, _instance: DagsterInstance, _folder: Path) -> dict[str, str]:
    names = [f"{number}.csv~{number}" for number in range(3)]
    arrive(services, *names)
    for key in names:
        finish(services, key, FileState.QUARANTINED, reason="missing_column: none")
    return {}


def by_another_profile(services: SystemResources, instance: DagsterInstance, folder: Path) -> dict[str, str]:
    return quarantined(services, instance, folder) | {"new_profile": "skab"}


def to_correct(services: SystemResources, instance: DagsterInstance, folder: Path) -> dict[str, str]:
    quarantined(services, instance, folder)
    path = folder / "fixed.csv"
    path.write_text("timestamp,device_id,sensor_type,value\n")
    return {"key": "0.csv~0", "file": str(path)}


def dead_attachments(services: SystemResources, _instance: DagsterInstance, _folder: Path) -> dict[str, str]:
    for name in ("a.pdf", "b.pdf"):
        known_attachments.dead(services, name)
    return {}


def failed_jobs(services: SystemResources, _instance: DagsterInstance, _folder: Path) -> dict[str, str]:
    job_arrives(services, "job-1")
    services.polling_jobs.begin(["job-1"], "run", ARRIVED)
    services.polling_jobs.fail(["job-1"], "no such folder", "SourceNotFoundError", ARRIVED)
    services.polling_jobs.mark_reported(["job-1"], ARRIVED)
    return {}


def ticking(_services: SystemResources, instance: DagsterInstance, _folder: Path) -> dict[str, str]:
    for sensor in ("polling_queue_sensor", "file_event_queue_sensor"):
        save_cursor(instance, sensor, "cursor")
    return {"capability": "polling"}


def paused(services: SystemResources, instance: DagsterInstance, folder: Path) -> dict[str, str]:
    given = ticking(services, instance, folder)
    perform(services, ACTIONS["pause-capability"], ActionRequest(parameters=given, reason="r", who="bob"))
    return given


def messages(services: SystemResources, _instance: DagsterInstance, _folder: Path) -> dict[str, str]:
    services.writer.send_all(RAW, [ProducerRecord(b"bad", b"k", (), 0)] * 3)
    return {"topic": RAW, "partition": "0", "offset": "1"}


def letters(services: SystemResources, _instance: DagsterInstance, _folder: Path) -> dict[str, str]:
    bad = [ConsumerRecord(RAW, 0, number, 1_700_000_000_000, b"k", f"{number}".encode(), ()) for number in range(5)]
    dead_letter_message(services, f"{RAW}.dlq", [(one, UnreadableMessageError("not JSON")) for one in bad], "g1")
    return {"topic": RAW}


def letters_again(services: SystemResources, instance: DagsterInstance, folder: Path) -> dict[str, str]:
    given = letters(services, instance, folder)
    perform(services, ACTIONS["redrive-dead-letters"], ActionRequest(parameters=given, reason="r", who="bob"))
    return given | {"again": "yes"}


def are_pending(services: SystemResources, _instance: DagsterInstance) -> bool:
    return {one.state for one in services.files.list()} == {FileState.PENDING}


def are_queued_by_the_profile(services: SystemResources, _instance: DagsterInstance) -> bool:
    return sorted(one.profile for one in services.files.list()) == ["canonical"] * 3 + ["skab"] * 3


def are_in_one_backfill(_services: SystemResources, instance: DagsterInstance) -> bool:
    return len(instance.get_backfills()) == 1


def is_corrected_once(services: SystemResources, _instance: DagsterInstance) -> bool:
    return [one.corrects for one in services.files.list() if one.corrects] == ["0.csv~0"]


def are_replayed_once(services: SystemResources, _instance: DagsterInstance) -> bool:
    return [(one.state, one.replays) for one in services.attachments.list()] == [(AttachmentState.PENDING, 1)] * 2


def runs_again(services: SystemResources, _instance: DagsterInstance) -> bool:
    return [one.state for one in services.polling_jobs.list()] == [JobState.PENDING]


def is_stopped(_services: SystemResources, instance: DagsterInstance) -> bool:
    stopped = {one.instigator_name for one in instance.all_instigator_state() if one.status.value == "STOPPED"}
    return "polling_queue_sensor" in stopped and "file_event_queue_sensor" not in stopped


def is_running(services: SystemResources, instance: DagsterInstance) -> bool:
    return not is_stopped(services, instance)


def is_skipped_once(services: SystemResources, _instance: DagsterInstance) -> bool:
    return len(services.skipped_offsets.list()) == 1


def are_on_the_topic(times: int) -> Callable[[SystemResources, DagsterInstance], bool]:
    def check(services: SystemResources, _instance: DagsterInstance) -> bool:
        read = services.reader.read(RAW, None, max_messages=1_000, max_bytes=10**6, wait_seconds=0)
        return sorted(one.value or b"" for one in read.messages) == sorted([b"0", b"1", b"2", b"3", b"4"] * times)

    return check


RELEASE, REDRIVE = "release-quarantined-files", "redrive-dead-letters"
SENT = KillPoint("sent", "ingest_project.platform.kafka.producer:TopicWriter.send_all")
CASES = [
    Case(RELEASE, BEGUN, quarantined, 0, 3, are_pending),
    Case(RELEASE, KillPoint("reopened", f"{FILES}.reopen"), quarantined, 3, 3, are_pending),
    Case(
        RELEASE,
        KillPoint("second one queued", f"{FILES}.announce_again", 2),
        by_another_profile,
        *(2, 3, are_queued_by_the_profile),
        # The version of the other profile is queued, and stays as it is.
        repeated=1,
    ),
    Case("reprocess-files", KillPoint("noted", f"{FILES}.request_again"), quarantined, 0, 3, are_in_one_backfill),
    Case(
        "reprocess-files", KillPoint("requested", f"{CONTROL}:launch_backfill"), quarantined, 3, 3, are_in_one_backfill
    ),
    Case("upload-corrected-file", KillPoint("queued", f"{FILES}.correct"), to_correct, 1, 1, is_corrected_once),
    Case(
        "replay-attachments",
        KillPoint("replayed", "ingest_project.attachments.queue:AttachmentQueue.replay"),
        *(dead_attachments, 2, 2, are_replayed_once),
    ),
    Case("rerun-polling-jobs", KillPoint("reopened", f"{QUEUE}.reopen"), failed_jobs, 1, 1, runs_again),
    Case("pause-capability", KillPoint("looked", f"{CONTROL}:running_sensors"), ticking, 0, 1, is_stopped),
    Case("pause-capability", KillPoint("stopped", f"{CONTROL}:stop_sensors"), ticking, 1, 1, is_stopped, 1),
    Case("resume-capability", KillPoint("started", f"{CONTROL}:start_sensors"), paused, 0, 1, is_running),
    Case(
        "skip-messages",
        KillPoint("stored", "ingest_project.platform.kafka.dead_letters:SkippedOffsetStore.add"),
        *(messages, 1, 1, is_skipped_once, 1),
    ),
    Case(
        REDRIVE,
        KillPoint("intended", "ingest_project.platform.kafka.publisher:MessageOutbox.record_intent"),
        *(letters, 0, 5, are_on_the_topic(1)),
    ),
    Case(REDRIVE, SENT, letters, 5, 5, are_on_the_topic(1)),
    Case(REDRIVE, SENT, letters_again, 5, 5, are_on_the_topic(3), 5),
]


@dataclass
class Console:
    """What one test has: the system, and a process that may be killed."""

    services: SystemResources
    instance: DagsterInstance
    folder: Path
    environ: dict[str, str]
    process: DeadlyProcess

    def interrupt(self, case: Case) -> dict[str, str]:
        """Let an action be killed; returns its parameters."""
        parameters = case.prepare(self.services, self.instance, self.folder)
        (self.folder / "action.json").write_text(json.dumps([case.action, parameters]))
        way = f"{Operator.__module__}:Operator.act"
        exit_code = self.process.drive(
            case.point, self.folder, serialize_value(self.instance.get_ref()), self.environ, way
        )
        assert exit_code == -signal.SIGKILL, "it did not reach the step where it should have died"
        record = action_record(self.services.engine, ACTION_ID)
        assert record is not None
        assert (record.outcome, record.finished_at) == ("started", None)
        return parameters

    @property
    def record(self) -> ActionRecord:
        """The record of the killed action."""
        (found,) = (one for one in action_records(self.services.engine) if one.action_id == ACTION_ID)
        return found


@pytest.fixture
def console(
    postgres_url: str,
    embedded_broker: FaultyBroker,
    dagster_instance: DagsterInstance,
    deadly_process: DeadlyProcess,
    tmp_path: Path,
) -> Iterator[Console]:
    folder = tmp_path / "in"
    folder.mkdir()
    own = environment(embedded_broker.bootstrap_servers, postgres_url, tmp_path)
    own = {name: value for name, value in own.items() if not name.startswith("KAFKA_TOPIC_")}
    of_dagster = {name: os.environ[name] for name in ("DAGSTER_HOME", "DAGSTER_POSTGRES_URL")}
    services = SystemResources(load_settings(own | of_dagster, tmp_path).settings)
    yield Console(services, dagster_instance, folder, own | of_dagster, deadly_process)
    close(services)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.action}: {case.point.step}, {case.prepare.__name__}")
def test_a_killed_action_is_found_with_what_it_had_done_and_performing_it_again_doubles_nothing(
    case: Case, console: Console
) -> None:
    parameters = console.interrupt(case)
    settle_interrupted(console.services, ACTIONS)
    record = console.record
    assert (record.outcome, record.who, record.reason) == ("interrupted", "ada@host", "mended")
    assert (record.done, record.selected) == (case.done, case.items)
    assert f"{case.done} of {case.items} items were done" in record.detail
    outcomes = [one.outcome for one in items_of_action(console.services.engine, ACTION_ID, 10)]
    assert sorted(outcomes, key=str) == ["done"] * case.done + ["not done"] * (case.items - case.done)

    again = ActionRequest(parameters=parameters, reason="again", who="ada@host")
    done = perform(console.services, ACTIONS[case.action], again)
    assert len(done.done) == (case.items - case.done if case.repeated is None else case.repeated)
    assert case.after(console.services, console.instance)
    assert console.record == record


def test_the_monitor_finds_a_killed_action_shows_it_and_raises_an_incident(console: Console) -> None:
    console.interrupt(CASES[1])
    monitor = Monitor(console.services.settings)
    try:
        snapshot = monitor.poll_now()
    finally:
        monitor.stop()
    assert console.record.outcome == "interrupted"
    assert snapshot.warehouse.value is not None
    (failure,) = (one for one in snapshot.warehouse.value.failures if one.kind == "action")
    assert (failure.key, "ada@host" in (failure.reason or "")) == (ACTION_ID, True)
    (incident,) = (one for one in assess(snapshot, History({})).findings if one.condition == "interrupted_action")
    assert incident.link.endswith(f"audit/{ACTION_ID}")
    with running(console.services.settings) as site:
        shown = requests.get(f"{site}/audit/{ACTION_ID}", headers={"Accept": "text/html"}, timeout=60).text
        assert all(text in shown for text in ("interrupted", "3 of 3 items were done", "Perform it again"))


def test_an_action_that_is_going_on_is_not_taken_for_interrupted(console: Console) -> None:
    seen: list[str] = []
    action = ACTIONS[RELEASE]
    quarantined(console.services, console.instance, console.folder)

    def look(services: SystemResources, request: ActionRequest, keys: object) -> object:
        other = SystemResources(services.settings)
        settle_interrupted(other, ACTIONS)
        other.engine.dispose()
        seen.append(console.record.outcome)
        return action.apply(services, request, keys)  # type: ignore[arg-type]

    observed = type(action)(**{**vars(action), "apply": look})
    perform(console.services, observed, ActionRequest(reason="r", who="ada@host", action_id=ACTION_ID))
    assert (seen, console.record.outcome) == (["started"], "done")
