"""Each check, run alone, reads the current state of the stores."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project_tests.journeys.check_results import behind_its_back, numbers
from ingest_project_tests.journeys.system import CONTRACT, VALIDATED, System, changed, readings


def metadata_reported(system: System, key: str) -> dict[str, Any]:
    """The metadata of the result that the run reported for a file."""
    events = system.instance.event_log_storage.get_asset_check_execution_history(CONTRACT, limit=100)
    (first, *_) = [
        record.event.dagster_event.asset_check_evaluation_data
        for record in reversed(events)
        if record.event and record.event.dagster_event and record.partition == key
    ]
    return numbers(first)


@pytest.fixture
def files(system: System) -> dict[str, FileRecord]:
    """A good file, one with bad rows and a refused one, all finished."""
    system.send_files(
        system.write("good.csv", readings(4)),
        system.write("some.csv", readings(6, "device-2", bad=2)),
        system.write("refused.csv", "timestamp,value\n1,2\n"),
    )
    system.drive()
    return system.files()


def test_checking_the_contract_again_gives_the_result_of_the_run(system: System, files: dict[str, FileRecord]) -> None:
    reported = system.checks()
    rules = {name: file.rule_counts for name, file in files.items()}
    for name, file in files.items():
        again = system.check("contract_holds", file.file_key)
        assert again.partition == file.file_key
        assert ("SUCCEEDED" if again.passed else "FAILED") == reported[file.file_key], name
        if not again.passed:
            assert numbers(again)["rules"] == rules[name]
            assert numbers(again) == metadata_reported(system, file.file_key)
    assert system.checks() == reported
    partly, whole = (metadata_reported(system, files[name].file_key) for name in ("some.csv", "refused.csv"))
    assert list(partly)[:3] == ["file", "reason", "rejected_share"]
    assert partly["reason"] == "2 of 6 rows are in quarantine."
    assert partly["rejected_share"] == 0.3333
    assert (partly["ranges"], partly["columns"], partly["whole_file"]) == (2, 0, 0)
    assert list(whole)[:2] == ["file", "reason"]
    assert whole["reason"] == files["refused.csv"].reason
    assert "rejected_share" not in whole, "no row of it was read"
    assert whole["columns"] == 1
    severities = {name: system.check("contract_holds", files[name].file_key).severity for name in files}
    assert severities["some.csv"] is dg.AssetCheckSeverity.WARN
    assert severities["refused.csv"] is dg.AssetCheckSeverity.ERROR


def test_over_several_files_at_once_each_gets_its_own_result(system: System, files: dict[str, FileRecord]) -> None:
    reported = system.checks()
    order = list(system.instance.get_dynamic_partitions("files"))
    assert not system.check("contract_holds", order[0], order[-1]).passed
    shown = {key: status for key, status in system.checks().items() if key in order}
    assert shown == reported
    good = files["good.csv"].file_key
    info = system.instance.event_log_storage.get_asset_check_partition_info([CONTRACT])
    (of_good,) = [entry for entry in info if entry.partition_key == good]
    newest = system.instance.fetch_materializations(dg.AssetRecordsFilter(VALIDATED, asset_partitions=[good]), limit=1)
    assert of_good.latest_target_materialization_storage_id == newest.records[0].storage_id


def test_rows_deleted_behind_its_back_are_noticed(system: System, files: dict[str, FileRecord]) -> None:
    good, some = files["good.csv"].file_key, files["some.csv"].file_key
    assert system.check("rows_add_up").passed
    behind_its_back(system, "DELETE FROM raw_sensor_data WHERE file_key = %s AND line_number = 2", good)
    missing = system.check("contract_holds", good)
    assert not missing.passed
    assert numbers(missing)["rules"] == {"accepted_rows_not_stored": 1}
    assert numbers(system.check("contract_holds", some))["rules"] == {"value_out_of_range": 2}
    added = system.check("rows_add_up")
    assert not added.passed
    assert numbers(added)["rows_accepted"] - 1 == numbers(added)["rows_stored"] == 7

    assert all(run.success for run in system.materialize([good]))
    assert system.check("contract_holds", good).passed
    assert system.check("rows_add_up").passed


def test_a_stored_value_that_was_changed_behind_its_back_breaks_the_contract(
    system: System, files: dict[str, FileRecord]
) -> None:
    good = files["good.csv"].file_key
    behind_its_back(system, "UPDATE raw_sensor_data SET value = 5000 WHERE file_key = %s AND line_number = 2", good)
    changed_value = system.check("contract_holds", good)
    assert not changed_value.passed
    assert numbers(changed_value)["rules"] == {"value_out_of_range": 1}
    assert numbers(changed_value)["ranges"] == 1


@pytest.mark.usefixtures("files")
def test_too_great_a_share_in_quarantine_is_a_warning(system: System) -> None:
    share = system.check("quarantine_share_acceptable")
    assert not share.passed
    assert share.severity is dg.AssetCheckSeverity.WARN
    assert numbers(share)["quarantined"] == 1
    system.settings = changed(system.settings, "file_ingest", max_quarantine_share=0.4)
    system.restart()
    assert system.check("quarantine_share_acceptable").passed


def test_a_file_that_waits_too_long_is_named(system: System) -> None:
    assert system.check("nothing_waits_too_long").passed
    system.send_files(system.write("slow.csv", readings()))
    system.tick()
    assert system.check("nothing_waits_too_long").passed
    behind_its_back(system, "UPDATE files SET created_at = created_at - interval '1 day'")
    waiting = system.check("nothing_waits_too_long")
    assert not waiting.passed
    assert numbers(waiting)["file"] == system.file("slow.csv").file_key
    assert numbers(waiting)["waiting_seconds"] > 86_000
