"""Output for people: no value of an untrusted sender can control their terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.core import console as output
from ingest_project.core.logging import printable, to_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcödé 温度", "plain ünïcödé 温度"),
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("one\nline\ttab", r"one\nline\ttab"),
        ("a\u202eb\x9bc", r"a\u202eb\x9bc"),
        ("lone \udcff surrogate", r"lone \udcff surrogate"),
    ],
)
def test_characters_that_act_on_a_terminal_are_shown_and_not_sent(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_markup_in_data_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    made = output.table("Name")
    output.add_row(made, "[red]x[/red] :smile: [link=http://a]b")
    output.stdout().print(made)
    output.say("[bold]y[/]")
    output.show_facts([("Name", "[z]"), ("Absent", None)])
    out = capsys.readouterr().out
    assert "[red]x[/red] :smile: [link=http://a]b" in out
    assert "[bold]y[/]" in out
    assert "[z]" in out
    assert "Absent" not in out


def test_without_a_terminal_nothing_is_cut_or_wrapped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    made = output.table("Reason")
    output.add_row(made, "x" * 500)
    output.stdout().print(made)
    assert "x" * 500 in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (3_725, "1 h 2 min"), (90_000, "1 d 1 h"), (-5, "0 s"), (3_600, "1 h")],
)
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert output.length_of(timedelta(seconds=seconds)) == text


def test_json_encodes_times_and_numbers_that_are_not_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"at": datetime(2026, 1, 15, tzinfo=UTC), "value": float("nan")})
    assert json.loads(capsys.readouterr().out) == {"at": "2026-01-15T00:00:00Z", "value": None}


def test_json_output_is_safe_for_a_terminal_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "ünïcödé 温度 \x1b[2J\x9b31m\u202e\x7f\udcff\u200b\U000e0001\n"
    output.print_json({hostile: [hostile, Path(hostile[:8])]})
    out = capsys.readouterr().out
    assert [character for character in out if not character.isprintable() and character != "\n"] == []
    assert "ünïcödé 温度" in out
    assert json.loads(out) == {hostile: [hostile, hostile[:8]]}


@given(st.text(alphabet=st.characters(exclude_categories=())))
@settings(deadline=None)
def test_any_value_is_printed_safely_and_its_json_equals_it(text: str) -> None:
    assert printable(text).isprintable()
    shown = to_json({"value": text})
    assert shown.isprintable()
    assert json.loads(shown) == {"value": text}


@pytest.mark.parametrize(
    ("value", "figure", "of_a_row"),
    [
        (1_234_567, "1,234,567", "1234567"),
        (2026, "2,026", "2026"),
        (1_234_567.5, "1,234,567.5", "1234567.5"),
        (310.0, "310", "310"),
        (True, "yes", "yes"),
        (None, "", ""),
        (datetime(2026, 1, 15, 10, 30, 45, 120_000, UTC), "2026-01-15 10:30:45Z", "2026-01-15 10:30:45.12Z"),
    ],
)
def test_figures_have_marks_between_thousands_and_values_of_rows_none(
    value: object, figure: str, of_a_row: str
) -> None:
    assert output.value_text(value) == figure
    assert output.data_text(value) == of_a_row


def test_rules_are_listed_with_the_most_frequent_first() -> None:
    assert output.counts({"b": 1, "a": 1, "c": 1_200, "none": 0}) == "c 1,200, a 1, b 1"


def test_messages_of_the_kafka_library_are_not_printed_next_to_the_error_of_a_command() -> None:
    program = "from ingest_project.platform.kafka import LIBRARY_LOGGER; LIBRARY_LOGGER.warning('REQTMOUT')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_characters_that_the_encoding_of_the_terminal_lacks_are_printed_as_escapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(printed, encoding="latin-1", write_through=True))
    output.escape_unencodable()
    output.say("wird gelöscht … 東京")
    output.print_json({"name": "Zürich 東京 😀"})
    text = printed.getvalue().decode("latin-1")
    assert text.startswith("wird gelöscht \\u2026 \\u6771\\u4eac\n")
    assert json.loads(text.partition("\n")[2]) == {"name": "Zürich 東京 😀"}
