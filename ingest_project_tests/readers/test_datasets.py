"""Declarations are checked as a whole; a broken one disables only itself and says what is wrong where."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandera.polars as pandera
import pytest
import yaml

from ingest_project.contracts.files import SENSOR_READINGS, FileEvent, decode_file_event
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.settings import load_settings
from ingest_project.core.yaml_models import MAX_YAML_BYTES, yaml_files
from ingest_project.platform.database.sql import metadata
from ingest_project.readers.datasets import Declarations, load_declarations, read_declaration
from ingest_project.readers.declaration import OWN_TABLES

GOOD: dict[str, Any] = {
    "columns": [{"name": "id", "type": "text", "required": True}, {"name": "amount", "type": "decimal(8,2)"}],
    "measures": {"columns": ["amount"], "group_by": ["id"]},
    "paths": ["*/orders/*"],
}


def loaded(folder: Path, **declarations: dict[str, Any] | str) -> Declarations:
    """Load declarations from a folder of settings."""
    for name, attributes in declarations.items():
        path = folder / "ingest_project_defs" / name / "defs.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"type": "ingest_project.FileDataset", "attributes": attributes}
        path.write_text(
            attributes if isinstance(attributes, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8"
        )
    (folder / "profiles").mkdir(exist_ok=True)
    return load_declarations(load_settings({"INGEST_READER_PROFILES": str(folder / "profiles")}, folder).settings)


class Station(pandera.DataFrameModel):
    """A model of a user."""

    name: str


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"colums": []}, "colums is unknown, did you mean columns?"),
        ({"columns": []}, "declare columns or a model, one of the two"),
        ({"columns": [*GOOD["columns"], {"name": "id", "type": "date"}]}, "the column id is declared twice"),
        ({"columns": [{"name": "id", "type": "txt"}]}, "decimal places), did you mean text?"),
        ({"columns": [{"name": "id", "type": "decimel(12,2)"}]}, "did you mean decimal?"),
        ({"columns": [{"name": "id", "type": "float"}]}, "did you mean number?"),
        ({"columns": [{"name": "id", "type": "decimal"}]}, 'write it in quotes, as "decimal(12,2)"'),
        ({"columns": [{"name": "Air Temp", "type": "text"}]}, "write it in lower case with underscores"),
        ({"owners": ["climate"]}, "owners.0: 'climate' is no owner"),
        ({"paths": "*/orders/*"}, "paths: write a list, like [a, b]"),
        ({"measures": {"columns": ["amont"]}}, "there is no column amont, did you mean amount?"),
        ({"measures": {"columns": ["id"]}}, "id is text, not a number"),
        ({"measures": {"columns": ["amount"], "group_by": ["amount"]}}, "rows are grouped by"),
        ({"key": {"columns": ["idd"]}}, "there is no column idd, did you mean id?"),
        ({"key": {"columns": ["id"], "unique": "table"}, "target": {"delta": "x"}}, "a Delta table cannot keep keys"),
        ({"target": {"table": "files"}}, "the table 'files' belongs to the system"),
        ({"target": {"table": "a", "delta": "b"}}, "not both"),
        ({"file_types": ["cvs"]}, "did you mean csv?"),
        ({"reader": {"delimitor": ";"}}, "delimitor"),
        ({"reader": {"columns": {"A": "amout"}}}, "amout is no column of the dataset, did you mean amount?"),
        ({"reader": "nothing"}, "there is no usable one of that name"),
        ({"reader": "luftdaten"}, "with `dataset: bad` (it has `dataset: sensor_readings`)"),
        ({"reader": "badd"}, "with `dataset: bad`, did you mean bad_one?"),
        ({"reader": {"encoding": "uft-8"}}, "'uft-8' is no known text encoding, did you mean utf-8?"),
        ({"reader": {"timestamps": {"zone": "Europe/Berln"}}}, "did you mean Europe/Berlin?"),
        ({"reader": {"timestamps": {"formats": ["iso8061"]}}}, "did you mean iso8601?"),
        ({"reader": {"delimiter": "whitspace"}}, "did you mean whitespace?"),
        ({"reader": {"cells": {"amout": {"scale": 2}}}}, "amout is no column of the dataset, did you mean amount?"),
        ({"reader": {"cells": {"amount": {"scal": 2}}}}, "scal is unknown, did you mean scale?"),
        ({"reader": {"optional": ["idd"]}}, "idd is no column of the dataset, did you mean id?"),
        ({"reader": {"timestamps": {"ambiguous": "earlist"}}}, "did you mean earliest?"),
        ({"target": {"delta": "d", "partition_by": ["idd"]}}, "there is no column idd, did you mean id?"),
        ({"target": {"tabel": "d"}}, "tabel is unknown, did you mean table?"),
        ({"key": {"columns": ["id"], "unique": "fil"}}, "did you mean file?"),
        ({"columns": [{"name": "id", "type": "text", "requird": True}]}, "requird is unknown, did you mean required?"),
        ({"columns": [{"name": "id", "type": "text", "required": "ture"}]}, "required: write true or false"),
        ({"model": "no.such:Class", "columns": []}, "cannot be imported"),
        ({"model": "ingest_project_tests.readers.test_datasets:Stattion", "columns": []}, "did you mean Station?"),
        ({"model": "ingest_project_tests.readers.test_dataset:Station", "columns": []}, "did you mean test_datasets?"),
        ({"name": "file"}, "is a name of the system's own"),
        ({"drift": "resuce"}, "drift: Input should be 'rescue', 'evolve' or 'freeze', did you mean rescue?"),
    ],
)
def test_a_broken_declaration_says_what_is_wrong_and_others_stay_usable(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    (tmp_path / "profiles").mkdir(exist_ok=True)
    (tmp_path / "profiles" / "bad_one.yaml").write_text("name: bad_one\ndataset: bad\ndescription: Of bad ones.\n")
    found = loaded(tmp_path, bad={**GOOD, **change}, orders=GOOD)
    assert [one.name for one in found.declared] == ["orders"]
    (broken,) = found.broken
    assert reason in broken.problem
    assert "bad/defs.yaml, line " in broken.problem


def test_each_of_several_mistakes_has_a_line_of_its_own(tmp_path: Path) -> None:
    columns = [{"name": "id", "type": "txt"}, {"name": "at", "type": "timestmap"}]
    (broken,) = loaded(tmp_path, bad={**GOOD, "columns": columns, "drift": "evolv"}).broken
    first, *others = broken.problem.splitlines()
    assert first.endswith("this is not a dataset:")
    lines = (tmp_path / "ingest_project_defs" / "bad" / "defs.yaml").read_text("utf-8").splitlines()
    for said, written, remedy in zip(
        others, ("txt", "timestmap", "evolv"), ("text", "timestamp", "evolve"), strict=True
    ):
        assert said.endswith(f"did you mean {remedy}?")
        assert written in lines[int(said.split()[1].rstrip(":")) - 1]


def test_files_of_a_broken_dataset_become_no_sensor_readings(tmp_path: Path) -> None:
    found = loaded(tmp_path, bad={**GOOD, "paths": ["*/bad/*"], "drift": "?"}, orders=GOOD)
    with pytest.raises(UnreadableMessageError, match=r"The dataset bad cannot be used: .*defs.yaml, line"):
        found.require_accepted(FileEvent(file_path="/in/bad/a.csv", file_name="a.csv"))
    assert found.require_accepted(FileEvent(file_path="/in/orders/a.csv", file_name="a.csv")).name == "orders"
    assert found.require_accepted(FileEvent(file_path="/in/a.csv", file_name="a.csv")).name == "sensor_readings"


def test_an_unknown_part_of_a_declaration_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (broken,) = loaded(tmp_path, bad="type: ingest_project.FileDataset\natributes:\n  columns: []\n").broken
    assert broken.problem.endswith("line 2: atributes is unknown, did you mean attributes?")


NO_DECLARATIONS = ["", "- 1", "type: [", "type: ingest_project.FileDatset", "attributes: {}"]


@pytest.mark.parametrize("text", [*NO_DECLARATIONS, pytest.param("#" * (MAX_YAML_BYTES + 1), id="long")])
def test_a_file_that_is_no_declaration_is_reported(tmp_path: Path, text: str) -> None:
    assert len(loaded(tmp_path, bad=text).broken) == 1


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """A folder that this process may not list."""
    folder.chmod(0)
    user = os.geteuid()
    if user == 0:
        # Root may list everything.
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


def test_a_folder_that_cannot_be_listed_is_a_broken_declaration(tmp_path: Path) -> None:
    loaded(tmp_path, orders=GOOD)
    settings, folder = load_settings({}, tmp_path).settings, tmp_path / "ingest_project_defs"
    with closed(folder):
        found, profiles = load_declarations(settings), list(yaml_files([folder]))
    said = f"Cannot read the declaration {folder / 'defs.yaml'}: Permission denied."
    assert [one.problem for one in found.broken] == [said]
    assert profiles == [folder]


def test_components_of_other_packages_are_left_to_dagster(tmp_path: Path) -> None:
    assert loaded(tmp_path, other="type: dagster.DefsFolderComponent").broken == ()


def test_two_datasets_cannot_share_a_table(tmp_path: Path) -> None:
    found = loaded(tmp_path, a={**GOOD, "target": {"table": "same"}}, b={**GOOD, "target": {"table": "same"}})
    assert [one.name for one in found.declared] == ["a"]
    assert "a stores in same already" in found.broken[0].problem


def test_no_dataset_can_take_a_table_of_the_system() -> None:
    import ingest_project.operations  # defines tables
    import ingest_project.operations.alerts.incidents  # noqa: F401 - the rest

    assert {*metadata.tables} - OWN_TABLES == set()


@pytest.mark.parametrize("name", ["notes.txt", ".csv", "a.csv.gz", "a.zip", "a.json", "a.parquet", "a"])
def test_the_shipped_dataset_takes_csv_and_workbooks_only(name: str) -> None:
    event = decode_file_event(json.dumps({"file_path": f"/in/{name}", "file_name": name}).encode())
    with pytest.raises(UnreadableMessageError, match="Only csv, xlsx, xls are ingested"):
        Declarations().require_accepted(event)


def test_a_file_that_belongs_to_no_declared_dataset_has_sensor_readings() -> None:
    event = decode_file_event(b'{"file_path": "/in/a.csv", "file_name": "a.csv"}')
    assert Declarations().require_accepted(event).name == SENSOR_READINGS


def test_a_dataset_that_is_not_declared_is_refused_with_the_nearest_name() -> None:
    event = decode_file_event(
        b'{"file_path": "/in/a.csv", "file_name": "a.csv", "metadata": {"dataset": "sensor_reading"}}'
    )
    with pytest.raises(UnreadableMessageError, match="did you mean sensor_readings"):
        Declarations().require_accepted(event)


def test_options_with_only_comments_count_as_absent(tmp_path: Path) -> None:
    path = tmp_path / "d" / "defs.yaml"
    path.parent.mkdir()
    path.write_text(
        "type: ingest_project.FileDataset\nattributes:\n  reader:\n    # delimiter: x\n"
        "  columns:\n    - {name: a, type: text}\n"
    )
    found = read_declaration(path)
    assert found is not None
    assert found.own_profile is not None
    assert found.own_profile.delimiter is None


def test_a_contradiction_and_an_option_of_the_reader_have_their_lines(tmp_path: Path) -> None:
    text = (
        "type: ingest_project.FileDataset\nattributes:\n  columns:\n    - {name: a, type: text}\n"
        "  reader:\n    numbers:\n      decimel: ','\n  drift: rescue\n  key: {columns: [b]}\n"
    )
    (broken,) = loaded(tmp_path, orders=text).broken
    assert "line 7: this is not a dataset: reader.numbers.decimel is unknown, did you mean decimal?" in broken.problem
    (broken,) = loaded(tmp_path, orders=text.replace("decimel", "decimal")).broken
    assert "line 9: this is not a dataset: key.columns: there is no column b" in broken.problem


def test_the_assignment_of_a_jobs_files_changes_with_all_that_decides_it(tmp_path: Path) -> None:
    declared = loaded(tmp_path, orders=GOOD, jobs=GOOD | {"paths": [], "jobs": ["nightly-*"]})
    seen = [
        Declarations().assignment({}, "j", "canonical"),
        Declarations().assignment({"format": "german"}, "j", "canonical"),
        Declarations().assignment({}, "j", "german-default"),
        declared.assignment({}, "j", "canonical"),
        declared.assignment({}, "nightly-1", "canonical"),
        declared.assignment({"dataset": "orders"}, "j", "canonical"),
    ]
    assert len({json.dumps(one) for one in seen}) == len(seen)
    assert json.dumps(declared.assignment({}, "other", "canonical")) == json.dumps(seen[3])
