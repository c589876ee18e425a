"""Guess how numbers are written, and which texts and numbers mean that there is no value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import polars as pl

from ingest_project.readers.casting import parse_numbers
from ingest_project.readers.guessing.text import MISSING
from ingest_project.readers.profile_parts import MAX_NULL_BYTES, NumberLayout
from ingest_project.readers.profiles import DEFAULT_NULLS

NUMERIC_SHARE = 0.6
DIGITS = "[+-]?[0-9]"
# Texts in which a mark can only be the decimal one: its digits are no group of three, or no group can precede it.
DECIMAL = {
    mark: rf"^{DIGITS}*{esc}(?:[0-9]{{1,2}}|[0-9]{{4,}})(?:[eE][+-]?[0-9]+)?$|^{DIGITS}{{4,}}{esc}[0-9]+$"
    rf"|^[+-]?0*{esc}[0-9]+$|[0-9]{other}[0-9]{{3}}{esc}[0-9]"
    for mark, esc, other in ((",", ",", r"\."), (".", r"\.", ","))
}
GROUPS = {
    mark: rf"^[+-]?[1-9][0-9]{{0,2}}(?:[{chars}][0-9]{{3}}){{{least},}}(?:[.,][0-9]*)?$"
    for mark, chars, least in ((",", ",", 2), (".", ".", 2), (" ", " \u00a0\u202f\u2009", 1), ("'", "'\u2019", 1))
}
GROUPS[","] += r"|^[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+\.[0-9]+$"
GROUPS["."] += r"|^[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3})+,[0-9]+$"
EITHER = {mark: rf"^[+-]?[1-9][0-9]{{0,2}}{re.escape(mark)}[0-9]{{3}}$" for mark in ",."}
# Numbers that loggers and archives write for "no value"; any other is taken as measured.
SENTINELS: tuple[float, ...] = (-999.0, -9999.0, -99999.0, -999.9, -9999.9, -99.9, -99.0, -200.0, -6999.0, -7999.0)
SENTINELS += (999.0, 7999.0, 9999.0, 99999.0, 999999.0, 999.9, 9999.9)


class NumberGuess(NamedTuple):
    """The notation of all numbers of a file.

    Args:
        layout: decimal and thousands marks.
        why: what it rests on.
        question: for a person to answer, where the file does not decide; empty otherwise.
    """

    layout: NumberLayout
    why: str
    question: str = ""


class NullGuess(NamedTuple):
    """A spelling of "no value".

    Args:
        spelling: as the profile needs it.
        cells: that hold it.
        why: what the guess rests on.
    """

    spelling: str
    cells: int
    why: str


def guess_numbers(texts: pl.Series, delimiter: str | None) -> NumberGuess:
    """Guess the marks.

    Args:
        texts: cells of all columns that may be numbers, without missing ones.
        delimiter: of the file: where it is a semicolon, the comma is the likelier decimal mark.
    """
    decimal = {mark: int(texts.str.contains(pattern).sum()) for mark, pattern in DECIMAL.items()}
    groups = {mark: int(texts.str.contains(pattern).sum()) for mark, pattern in GROUPS.items()}
    either = {mark: int(texts.str.contains(pattern).sum()) for mark, pattern in EITHER.items()}
    if not any((*decimal.values(), *groups.values(), *either.values())):
        return NumberGuess(NumberLayout(), "all numbers are whole")
    mark, why, question = _decimal_mark(decimal, groups, either, delimiter)
    thousands = max(groups, key=lambda each: groups[each] if each != mark else 0)
    other = "." if mark == "," else ","
    if not groups[thousands] or thousands == mark:
        thousands = other if either[other] and mark != other else ""
        if thousands and not question and (mark == "," or not decimal[other]):
            question = (
                f"is {other!r} in numbers such as {_example(texts, EITHER[other])!r} a thousands mark, as is assumed, "
                "or a decimal mark?"
            )
    if decimal[other] and decimal[mark]:
        why += f"; {decimal[other]:,} have {other!r}"
        question = f"{decimal[other]:,} numbers have {other!r} as decimal mark and are rejected: is the file damaged?"
    return NumberGuess(NumberLayout(decimal=mark, thousands=thousands or None), why, question)


def _decimal_mark(
    decimal: dict[str, int], groups: dict[str, int], either: dict[str, int], delimiter: str | None
) -> tuple[str, str, str]:
    """Return the decimal mark, what it rests on, and a question where that is not enough."""
    if decimal[","] or decimal["."]:
        mark = "," if decimal[","] > decimal["."] else "."
        return mark, f"{decimal[mark]:,} numbers have {mark!r} where it can only be the decimal mark", ""
    if groups["."] or groups[","]:
        mark = "," if groups["."] else "."
        return mark, f"the other mark divides groups of three digits {max(groups.values()):,} times", ""
    if either[","] and (delimiter == "," or not either["."]):
        mark = "," if delimiter != "," else "."
        question = f"do numbers such as 1,234 mean 1.234 or 1234? Assumed: {'1.234' if mark == ',' else '1234'}"
        return mark, f"{either[',']:,} numbers have a comma and three digits behind it", question
    return ".", f"{either['.']:,} numbers have a point and three digits behind it, none any other mark", ""


def _example(texts: pl.Series, pattern: str) -> str:
    return str(texts.filter(texts.str.contains(pattern)).first())


def is_numeric(texts: pl.Series) -> bool:
    """Return True if most texts are numbers in some notation."""
    present = texts.filter(~texts.str.to_lowercase().is_in(list(MISSING)))
    shaped = present.str.contains(
        r"^[+-]?(?:[0-9]+(?:[.,' \x{a0}\x{202f}][0-9]+)*[.,]?|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?$"
    )
    return bool(len(present)) and shaped.sum() >= NUMERIC_SHARE * len(present)


def guess_nulls(columns: Sequence[pl.Series], layout: NumberLayout) -> list[NullGuess]:
    """Find the texts and numbers in columns of numbers that mean "no value" and are no default of profiles."""
    found: dict[str, int] = {}
    for texts in columns:
        odd = texts.filter(texts.str.to_lowercase().is_in(list(MISSING)))
        for text, count in odd.value_counts().iter_rows():
            found[text] = found.get(text, 0) + count
    words = [
        NullGuess(text, count, "it stands among numbers")
        for text, count in found.items()
        if text not in DEFAULT_NULLS and len(text.encode()) <= MAX_NULL_BYTES
    ]
    return words + _sentinels([parse_numbers(texts, layout) for texts in columns])


def _sentinels(columns: Iterable[pl.Series]) -> list[NullGuess]:
    """Find well-known numbers that are further from all others of some column than these are from each other."""
    counts: dict[float, int] = {}
    apart: dict[float, str] = {}
    for numbers in (column.drop_nulls().drop_nans() for column in columns):
        others = numbers.filter(~numbers.is_in(SENTINELS))
        for marker in SENTINELS:
            count = int((numbers == marker).sum())
            counts[marker] = counts.get(marker, 0) + count
            if count and not len(others) and marker < 0:
                apart[marker] = "a column has no other number"
            elif count and len(others):
                low, high = others.sort()[0], others.sort()[-1]
                if min(abs(marker - low), abs(marker - high)) > max(high - low, 1.0) and not low <= marker <= high:
                    apart[marker] = f"all other numbers of a column are {low:g} to {high:g}"
    return [NullGuess(f"{marker:g}", counts[marker], why) for marker, why in apart.items()]
