"""Propose the declaration of a dataset for a file: its columns with their types, its key, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from ingest_project.contracts.columns import OWN_NAMES
from ingest_project.contracts.files import INGESTIBLE_TYPES
from ingest_project.readers.casting import matched_name
from ingest_project.readers.cells import PERCENT
from ingest_project.readers.datasets import COMPONENT
from ingest_project.readers.guessing.columns import Column
from ingest_project.readers.guessing.names import read_name, slug, unit_of, without_serial
from ingest_project.readers.guessing.proposal import Draft, Found, write_notation, write_text_layout
from ingest_project.readers.guessing.text import MISSING
from ingest_project.readers.guessing.times import TimeGuess, guess_times

MONEY = re.compile(
    r"(?i)price|amount|total|cost|revenue|sum|tax|vat|fee|balance|salary|budget|payment|betrag|preis|net$|gross$"
)
KEYS = re.compile(r"(?i)(?:^|[_ ])(?:id|uuid|guid|key|no|nr|number|code|sku)$|id$")
DECIMAL = r"^[+-]?[0-9]*(?:[.,' ][0-9]{3})*[.,]([0-9]+)$"
WHOLE = r"^[+-]?(?:0|[1-9][0-9]*)$"
# Identifiers, telephone numbers and codes. A measurement with an exponent also has a decimal mark or a sign.
CODE = r"^[+-]?0[0-9]|^\+[0-9]{8,}$|^[0-9]+[eE][0-9]+$"
JSON_TEXT = r"^\s*(?:\{.*\}|\[.*\])\s*$"
MONEY_PLACES = 4
FEW_VALUES = 8
MAX_NAME = 48
# Share of values that must be of a type: a few damaged ones do not change the type of a column.
TYPED_SHARE = 0.95
HALF = 0.5
LEAST_DIGITS = 12
# Integers have 64 bits; longer digit strings are probably identifiers.
MOST_DIGITS = 18


class TypedColumn(NamedTuple):
    """Proposal for one column.

    Args:
        name: in the table.
        type: in the grammar of declared columns.
        why: evidence for it.
        times: formats, of a column of times.
        question: for a person to answer.
    """

    name: str
    type: str
    why: str
    times: TimeGuess | None = None
    question: str = ""


def guess_dataset(found: Found, file_name: str, file_type: str, name: str) -> Draft:
    """Propose a declaration, as the content of a `defs.yaml`.

    Args:
        found: the table in the file.
        file_name: of the file.
        file_type: of the file.
        name: of the dataset.
    """
    columns = found.columns.all
    typed = [_typed(column, found, own) for column, own in zip(columns, _names(columns), strict=True)]
    draft = Draft()
    draft.add("type", COMPONENT)
    draft.add("attributes")
    draft.indent = 1
    draft.add("description", f"Guessed from {file_name}.")
    if file_type not in INGESTIBLE_TYPES:
        draft.add("file_types", [file_type])
    draft.add("columns")
    missing = [found.columns.missing(column) for column in columns]
    for column, proposed, absent in zip(columns, typed, missing, strict=True):
        _write_column(draft, column, proposed, absent)
    _write_key(draft, columns, typed, missing)
    draft.add("target")
    draft.add("table", name, "in the warehouse; or `delta: NAME` with `partition_by: [COLUMN]`", depth=1)
    draft.add(
        "paths", [f"*/{_pattern(file_name)}"], question="which files belong to it? Or name polling jobs as `jobs`"
    )
    _write_reader(draft, found, typed)
    return draft


def _names(columns: Sequence[Column]) -> list[str]:
    """Return a name for each column that a table may have, each once."""
    found: list[str] = []
    for column in columns:
        name = slug(without_serial(column.meaning))[:MAX_NAME]
        if not name or not name[0].isalpha() or name in OWN_NAMES or name.startswith("kafka_"):
            name = f"column_{name or column.index + 1}"
        found.append(name if name not in found else f"{name}_{column.index + 1}")
    return found


def _typed(column: Column, found: Found, name: str) -> TypedColumn:
    present = column.present
    known = present.filter(~present.is_in(list(found.columns.spellings)))
    if not len(known):
        return TypedColumn(name, "text", "empty in all records read, so its type is unknown")
    total, fits = len(known), f"all {len(known):,}"
    times = guess_times(known, column.meaning)
    if times is not None and times.fit >= TYPED_SHARE * total:
        kind = "timestamp" if times.has_clock else "date"
        fits = fits if times.fit == total else f"{times.fit:,} of {total:,}, the others are rejected,"
        return TypedColumn(name, kind, f"{fits} are of {', '.join(times.formats)}", times)
    # Also of a year or a month, which with others would make a time: what its values are decides.
    numbers = len(found.columns.read(column).drop_nulls())
    if numbers >= TYPED_SHARE * total:
        if odd := found.columns.unread(column):
            fits = f"all but {', '.join(repr(text) for text, _ in odd)}, which are rejected,"
        return TypedColumn(name, *_number(column, known, fits))
    if known.str.to_lowercase().is_in(["true", "false"]).all():
        return TypedColumn(name, "boolean", f"{fits} are true or false")
    if known.str.contains(JSON_TEXT).all():
        return TypedColumn(name, "json", f"{fits} are objects or lists")
    different = known.unique(maintain_order=True)
    few = len(different) <= FEW_VALUES and len(known) > 2 * len(different)
    said = f"{len(different):,} different in {len(known):,}" + (f": {', '.join(different.to_list())}" if few else "")
    markers = [repr(text) for text in different.to_list() if text.lower() in MISSING]
    asked = [f"does {' or '.join(markers)} mean that there is no value? Then add it to nulls"] if markers else []
    if times is not None or numbers >= HALF * total:
        fit, kind = (times.fit, "time") if times else (numbers, "number")
        asked.insert(0, f"{fit:,} of {total:,} are {kind}s: should it be a {kind}, so that the others are rejected?")
    return TypedColumn(name, "text", said, question="; ".join(asked))


def _number(column: Column, known: pl.Series, fits: str) -> tuple[str, str]:
    """Return the type of a column of numbers, and what it rests on."""
    if known.str.contains(CODE).any():
        return "text", f"{fits} are numbers, but some are written as codes are, such as 012, +4912345678 or 12E4"
    if int(known.str.len_chars().sort()[-1]) > MOST_DIGITS:
        return "text", f"{fits} are numbers, but some have more digits than a number keeps"
    if known.str.contains(WHOLE).sum() >= TYPED_SHARE * len(known):
        return "integer", f"{fits} are whole numbers"
    places = known.str.extract(DECIMAL, 1).str.len_chars().drop_nulls()
    if MONEY.search(column.meaning) and len(places) and int(places.sort()[-1]) <= MONEY_PLACES:
        most = int(places.sort()[-1])
        digits = int(known.str.replace_all("[^0-9]", "").str.len_chars().sort()[-1])
        return f"decimal({max(digits + most, LEAST_DIGITS)},{most})", f"{fits} have at most {most} decimal places"
    return "number", f"{fits} are numbers"


def _write_column(draft: Draft, column: Column, proposed: TypedColumn, missing: int) -> None:
    written: dict[str, object] = {"name": proposed.name, "type": proposed.type}
    if not missing:
        written["required"] = True
    question = proposed.question
    if proposed.times and proposed.times.alternatives:
        question = f"or is it {' or '.join(proposed.times.alternatives)}?"
    if proposed.type in {"integer", "number"}:
        named = read_name(column.meaning)
        if unit := unit_of(column.unit_row) or named.unit:
            written["unit"] = unit
        elif named.doubt:
            question = f"is {named.doubt!r} its unit?"
        elif column.kinds is not None and PERCENT in column.kinds:
            question = "cells shown as 45 % are 0.45 here, and 45 with unit: '%': which is meant?"
    comment = proposed.why + (f"; {missing:,} missing" if missing else "")
    draft.item(written, comment, question=question, depth=1)


def _write_key(draft: Draft, columns: Sequence[Column], typed: Sequence[TypedColumn], missing: Sequence[int]) -> None:
    """Add the column that tells the rows apart, one that is called so before any other."""
    unique = [
        index
        for index, column in enumerate(columns)
        if len(column.texts) > 1
        and not missing[index]
        and column.texts.n_unique() == len(column.texts)
        and typed[index].type in {"text", "integer", "timestamp"}
    ]
    named = [index for index in unique if KEYS.search(columns[index].meaning)]
    if not unique:
        why = f"none of the columns without gaps differs in all {len(columns[0].texts):,} records read"
        draft.note(f"no key: {why}", "do some columns together identify a row? Then add `key: {columns: [A, B]}`")
        return
    best, others = (named or unique)[0], [typed[index].name for index in unique[1:]]
    comment = f"differs in all {len(columns[best].texts):,} records read"
    draft.add("key", comment=comment + (f"; so do {', '.join(others)}" if others else ""))
    draft.add("columns", [typed[best].name], question="" if named else "does it identify a row?", depth=1)


def _pattern(file_name: str) -> str:
    """Return a pattern of file names: this one with any other numbers and dates."""
    return re.sub(r"[0-9][0-9_.:T-]*[0-9]|[0-9]", "*", re.sub(r"[\[\]?*]", "?", file_name))


def _write_reader(draft: Draft, found: Found, typed: Sequence[TypedColumn]) -> None:
    draft.add("reader")
    draft.indent += 1
    write_text_layout(draft, found)
    renamed = {
        column.selector: proposed.name
        for column, proposed in zip(found.columns.all, typed, strict=True)
        if matched_name(column.selector) != proposed.name
    }
    if renamed:
        draft.add("columns", comment="columns of the file that have another name there")
    for name, own in renamed.items():
        draft.add(name, own, depth=1)
    write_notation(draft, found.columns, [proposed.times for proposed in typed if proposed.times])
