"""What README and docs say is so: their examples work, their links lead somewhere."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingest_project.file_ingest.contract import SensorTypes, ValidationRules, validate
from ingest_project.readers.chunks import ReadLimits
from ingest_project.readers.profiles import load_profiles
from ingest_project.readers.reading import cast, read_chunks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_example_of_a_reader_profile_reads_the_example_of_a_file(tmp_path: Path) -> None:
    page = ROOT / "docs" / "reader-profiles.md"
    file = tmp_path / "hall-3_2026-01.csv"
    file.write_text(blocks(page, "")[0], encoding="utf-8")
    (tmp_path / "logview.yaml").write_text(blocks(page, "yaml")[0], encoding="utf-8")
    profile = load_profiles([tmp_path / "logview.yaml"])["logview"]

    (chunk,) = read_chunks(file, "csv", profile, ReadLimits(), file.name)
    rules = ValidationRules(SensorTypes.load(), datetime(2026, 11, 1, tzinfo=UTC))
    accepted = validate(cast(chunk.rows, profile), rules).accepted

    readings = accepted.select("timestamp", "device_id", "sensor_type", "value", "unit").rows()
    assert sorted(readings) == [
        (datetime(2026, 1, 15, 9, 0, tzinfo=UTC), "hall-3", "humidity", 48.0, "%"),
        (datetime(2026, 1, 15, 9, 0, tzinfo=UTC), "hall-3", "temperature", 21.4, "°C"),
        (datetime(2026, 1, 15, 9, 10, tzinfo=UTC), "hall-3", "temperature", 21.6, "°C"),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text() + (ROOT / "benchmarks" / "targets.mk").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", " ".join(re.findall(r"`([^`]+)`", page.read_text()))))
        assert named <= targets, (page.name, named - targets)


def test_every_setting_that_is_named_exists() -> None:
    known = (ROOT / ".env.example").read_text()
    for page in PAGES:
        for name in set(re.findall(r"\b(?:INGEST|KAFKA)_[A-Z_]*[A-Z]\b(?!_?\*)", page.read_text())):
            assert name in known, (page.name, name)
