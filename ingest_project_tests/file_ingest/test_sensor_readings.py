"""Every row is accepted, or rejected once with all of its reasons."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.core.errors import SettingsError
from ingest_project.file_ingest.sensor_readings import SensorType, SensorTypes, ValidationRules, row_rules, validate
from ingest_project.readers import READINGS
from ingest_project.readers.casting import cast
from ingest_project.readers.profile_parts import TimestampLayout
from ingest_project.readers.profiles import load_profiles
from ingest_project_tests.fuzz import examples

NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
TYPES = {"temperature": SensorType(units=("C", "°C"), min=-50, max=60), "level": SensorType(min=0)}
GOOD: dict[str, str | None] = {
    "timestamp": "2024-05-01T00:00:00Z",
    "device_id": "pump-1",
    "sensor_type": "temperature",
    "value": "21.5",
    "unit": "C",
}
CANONICAL = load_profiles()["canonical"]


def rules(unknown: Literal["accept", "quarantine"] = "accept") -> ValidationRules:
    return ValidationRules(SensorTypes(TYPES, unknown), NOW, timedelta(minutes=5))


def table(*rows: dict[str, str | None]) -> pl.DataFrame:
    filled: list[dict[str, object]] = [
        {"file_index": 3, "line_number": line, **GOOD, **row} for line, row in enumerate(rows, start=2)
    ]
    schema = {"file_index": pl.Int32, "line_number": pl.Int64} | dict.fromkeys(READINGS.columns, pl.String)
    return cast(pl.DataFrame(filled, schema=schema), CANONICAL)


def reasons(row: dict[str, str | None], unknown: Literal["accept", "quarantine"] = "accept") -> list[str]:
    rejected = validate(table(row), rules(unknown)).rejected
    return rejected["reasons"].to_list()[0] if rejected.height else []


def test_good_rows_are_accepted_with_their_types_and_the_callers_columns() -> None:
    outcome = validate(table({}, {"unit": None}), rules())
    assert outcome.accepted.columns == ["file_index", "line_number", *READINGS.columns]
    assert outcome.accepted.row(0) == (3, 2, datetime(2024, 5, 1, tzinfo=UTC), "pump-1", "temperature", 21.5, "C")
    assert outcome.accepted.height == 2
    assert outcome.rejected.columns == ["file_index", "line_number", "reasons"]
    assert outcome.rejected.schema["reasons"] == pl.List(pl.String)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"timestamp": None}, ["timestamp_missing"]),
        ({"timestamp": "soon"}, ["timestamp_unparseable"]),
        ({"timestamp": "2024-06-01T12:05:01Z"}, ["timestamp_in_future"]),
        ({"timestamp": "2024-06-01T12:05:00Z"}, []),
        ({"device_id": None}, ["device_id_missing"]),
        ({"device_id": "d" * 201}, ["device_id_invalid"]),
        ({"sensor_type": None}, ["sensor_type_missing"]),
        ({"sensor_type": "t" * 201}, ["sensor_type_invalid"]),
        ({"sensor_type": "gravity"}, []),
        ({"value": None}, ["value_missing"]),
        ({"value": "=1+1"}, ["value_not_a_number"]),
        ({"value": "1,5"}, ["value_not_a_number"]),
        ({"value": "nan"}, ["value_not_finite"]),
        ({"value": "-inf"}, ["value_not_finite"]),
        ({"value": "1e999"}, ["value_not_finite"]),
        ({"value": "60.01"}, ["value_out_of_range"]),
        ({"value": "60"}, []),
        ({"value": "-50"}, []),
        ({"sensor_type": "level", "value": "1e300"}, []),
        ({"sensor_type": "level", "unit": "furlong"}, []),
        ({"unit": "F"}, ["unit_unknown"]),
        ({"unit": "C" * 201}, ["unit_invalid", "unit_unknown"]),
        ({"unit": "°C"}, []),
        ({"sensor_type": "gravity", "unit": "C"}, []),
    ],
)
def test_each_rule_names_what_is_wrong(row: dict[str, str | None], expected: list[str]) -> None:
    assert reasons(row) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2023-10-29 02:30:00", "timestamp_ambiguous_time"),
        ("2024-03-31 02:30:00", "timestamp_skipped_time"),
        ("2024-02-31 02:30:00", "timestamp_unparseable"),
    ],
)
def test_a_time_that_its_zone_has_twice_or_never_is_told_from_nonsense(text: str, reason: str) -> None:
    zone = TimestampLayout(zone="Europe/Berlin")
    rows = pl.DataFrame([{"line_number": 2, **GOOD, "timestamp": each} for each in (text, "2024-05-01 12:00:00")])
    outcome = validate(cast(rows, CANONICAL.model_copy(update={"timestamps": zone})), rules())
    assert outcome.rejected["reasons"].to_list() == [[reason]]
    assert outcome.accepted.columns == ["line_number", *READINGS.columns]


def test_unknown_types_are_rejected_when_the_setting_says_so() -> None:
    assert reasons({"sensor_type": "gravity"}, "quarantine") == ["sensor_type_unknown"]
    assert reasons({"sensor_type": None}, "quarantine") == ["sensor_type_missing"]


def test_a_row_that_breaks_many_rules_is_rejected_once_with_all_reasons_sorted() -> None:
    row = {"timestamp": "x", "device_id": None, "sensor_type": None, "value": "y", "unit": None}
    outcome = validate(table(row, {}), rules())
    assert outcome.rejected.rows() == [
        (3, 2, ["device_id_missing", "sensor_type_missing", "timestamp_unparseable", "value_not_a_number"])
    ]
    assert outcome.accepted["line_number"].to_list() == [3]


def test_an_empty_batch_is_allowed() -> None:
    outcome = validate(table(), rules())
    assert outcome.accepted.height == outcome.rejected.height == 0


def test_an_empty_list_of_known_types_is_allowed() -> None:
    outcome = validate(table({}), ValidationRules(SensorTypes({}), NOW))
    assert outcome.accepted.height == 1


Text = st.sampled_from(
    [None, "x", "", "C", "F", "21.5", "1e400", "temperature", "level", "2024-05-01T00:00:00Z", "z" * 300]
)


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(READINGS.columns, Text)), max_size=20))
@settings(max_examples=examples(60), deadline=None)
def test_every_row_has_exactly_one_outcome_and_every_reason_is_a_rule(rows: list[dict[str, str | None]]) -> None:
    outcome = validate(table(*rows), rules("quarantine"))
    lines = [*outcome.accepted["line_number"], *outcome.rejected["line_number"]]
    assert sorted(lines) == list(range(2, len(rows) + 2))
    for found in outcome.rejected["reasons"].to_list():
        assert found
        assert found == sorted(set(found))
        assert set(found) <= set(row_rules(rules()))


def test_the_shipped_sensor_types_load() -> None:
    assert "temperature" in SensorTypes.load().types


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temperature: {unit: C}", "temperature.unit is unknown, did you mean units"),
        ("temperature: {min: 5, max: 1}", "min is greater than max"),
        ("temperature: {min: cold}", "temperature.min"),
        ("- temperature", "does not contain sensor types"),
        ("a: [1", "is not YAML"),
    ],
)
def test_a_mistake_in_the_sensor_types_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "types.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        SensorTypes.load(path)
    assert said in str(error.value)
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
        SensorTypes.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "name", ["temperature\u00a0", "\ufefftemperature", "Temperature", "TEMPERATURE", " temperature\n"]
)
def test_a_sensor_type_meets_its_limits_however_it_is_written_and_is_stored_as_it_is_listed(name: str) -> None:
    assert reasons({"sensor_type": name, "value": "99"}) == ["value_out_of_range"]
    accepted = validate(table({"sensor_type": name}, {}), rules("quarantine")).accepted
    assert accepted["sensor_type"].to_list() == ["temperature", "temperature"]


def test_a_device_is_one_whatever_cannot_be_seen_about_its_name() -> None:
    names = ["pump-1", "pump-1\u00a0", "\u200bpump-1", "\ufeffpump-1\ufeff", "Gr\u00f6\u00dfe", "Gro\u0308\u00dfe"]
    rows: list[dict[str, str | None]] = [{"device_id": name} for name in names]
    accepted = validate(table(*rows), rules()).accepted
    assert accepted["device_id"].unique().sort().to_list() == ["Gr\u00f6\u00dfe", "pump-1"]
    assert reasons({"device_id": "\u200b\u00a0"}) == ["device_id_missing"]


@pytest.mark.parametrize(
    "name", ['"pump-1', "pump\u00a01", "pump\u200b1", "pump\x00", "pump\ufffd", "pump\u202e1", "a\nb"]
)
def test_a_name_that_stays_suspicious_is_refused(name: str) -> None:
    assert reasons({"device_id": name}) == ["device_id_invalid"]
    assert reasons({"sensor_type": name}) == ["sensor_type_invalid"]
    assert reasons({"unit": name}) == ["unit_invalid", "unit_unknown"]


def test_a_time_before_the_earliest_plausible_one_is_refused() -> None:
    assert reasons({"timestamp": "1969-12-31T23:59:59.999999Z"}) == ["timestamp_too_early"]
    assert reasons({"timestamp": "1970-01-01T00:00:00Z"}) == []
    later = ValidationRules(SensorTypes(TYPES), NOW, earliest=datetime(2020, 1, 1, tzinfo=UTC))
    assert validate(table({"timestamp": "2019-12-31T23:59:59Z"}), later).rejected["reasons"].to_list() == [
        ["timestamp_too_early"]
    ]


def test_sensor_types_that_differ_in_case_alone_are_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "types.yaml"
    path.write_text("level: {min: 0}\nLevel: {min: 1}\n")
    with pytest.raises(SettingsError, match="level and Level are the same sensor type"):
        SensorTypes.load(path)
