"""Numbers in every locale and kind of cell are read exactly or not at all."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.readers.casting import numbers_of_cells, parse_numbers, scaled_numbers
from ingest_project.readers.cells import NUMBER, TEXT
from ingest_project.readers.profile_parts import NumberLayout, Scale
from ingest_project_tests.fuzz import examples

LAYOUTS = [
    NumberLayout.model_validate({"decimal": decimal, "thousands": thousands})
    for decimal in ".,"
    for thousands in (None, ".", ",", " ", "'", "_")
    if decimal != thousands
]
Layouts = st.sampled_from(LAYOUTS)


def number(text: str, layout: NumberLayout) -> float | None:
    found: float | None = parse_numbers(pl.Series([text]), layout).to_list()[0]
    return found


@given(Layouts, st.decimals(-(10**12), 10**12, places=4), st.booleans())
@settings(deadline=None)
def test_a_number_written_in_a_locale_is_read_in_it(layout: NumberLayout, value: Decimal, grouped: bool) -> None:  # noqa: FBT001 - drawn
    text = f"{value:,.4f}" if grouped and layout.thousands else f"{value:.4f}"
    written = "".join({",": layout.thousands or "", ".": layout.decimal}.get(c, c) for c in text)
    assert number(written, layout) == float(value)


@given(Layouts, st.decimals(-(10**25), 10**25, places=4), st.booleans(), st.sampled_from([NUMBER, TEXT, None]))
@settings(deadline=None)
def test_a_scaled_number_has_all_its_digits(
    layout: NumberLayout,
    value: Decimal,
    grouped: bool,  # noqa: FBT001 - drawn
    kind: str | None,
) -> None:
    written = f"{value:,.4f}" if grouped and layout.thousands and kind != NUMBER else f"{value:.4f}"
    if kind != NUMBER:
        written = "".join({",": layout.thousands or "", ".": layout.decimal}.get(c, c) for c in written)
    kinds = None if kind is None else pl.Series([kind])
    (found,) = scaled_numbers(pl.Series([written]), kinds, layout, Scale(Fraction(1, 100)), exact=True)
    assert Fraction(found) == Fraction(value) / 100


@given(
    Layouts,
    st.text(
        st.sampled_from([*"0123456789", *".,' _+-eExnaif", "\u00a0", "\u202f", "\uff11", "٣", "\u2212"]), max_size=14
    ),
)
@settings(deadline=None)
def test_no_value_is_made_that_was_not_in_the_text(layout: NumberLayout, text: str) -> None:
    found = number(text, layout)
    if found is None or not math.isfinite(found):
        assert found is None or re.search("[eEn]", text)
        return
    marks = {" ": " \u00a0\u202f\u2009", "'": "'\u2019"}.get(layout.thousands or "", layout.thousands or "")
    plain = text.translate(dict.fromkeys(map(ord, marks))).replace(layout.decimal, ".")
    assert found == float(plain)
    assert found != 0 or not re.search("[1-9]", plain.lower().partition("e")[0])
    if plain != text.replace(layout.decimal, "."):
        groups = re.split(f"[{re.escape(marks)}]", text.lstrip("+-").partition(layout.decimal)[0])
        assert re.fullmatch("[1-9][0-9]{0,2}", groups[0])
        assert all(re.fullmatch("[0-9]{3}", group) for group in groups[1:])


@pytest.mark.parametrize(
    "text",
    [
        "0.500",
        "00.225",
        "0.123.456",
        "12.34",
        "1.2345",
        "1234.567",
        ".123",
        "1.234.56",
        "12.34.567",
        "1.234e5",
        "1..234",
        "1.234.",
        "--5",
        "1,2,3",
    ],
)
def test_groups_are_three_digits_and_the_first_never_begins_with_zero(text: str) -> None:
    assert number(text, NumberLayout(decimal=",", thousands=".")) is None


def test_a_zero_before_the_decimal_mark_is_no_group() -> None:
    layout = NumberLayout(decimal=",", thousands=".")
    assert [number(text, layout) for text in ("0,500", "-0,5", "1.000", "1.234.567,5", "007", "1,5e3")] == [
        0.5,
        -0.5,
        1000,
        1234567.5,
        7,
        1500,
    ]


def test_indian_grouping_is_refused() -> None:
    assert number("12,34,567.8", NumberLayout(thousands=",")) is None


@pytest.mark.parametrize("space", [" ", "\u00a0", "\u202f", "\u2009"])
def test_every_space_that_groups_is_a_space(space: str) -> None:
    layout = NumberLayout(decimal=",", thousands=" ")
    assert number(f"1{space}234{space}567,5", layout) == 1234567.5
    assert number(f"1{space}234_567", layout) is None


def test_one_number_is_grouped_by_one_mark() -> None:
    assert number("1 234\u00a0567", NumberLayout(decimal=",", thousands=" ")) is None


@pytest.mark.parametrize("text", ["1e-400", "-0.5e-999", "0.0001e-330"])
def test_numbers_too_small_for_64_bits_do_not_become_zero(text: str) -> None:
    assert number(text, NumberLayout()) is None
    assert number("0e-400", NumberLayout()) == 0


@given(st.floats(allow_nan=False, allow_infinity=False), Layouts)
@settings(deadline=None)
def test_a_number_cell_is_its_number_whatever_marks_are_declared(value: float, layout: NumberLayout) -> None:
    found = numbers_of_cells(pl.Series([repr(value)]), pl.Series(["n"]), layout)
    assert found.to_list() == [value]


@given(st.sampled_from("dtbef"), st.sampled_from(["1", "2026-01-15T10:00:00", "true", "#DIV/0!", "=1+1"]), Layouts)
@settings(max_examples=examples(60), deadline=None)
def test_a_cell_of_another_kind_is_not_a_number(kind: str, text: str, layout: NumberLayout) -> None:
    assert numbers_of_cells(pl.Series([text]), pl.Series([kind]), layout).to_list() == [None]


def test_a_long_number_takes_linear_time() -> None:
    texts = pl.Series(["1" * 1_000_000 + "x", "1.234" * 200_000, "'" * 1_000_000])
    for layout in LAYOUTS:
        assert parse_numbers(texts, layout).to_list() == [None] * 3
