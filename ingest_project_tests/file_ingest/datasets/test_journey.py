"""A declared dataset from a message to stored rows, metrics, quarantine and Dagster."""

from __future__ import annotations

from decimal import Decimal

import dagster as dg

from ingest_project_tests.file_ingest.datasets.system import DatasetSystem, weather_file


def test_a_file_of_a_declared_dataset_is_stored_in_its_own_table(weather: DatasetSystem) -> None:
    weather.send_files(weather_file(weather))
    weather.run_due()
    record = weather.file("a.csv")
    assert (record.state.value, record.dataset, record.reason) == ("ingested", "weather", None)
    rows = weather.rows(
        "SELECT station, temperature, rain, sunny, note, day::text, rescued_data, line_number FROM weather"
        " ORDER BY line_number"
    )
    assert rows == [
        ("AAA", 1.5, Decimal("0.20"), True, {"a": 1}, "2026-01-15", None, 2),
        ("AAA", 2.5, None, False, None, "2026-01-15", None, 3),
        ("BBB", None, Decimal("3.05"), None, None, None, None, 4),
    ]
    metrics = weather.rows('SELECT station, measure, "min", "max", "count" FROM weather_metrics ORDER BY 1, 2')
    assert metrics == [
        ("AAA", "rain", 0.2, 0.2, 1),
        ("AAA", "temperature", 1.5, 2.5, 2),
        ("BBB", "rain", 3.05, 3.05, 1),
    ]
    assert weather.instance.get_dynamic_partitions("weather_files") == [record.file_key]
    assert weather.instance.get_dynamic_partitions("files") == []
    for name in ("raw_files", "validated", "quarantined_files", "metrics"):
        assert weather.instance.get_materialized_partitions(dg.AssetKey(["weather", name])) == {record.file_key}
