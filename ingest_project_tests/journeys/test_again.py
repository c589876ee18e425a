"""Files ingested a second time: delivered again, changed, gone, released, repeated by a person."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingest_project.file_ingest.actions import UPLOAD
from ingest_project.file_ingest.tables import FileState
from ingest_project.platform.actions import ActionRequest, perform
from ingest_project_tests.file_ingest.stored_metrics import device_metrics
from ingest_project_tests.journeys.system import METRICS, QUARANTINED, RAW, VALIDATED, System, changed, readings

SEMICOLONS = (
    "name: semicolons\ndelimiter: ';'\ncolumns: {when: timestamp, who: device_id, what: sensor_type, value: value}\n"
)


def test_a_job_delivered_again_announces_only_what_is_new(system: System) -> None:
    system.write("a.csv", readings(3))
    system.send_job(system.folder, job_id="again")
    system.drive()
    system.write("b.csv", readings(4))
    for _ in range(2):
        system.send_job(system.folder, job_id="again")
    system.drive()
    published = sorted(record.files_published or 0 for record in system.services.polling_jobs.list())
    assert published == [0, 1, 1]
    assert len(system.on_topic(system.settings.topics.file_event_queue)) == 2
    assert system.services.warehouse.totals().rows == 7


def test_the_same_content_under_another_name_is_noticed_and_not_counted_twice(system: System) -> None:
    first = system.write("first.csv", readings(5))
    system.send_files(first)
    system.drive()
    system.send_files(*(system.write(name, readings(5)) for name in ("second.csv", "third.csv")))
    system.drive()
    files = system.files()
    for name in ("second.csv", "third.csv"):
        assert (files[name].state, files[name].duplicate_of) == (FileState.DUPLICATE, files["first.csv"].file_key)
        assert system.metadata(RAW, files[name].file_key)["duplicate_of"] == files["first.csv"].file_key
    assert system.services.warehouse.totals().rows == 5
    assert len(device_metrics(system.services.warehouse)) == 1
    assert system.check("rows_add_up").passed

    system.materialize([files["second.csv"].file_key])
    assert system.file("second.csv").state is FileState.DUPLICATE
    system.materialize([files["first.csv"].file_key])
    assert (system.file("first.csv").state, system.services.warehouse.totals().rows) == (FileState.INGESTED, 5)


def test_a_changed_file_is_a_file_of_its_own_and_the_announced_version_is_not_taken_for_it(system: System) -> None:
    path = system.write("a.csv", readings(3))
    system.send_files(path)
    (request,) = system.requests()
    path.write_text(readings(6))
    assert system.execute("file_batch", request).success, "nothing failed, and nothing is tried again"
    superseded = system.file("a.csv")
    assert (superseded.state, superseded.error_class) == (FileState.SUPERSEDED, "VersionSupersededError")
    assert "changed before it was read" in (superseded.reason or "")
    assert system.requests() == []
    system.send_files(path)
    system.drive()
    by_state = {record.state: record for record in system.services.files.list()}
    assert set(by_state) == {FileState.SUPERSEDED, FileState.INGESTED}
    assert by_state[FileState.INGESTED].rows_accepted == 6
    assert by_state[FileState.SUPERSEDED].attempts == 1
    assert system.checks()[superseded.file_key] == "FAILED"


def test_a_file_that_has_vanished_is_failed_with_its_reason_and_the_rest_of_its_batch_is_stored(system: System) -> None:
    gone, here = system.write("gone.csv", readings(3)), system.write("here.csv", readings(4))
    system.send_files(gone, here)
    gone.unlink()
    system.drive()
    files = system.files()
    assert (files["gone.csv"].state, files["gone.csv"].error_class) == (FileState.FAILED, "SourceNotFoundError")
    assert (files["here.csv"].state, files["here.csv"].rows_accepted) == (FileState.INGESTED, 4)
    assert system.instance.get_materialized_partitions(RAW) == {files["here.csv"].file_key}


def test_a_refused_file_is_ingested_once_its_profile_is_fixed_and_leaves_the_quarantine(system: System) -> None:
    rows = "when;who;what;value\n2026-01-15T10:00:00Z;d1;temperature;21\n"
    path = system.write("odd.csv", rows)
    system.send_files(path)
    system.drive()
    key = system.file("odd.csv").file_key
    assert system.states() == {"odd.csv": "quarantined"}
    assert system.services.quarantine.get(key) is not None

    profile = system.folder.parent / "profiles.yaml"
    profile.write_text(SEMICOLONS)
    system.settings = changed(system.settings, "file_ingest", profiles=[profile], default_profile="semicolons")
    system.restart()
    system.services.files.reopen([key], datetime.now(UTC))
    system.drive()
    assert system.file("odd.csv").state is FileState.QUARANTINED, "its profile is the one it arrived with"

    profile.write_text(SEMICOLONS.replace("semicolons", "canonical"))
    system.settings = changed(system.settings, "file_ingest", default_profile="canonical")
    system.restart()
    system.services.files.reopen([key], datetime.now(UTC))
    system.drive()
    assert system.states() == {"odd.csv": "ingested"}
    assert system.services.warehouse.totals()[:2] == (1, 0)
    assert system.services.quarantine.get(key) is None
    assert system.checks() == {key: "SUCCEEDED"}


def test_a_person_repeats_partitions_and_the_state_is_the_same(system: System) -> None:
    paths = [
        system.write("good.csv", readings(4)),
        system.write("some.csv", readings(6, "device-2", bad=2)),
        system.write("bad.csv", "timestamp,value\n1,2\n"),
    ]
    system.send_files(*paths)
    system.drive()

    def state() -> object:
        keys = [file.file_key for file in system.files().values()]
        shown = [system.instance.get_materialized_partitions(asset) for asset in (RAW, VALIDATED, METRICS, QUARANTINED)]
        stored = system.services.warehouse.file_counts(sorted(keys))
        return system.states(), stored, shown, system.checks(), device_metrics(system.services.warehouse)

    before = state()
    keys = [system.file(path.name).file_key for path in paths]
    assert all(run.success for run in system.materialize(keys))
    assert state() == before
    assert all(run.success for run in system.materialize(keys[:2], METRICS))
    assert state() == before

    runs = system.times_materialized(VALIDATED)
    assert all(run.success for run in system.materialize(keys, RAW))
    assert state() == before
    assert system.times_materialized(VALIDATED) == runs, "only the bytes were asked for"


@pytest.mark.parametrize("what_happened", ["moved away", "changed"])
def test_a_landed_file_is_ingested_again_even_without_its_source(system: System, what_happened: str) -> None:
    path = system.write("a.csv", readings(4))
    system.send_files(path)
    system.drive()
    file = system.file("a.csv")
    assert file.landed_bytes == path.stat().st_size
    assert "source_gone" not in system.metadata(RAW, file.file_key)
    path.unlink()
    if what_happened == "changed":
        system.write("a.csv", readings(9))
    assert all(run.success for run in system.materialize([file.file_key]))
    again = system.file("a.csv")
    assert (again.state, again.rows_accepted, again.sha256) == (FileState.INGESTED, 4, file.sha256)
    assert system.metadata(RAW, file.file_key)["source_gone"] is True
    assert system.services.warehouse.totals().rows == 4


@pytest.mark.long
def test_a_released_file_is_ingested_as_its_source_is_now(system: System) -> None:
    path = system.write("a.csv", "timestamp,value\n1,2\n")
    system.send_files(path)
    system.drive()
    refused = system.file("a.csv")
    assert refused.state is FileState.QUARANTINED
    path.write_text(readings(5))
    assert system.services.files.reopen([refused.file_key], datetime.now(UTC)) == (refused.file_key,)
    system.drive()
    mended = system.file("a.csv")
    assert (mended.file_key, mended.state, mended.rows_accepted) == (refused.file_key, FileState.INGESTED, 5)
    assert (mended.landed_bytes, mended.reason) == (path.stat().st_size, None)
    assert mended.sha256 not in {None, refused.sha256}
    assert system.services.quarantine.get(refused.file_key) is None
    assert system.checks() == {refused.file_key: "SUCCEEDED"}


def test_a_released_file_whose_source_is_gone_is_read_from_the_landed_bytes(system: System) -> None:
    stored, refused = system.write("a.csv", readings(3)), system.write("b.csv", "timestamp,value\n1,2\n")
    system.send_files(stored, refused)
    system.drive()
    before = [system.file(path.name) for path in (stored, refused)]
    for path in (stored, refused):
        path.unlink()
    assert system.services.files.reopen([one.file_key for one in before], datetime.now(UTC))
    system.drive()
    after = [system.file(path.name) for path in (stored, refused)]
    assert [(one.state, one.sha256, one.landed_bytes) for one in after] == [
        (one.state, one.sha256, one.landed_bytes) for one in before
    ]
    assert [one.state for one in after] == [FileState.INGESTED, FileState.QUARANTINED]
    assert "missing_column:" in str(after[1].reason), "for what it holds, not for what is gone"


def landed_at(system: System, name: str) -> Path:
    """Where the bytes of a file are in the landing store."""
    landed = system.services.landing.find(system.file(name).sha256 or "")
    assert landed is not None
    return Path(landed.path)


def test_a_missing_raw_file_does_not_stop_the_other_selected_ones(system: System) -> None:
    paths = [system.write(f"{number}.csv", readings(2, f"d{number}")) for number in range(3)]
    system.send_files(*paths)
    system.drive()
    order = list(system.instance.get_dynamic_partitions("files"))
    before = system.times_materialized(RAW)
    by_key = {system.file(path.name).file_key: path for path in paths}
    by_key[order[0]].unlink()
    landed_at(system, by_key[order[0]].name).unlink()
    run = system.materialize_range(order[0], order[-1], RAW)
    assert not run.success, "a person sees that one of them is missing"
    assert system.times_materialized(RAW) == before + 2
    assert set(system.states().values()) == {"ingested"}, "what is stored of it stays"


def test_a_corrected_upload_replaces_the_quarantined_file_and_survives_the_sources_own_version(system: System) -> None:
    path = system.write("a.csv", "timestamp,device_id\n2026-01-15T10:30:00Z,d\n")
    system.send_files(path)
    system.drive()
    bad = system.file("a.csv")
    assert bad.state is FileState.QUARANTINED
    fixed = system.folder.parent / "fixed.csv"
    fixed.write_text(readings(4))
    request = ActionRequest(
        parameters={"key": bad.file_key, "file": str(fixed)}, reason="a column was missing", who="ada@host"
    )
    done = perform(system.services, UPLOAD, request)
    key = done.created[bad.file_key]
    # The bytes are in the landing store: neither the upload nor the source is needed any more.
    fixed.unlink()
    system.drive()
    old, new = system.services.files.get_many([bad.file_key, key])
    assert (old.state, old.replaced_by) == (FileState.REPLACED, key)
    assert (new.state, new.rows_accepted, new.corrects) == (FileState.INGESTED, 4, bad.file_key)
    assert system.services.warehouse.totals().rows == 4
    # What the source still has is announced again: it is the old version, and known.
    system.send_files(path)
    system.drive()
    assert system.services.warehouse.totals().rows == 4
    system.services.files.reopen([key], datetime.now(UTC))
    system.drive()
    assert system.services.files.get_many([key])[0].rows_accepted == 4
