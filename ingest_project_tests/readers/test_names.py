"""Names: invisible characters do not make a new device, and suspicious names are rejected."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.readers.casting import TRIMMED, clean_name, is_suspicious, matched_name

Seen = st.text(st.characters(categories=["L", "N", "P", "S", "M"]), min_size=1, max_size=20)
Unseen = st.text(st.sampled_from(TRIMMED), max_size=4)


def test_everything_that_unicode_calls_white_space_or_a_format_is_trimmed() -> None:
    characters = map(chr, range(sys.maxunicode + 1))
    wanted = {c for c in characters if c.isspace() or unicodedata.category(c) in {"Cf", "Zs", "Zl", "Zp"}}
    assert wanted <= set(TRIMMED)


@given(Unseen, Seen, Unseen)
@settings(deadline=None)
def test_a_name_is_the_same_whatever_is_unseen_around_it(before: str, name: str, after: str) -> None:
    assert clean_name(before + name + after) == clean_name(name)
    assert clean_name(clean_name(name)) == clean_name(name)
    assert unicodedata.is_normalized("NFC", clean_name(name))


@given(
    Seen,
    st.sampled_from([*TRIMMED.replace(" ", ""), "\0", "\x07", "\x7f", "\ufffd", "\ue000", "\u3164", "\ufe0f"]),
    Seen,
)
@settings(deadline=None)
def test_a_name_with_something_unseen_inside_is_suspicious(before: str, inside: str, after: str) -> None:
    assert is_suspicious(clean_name(before + inside + after))


@pytest.mark.parametrize("name", ['"dev', 'dev"', '"dev"', "'dev'", "“dev”", '5" pump', "«dev»", "dev\u202egnp"])
def test_stray_quotes_and_reversed_text_are_suspicious(name: str) -> None:
    assert is_suspicious(name)


@pytest.mark.parametrize(
    "name", ["pump-1", "größe", "O'Brien", "Halle 3, Tor 2", "测点", "°C", "µg/m³", "a" * 300, "Ω"]
)
def test_names_in_any_language_are_fine(name: str) -> None:
    assert not is_suspicious(clean_name(name))


def test_composed_and_decomposed_spellings_are_one_name() -> None:
    assert clean_name("Gro\u0308ße") == "Größe"
    assert matched_name("\ufeffSENSOR\u200b_Type\u00a0") == matched_name("sensor_type")
