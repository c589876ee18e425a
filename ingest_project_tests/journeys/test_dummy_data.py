"""The example files of the project, from a polling job to their stored and shown results."""

from __future__ import annotations

from pathlib import Path

from ingest_project_tests.file_ingest.stored_metrics import metrics_of
from ingest_project_tests.journeys.system import METRICS, QUARANTINED, RAW, VALIDATED, System, changed

DUMMY_DATA = Path(__file__).parents[2] / "dummy_data"
TWINS = {"sample_data_1.csv", "the_same_as_sample_data_1.csv"}
# Rows accepted and refused; None where the whole file is refused.
EXPECTED: dict[str, tuple[int, int] | None] = {
    "sample_data_1.csv": (120, 0),
    "sample_data_2.csv": (240, 0),
    "sample_data_3.csv": (96, 0),
    "some_bad_rows.csv": (42, 8),
    "lab_readings.xlsx": (80, 0),
    "legacy_logger.xls": (30, 0),
    "missing_column.csv": None,
    "mostly_bad_rows.csv": None,
    "not_a_workbook.xlsx": None,
}

# Eight rows; the last one breaks two.
SOME_BAD_RULES = (
    "value_missing",
    "timestamp_unparseable",
    "device_id_missing",
    "value_out_of_range",
    "timestamp_in_future",
    "too_many_cells",
    "too_few_cells",
    "timestamp_missing",
    "value_not_finite",
)


def test_the_example_files_end_as_their_names_say(system: System) -> None:
    system.settings = changed(system.settings, "polling", dummy_root=DUMMY_DATA)
    system.restart()
    dummy = {"source_type": "dummy", "path": "./dummy_data"}
    for _ in range(2):
        system.send_job("", "*", source_config=dummy, trace_id="trace-1", metadata={"site": "plant"})
    runs = system.drive()
    assert all(run.success for run in runs)

    files = system.files()
    assert set(files) == {path.name for path in DUMMY_DATA.iterdir() if path.is_file()} - {"README.txt"}
    assert {files[name].state.value for name in TWINS} == {"ingested", "duplicate"}
    original, twin = sorted((files[name] for name in TWINS), key=lambda file: file.state.value == "duplicate")
    assert twin.duplicate_of == original.file_key
    ingested = {name for name, counts in EXPECTED.items() if counts} - TWINS | {original.event.file_name}
    refused = {name for name, counts in EXPECTED.items() if counts is None}
    by_state = {state: {n for n, f in files.items() if f.state.value == state} for state in ("ingested", "quarantined")}
    assert by_state == {"ingested": ingested, "quarantined": refused}

    keys = {name: file.file_key for name, file in files.items()}
    stored = system.services.warehouse.file_counts(list(keys.values()))
    for name in ingested:
        expected = EXPECTED.get(name) or EXPECTED["sample_data_1.csv"]
        file = files[name]
        assert (file.rows_accepted, file.rows_quarantined) == expected, name
        assert stored[keys[name]][:2] == expected, name
        assert stored[keys[name]].metrics == len(metrics_of(system.services.warehouse, keys[name])) > 0
        assert file.event.trace_id == "trace-1"
        assert file.event.metadata == {"site": "plant"}
        shown = system.metadata(VALIDATED, keys[name])
        assert (shown["dagster/row_count"], shown["source"]) == (expected[0], file.location)
        assert 0 < shown["seconds_from_event"] < 600
        measured = metrics_of(system.services.warehouse, keys[name])
        summed = system.metadata(METRICS, keys[name])
        assert summed.pop("metrics")[0]["mean"] == measured[0].mean
        assert summed == {
            "dagster/row_count": len(measured),
            "devices": len({metric.device_id for metric in measured}),
            "sensor_types": len({metric.sensor_type for metric in measured}),
        }
        assert system.metadata(RAW, keys[name])["kafka_position"] == str(file.kafka_position)
    for name in refused | {twin.event.file_name}:
        assert stored[keys[name]] == (0, 0, 0), name
    for name in refused:
        assert system.quarantined_bytes(keys[name]) == (DUMMY_DATA / name).read_bytes()
        note = system.services.quarantine.get(keys[name])
        assert note is not None
        assert note.reason["reason"] == files[name].reason
        shown = system.metadata(QUARANTINED, keys[name])
        assert (shown["whole_file"], shown["location"]) == (True, note.location)
    assert "device_id" in (files["missing_column.csv"].reason or "")
    sample = system.metadata(QUARANTINED, keys["some_bad_rows.csv"])["sample"]
    assert len(sample) == 5
    assert len(system.services.warehouse.quarantined_rows_of(keys["some_bad_rows.csv"])) == 8
    assert files["some_bad_rows.csv"].rule_counts == dict.fromkeys(SOME_BAD_RULES, 1)

    _shown_in_dagster(system, ingested, refused, twin.event.file_name)
    assert len(system.on_topic(system.settings.topics.file_event_queue)) == len(files), "each file announced once"


def _shown_in_dagster(system: System, ingested: set[str], refused: set[str], twin: str) -> None:
    keys = {name: file.file_key for name, file in system.files().items()}

    def partitions(names: set[str]) -> set[str]:
        return {keys[name] for name in names}

    instance = system.instance
    assert set(instance.get_dynamic_partitions("files")) == set(keys.values())
    for asset in (RAW, VALIDATED, METRICS, QUARANTINED):
        assert instance.get_materialized_partitions(asset) == set(keys.values()), asset
    rows = {name: system.metadata(VALIDATED, keys[name]).get("dagster/row_count") for name in keys}
    assert {name for name, count in rows.items() if count} == ingested
    # The page of the asset shows the last count: a duplicate's would be 0.
    assert [name for name, count in rows.items() if count is None] == [twin]
    first = system.metadata(VALIDATED, keys["sample_data_1.csv"])["first_rows"]
    assert [sorted(row) for row in first] == [
        ["device_id", "line_number", "sensor_type", "timestamp", "unit", "value"]
    ] * 3
    shown = system.metadata(METRICS, keys["sample_data_1.csv"])["metrics"]
    stored = metrics_of(system.services.warehouse, keys["sample_data_1.csv"])
    assert [(row["device_id"], row["sensor_type"], row["mean"], row["count"]) for row in shown] == [
        (one.device_id, one.sensor_type, one.mean, one.count) for one in stored[: len(shown)]
    ]
    for name in refused | {twin}:
        assert system.metadata(VALIDATED, keys[name])["reason"] == system.files()[name].reason
    assert {key for key, status in system.accepted().items() if status == "SUCCEEDED"} == partitions(ingested)
    assert {key for key, status in system.accepted().items() if status == "FAILED"} == partitions(refused | {twin})
    checks = system.checks()
    assert {key for key, status in checks.items() if status == "SUCCEEDED"} == partitions(
        ingested - {"some_bad_rows.csv"}
    )
    assert {key for key, status in checks.items() if status == "FAILED"} == partitions(refused | {"some_bad_rows.csv"})
    assert keys[twin] not in checks
    assert system.check("rows_add_up").passed
