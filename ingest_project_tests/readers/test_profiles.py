"""Reader profiles: shipped ones, those of users, and the errors for wrong ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ingest_project.core.errors import FileRejectedError, SettingsError
from ingest_project.core.yaml_models import AsWritten
from ingest_project.readers.profile_parts import CellRule, Footer, SkippedRows
from ingest_project.readers.profiles import ReaderProfile, load_profiles, read_profile

OWN = """
name: greenhouse
delimiter: ";"
columns: {Zeit: timestamp, 7: device_id}
quantities:
  T1: {sensor_type: temperature, unit: °C}
timestamps: {formats: ["%d.%m.%Y %H:%M"], zone: Europe/Berlin}
numbers: {decimal: ","}
"""


def write(folder: Path, text: str, name: str = "own.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_profiles_are_there() -> None:
    assert {"canonical", "luftdaten", "skab", "nab"} <= set(load_profiles())


def test_a_users_profiles_come_from_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path, OWN)
    for paths in ([tmp_path], [tmp_path / "own.yaml"]):
        profile = load_profiles(paths)["greenhouse"]
        assert profile.timestamps.zone == "Europe/Berlin"
        assert profile.columns == {"Zeit": "timestamp", "7": "device_id"}


def test_a_users_profile_replaces_a_shipped_one(tmp_path: Path) -> None:
    own = load_profiles([write(tmp_path, OWN.replace("greenhouse", "canonical"))])
    assert own["canonical"].delimiter == ";"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("delimiter:", "delimeter:"), "did you mean delimiter"),
        (("zone: Europe/Berlin", "zon: UTC"), "timestamps.zon is unknown, did you mean zone"),
        (("Europe/Berlin", "Europe/Berln"), "'Europe/Berln' is no known time zone"),
        (("7: device_id", "x: unit"), "device_id has no source"),
        (('decimal: ","', 'decimal: ",", thousands: ","'), "different marks"),
        (('delimiter: ";"', 'delimiter: ";;"'), "delimiter"),
        (('delimiter: ";"', "delimiter: '\"'"), "not a quote"),
        (("name: greenhouse", "name: green house"), "name"),
        (('delimiter: ";"', "encoding: utf-88"), "'utf-88' is no known text encoding"),
        (('delimiter: ";"', "from_file_name: {device_id: '('}"), "not a regular expression"),
        (('delimiter: ";"', "from_file_name: {device_id: 'a(b)'}"), "more than one source"),
        (('delimiter: ";"', "from_file_name: {device_id: '(a)(?=b)'}"), "look-ahead and look-behind, is not supported"),
        (('delimiter: ";"', "nulls: [not available at all]"), "longer than 12 bytes"),
        (('decimal: ","', "decimal: x"), "line 8:"),
        ((OWN, "a: 2026-13-45"), "is not YAML"),
        (("%d.%m.%Y %H:%M", "%Q"), "'%Q' is not a time format"),
        ((OWN, "- a list"), "must hold names and values"),
        ((OWN, "a: [1"), "is not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_position(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    path = write(tmp_path, OWN.replace(*change))
    with pytest.raises(SettingsError, match=r"own\.yaml") as error:
        read_profile(path)
    assert said in str(error.value)
    assert all(line.startswith("  line ") for line in str(error.value).splitlines()[1:])


def test_two_profiles_of_one_name_stop_the_files_that_name_it(tmp_path: Path) -> None:
    write(tmp_path, OWN)
    write(tmp_path, OWN, "other.yaml")
    profiles = load_profiles([tmp_path])
    with pytest.raises(FileRejectedError, match=r"a reader profile named 'greenhouse' already exists in .*\.yaml"):
        profiles.named("greenhouse")
    assert profiles.named("canonical").name == "canonical"


def test_a_broken_profile_stops_only_the_files_that_name_it(tmp_path: Path) -> None:
    write(tmp_path, OWN)
    write(tmp_path, OWN.replace("greenhouse", "nab").replace("columns:", "colums:"), "broken.yaml")
    write(tmp_path, "name: torn\ncolumns: {a", "torn.yaml")
    profiles = load_profiles([tmp_path, tmp_path / "nowhere.yaml"])
    assert profiles.named("greenhouse").delimiter == ";"
    with pytest.raises(
        FileRejectedError, match=r"broken\.yaml, line 4: .*colums is unknown, did you mean columns"
    ) as refused:
        profiles.named("nab")
    assert refused.value.rule == "broken_profile"
    with pytest.raises(FileRejectedError, match=r"torn\.yaml is not YAML.*line 2"):
        profiles.named("torn")
    with pytest.raises(FileRejectedError, match=r"No reader profile 'other'.*nowhere\.yaml"):
        profiles.named("other")


def test_a_broken_profile_is_logged_with_its_file_and_line(tmp_path: Path, logged: Callable[[], str]) -> None:
    write(tmp_path, OWN.replace("columns:", "colums:"))
    load_profiles([tmp_path])
    assert "own.yaml, line 4" in logged()


def test_every_example_of_the_reference_is_a_part_of_a_profile() -> None:
    reference = Path(__file__).parents[2] / "docs" / "reader-profiles.md"
    section = reference.read_text(encoding="utf-8").partition("## What loggers need")[2].partition("\n## ")[0]
    examples = re.findall("```yaml\n(.*?)```", section, re.DOTALL)
    assert len(examples) >= 9
    for example in examples:
        # Of another dataset, so that no example has to name every column of a reading.
        ReaderProfile.model_validate({"name": "example", "dataset": "example", **yaml.load(example, AsWritten)})  # noqa: S506


def test_every_field_of_a_profile_is_in_the_reference() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reader-profiles.md").read_text(encoding="utf-8")
    for model in (ReaderProfile, CellRule, SkippedRows, Footer):
        assert [name for name in model.model_fields if f"`{name}" not in text and f"{name}:" not in text] == []


def test_the_problems_of_profiles_are_listed_for_those_who_show_them(tmp_path: Path) -> None:
    write(tmp_path, OWN)
    write(tmp_path, OWN.replace("7: device_id", "x: unit"), "broken.yaml")
    (problem,) = load_profiles([tmp_path]).broken
    assert problem.name == "greenhouse"
    assert "broken.yaml, line 4: " in problem.problem
    assert "device_id has no source" in problem.problem


def test_names_that_a_plain_yaml_reader_takes_for_truth_values_are_refused() -> None:
    with pytest.raises(ValueError, match="truth value; write it in quotes"):
        ReaderProfile.model_validate({"name": "a", "cells": {"value": {"words": {True: 1}}}})
    profile = ReaderProfile.model_validate({"name": "a", "dataset": "b", "columns": {1: "timestamp"}})
    assert profile.columns == {"1": "timestamp"}
