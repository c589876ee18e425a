"""The sensor on `polling-queue`: every request is done once, urgent ones first."""

from __future__ import annotations

import json
from pathlib import Path

from ingest_project.platform.work_queue.queue import JobState
from ingest_project_tests.journeys.system import DISCOVERED, POLLING, System, readings


def test_an_invalid_polling_job_is_a_dead_letter_with_its_reason_and_others_continue(
    system: System, tmp_path: Path
) -> None:
    (system.folder / "way_out").symlink_to(tmp_path)

    def job(**source: object) -> bytes:
        return json.dumps({"job_id": "j", "source_config": {"source_type": "local", **source}}).encode()

    bad: list[tuple[bytes, str]] = [
        (b"not JSON", "Not JSON"),
        (b'{"job_id": 5, "source_config": {"source_type": "local"}}', "job_id"),
        (b'{"source_config": {"source_type": "local"}}', "job_id"),
        (b'{"job_id": "j"}', "source_config"),
        (b'{"job_id": "j", "source_config": {"path": "x"}}', "source_type"),
        (b'{"job_id": "j", "source_config": {"source_type": "local"}, "priority": "yesterday"}', "priority"),
        (job(source_type="teleport"), "Known are: dummy"),
        (job(path="../../etc"), "outside the folders"),
        (job(path=str(system.folder / "way_out")), "outside the folders"),
        (job(path="file:///etc"), "not a URL"),
        (job(path=str(system.folder), connection_string="x"), "credentials"),
        (job(path="x" * 5_000_000), "bytes"),
        (job(path=str(system.folder), file_patern="*.csv"), "unknown 'file_patern'"),
    ]
    system.send(system.settings.topics.polling_queue, *(raw for raw, _ in bad))
    system.send_job(system.folder)
    assert [len(system.requests(POLLING)) for _ in range(2)] == [1, 0]
    system.cursors.clear()
    system.tick(POLLING)
    found = system.on_topic(system.settings.topics.polling_queue_dlq)
    assert len(found) == len(bad)
    letters = {letter.value or b"": letter for letter in found}
    for raw, reason in bad:
        assert reason in (letters[raw].header("dlq.reason") or b"").decode()
    assert len(system.services.polling_jobs.list()) == 1


def test_urgent_jobs_run_first_and_a_job_sent_again_lists_its_source_again(system: System) -> None:
    for priority in ("low", "normal", "high", "low", "high"):
        system.send_job(system.folder, priority=priority, job_id=f"a-{priority}-job")
    system.requests(POLLING, save=False)
    (request,) = system.requests(POLLING)
    batch = system.services.polling_jobs.batch(request.tags["ingest/batch_id"])
    assert len(set(batch)) == 5
    run = system.execute("polling_batch", request)
    assert run.success
    records = system.services.polling_jobs.list()
    due = [record.job.priority for record in sorted(records, key=lambda record: record.started_at or record.created_at)]
    assert sorted(due) == ["high", "high", "low", "low", "normal"]
    assert {record.state for record in records} == {JobState.DONE}
    assert system.instance.get_materialized_partitions(DISCOVERED) == {record.job_key for record in records}


def test_a_burst_of_jobs_leaves_the_urgent_ones_in_front(system: System) -> None:
    for _ in range(30):
        system.send_job(system.folder, priority="low")
    for _ in range(10):
        system.send_job(system.folder, priority="normal")
    for _ in range(15):
        system.send_job(system.folder, priority="high")
    requests = system.requests(POLLING)
    queue = system.services.polling_jobs
    priorities = []
    for request in requests:
        records = [queue.get(key) for key in queue.batch(request.tags["ingest/batch_id"])]
        priorities.append(sorted(record.job.priority for record in records if record))
    assert priorities == [["high"] * 15 + ["normal"] * 5, ["low"] * 15 + ["normal"] * 5, ["low"] * 15]


def test_a_polling_job_read_twice_lists_its_source_once(system: System) -> None:
    system.write("a.csv", readings())
    system.send_job(system.folder)
    assert len(system.requests(POLLING, save=False)) == 1
    system.drive()
    (record,) = system.services.polling_jobs.list()
    assert (record.state, record.files_published, record.attempts) == (JobState.DONE, 1, 1)
    assert len(system.on_topic(system.settings.topics.file_event_queue)) == 1


def test_a_job_whose_folder_is_missing_fails_with_its_reason_and_others_continue(system: System) -> None:
    system.write("here/a.csv", readings())
    system.send_job(system.folder / "gone")
    system.send_job(system.folder / "here")
    system.drive()
    states = {record.job.path.rpartition("/")[2]: record for record in system.services.polling_jobs.list()}
    assert (states["gone"].state, states["here"].state) == (JobState.FAILED, JobState.DONE)
    assert "does not exist" in (states["gone"].reason or "")
    assert system.states() == {"a.csv": "ingested"}


def test_a_job_publishes_only_matching_files_and_counts_the_others(system: System) -> None:
    for name in ("a.csv", "b.CSV", "notes.txt", ".hidden.csv", "~$open.xlsx", "half.csv.part", "sub/deep.csv"):
        system.write(name, readings(1, name))
    system.send_job(system.folder, "*")
    system.drive()
    assert system.states() == {"a.csv": "ingested", "b.CSV": "ingested"}
    (record,) = system.services.polling_jobs.list()
    shown = system.metadata(DISCOVERED, record.job_key)
    assert (shown["files_found"], shown["files_published"]) == (2, 2)
    assert shown["files_skipped"] == record.files_skipped == sum((record.skipped or {}).values())
    listed = {str(row["path"]).rpartition("/")[2]: row["outcome"] for row in shown["files"]}
    assert listed["a.csv"] == "announced"
    assert "notes.txt" in listed
