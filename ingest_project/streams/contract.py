"""Messages of a declared stream to rows that fulfil its contract; a message that does not is refused with its reasons.

The decoder takes the values out of the bytes, `values` converts them exactly, pandera judges the rows. Fields that no
column names go by the drift policy. The outcome of a message depends on its own bytes alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from ingest_project.contracts.columns import FAULT_OF, TEXT_OF, StreamColumn, number_fault
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.settings import Settings
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.readers.matching import column_name
from ingest_project.streams.declaration import OWN_COLUMNS, RESCUED, StreamDeclaration
from ingest_project.streams.decoders import DECODERS, Decoded, Refusal
from ingest_project.streams.values import array_of, arrow_type

ROW = "row"
MAX_NAMED = 10
# Each becomes a permanent column of the table, and senders choose the names.
MAX_EVOLVED_COLUMNS = 100
EVOLVED_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True)
class ContractRows:
    """Rows that fulfil a contract.

    Args:
        messages: those that became rows, in their order.
        table: a row each: the declared columns, RESCUED, and columns that were evolved.
        refused: the other messages, with their reasons.
    """

    messages: list[ConsumerRecord]
    table: pa.Table
    refused: list[tuple[ConsumerRecord, Refusal]]


class Contract:
    """Turns the messages of a declared stream into rows. One object per run.

    Args:
        declaration: declaration of the stream.
        settings: settings of its decoder.
        known_columns: returns the columns of text that the table has, and all its columns; called once, when a field
            first evolves.
    """

    def __init__(
        self,
        declaration: StreamDeclaration,
        settings: Settings,
        known_columns: Callable[[], tuple[AbstractSet[str], AbstractSet[str]]] = lambda: (frozenset(), frozenset()),
    ) -> None:
        from ingest_project.contracts.validation import schema_of, validate  # loads pandera

        self._columns, self._drift = declaration.typed_columns, declaration.drift
        self._flat = [one for column in self._columns for one in column.flat()]
        schema = schema_of([_column_for_pandera(one) for one in self._flat], declaration.model)
        self._validate = partial(validate, schema=schema)
        self._decoder = DECODERS[declaration.decoder](self._flat, settings)
        self._required_inside = [one.name for one in self._flat if one.required and "." in one.name]
        # No field may evolve into a column's name, or into that of a field with columns inside.
        reserved = {*OWN_COLUMNS, *(name for one in self._columns for name in (one.name, one.steps[0]))}
        self._evolution = _Evolution(known_columns, reserved)
        self._has_defaults = [name for name, one in schema.columns.items() if one.default is not None]

    def rows_of(self, messages: Sequence[ConsumerRecord]) -> ContractRows:
        """Decode messages that have a value, and validate them.

        Raises:
            TransientError: a service that the decoder needs is away.
        """
        decoded = self._decoder.decode(messages)
        arrays, texts = _arrays(self._flat, decoded)
        rows = pl.DataFrame({**{name: pl.from_arrow(array) for name, array in arrays.items()}, **texts})
        validated = self._validate(rows.with_row_index(ROW))
        broken: dict[int, list[str]] = dict(validated.rejected.select(ROW, "reasons").iter_rows())
        for name in self._required_inside:
            for row in _missing_inside(name, arrays, texts):
                broken.setdefault(row, []).append(f"{name}_missing")
        problems = {row: _contract_reason(sorted(reasons)) for row, reasons in broken.items()}
        arrays = {column.name: _with_structs(column, arrays, column.name) for column in self._columns}
        arrays |= self._unknown(decoded.unknown, problems)
        table = pa.table(arrays)
        if problems:
            table = table.filter(pa.array([row not in problems for row in range(table.num_rows)]))
        for name in self._has_defaults:
            filled = validated.accepted.filter(~pl.col(ROW).is_in(list(problems)))[name].to_arrow()
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, filled.cast(table.schema.field(name).type))
        refused = [(decoded.kept[row], UnreadableMessageError(why)) for row, why in problems.items()]
        kept = [message for row, message in enumerate(decoded.kept) if row not in problems]
        return ContractRows(kept, table, [*decoded.refused, *refused])

    def _unknown(self, unknown: Sequence[bytes | None], problems: dict[int, str]) -> dict[str, pa.Array]:
        """Return the columns of fields that no column names."""
        rescued = list(unknown)
        columns: dict[str, pa.Array] = {}
        if any(rescued) and self._drift == "freeze":
            for row, fields in enumerate(unknown):
                if fields:
                    names = ", ".join(list(_fields.decode(fields))[:MAX_NAMED])
                    problems.setdefault(row, f"It has fields that the stream does not declare: {names[:200]}.")
        elif any(rescued) and self._drift == "evolve":
            columns, rescued = self._evolution.columns_of(rescued)
        return {**columns, RESCUED: pa.array(rescued, pa.binary()).cast(pa.string())}


@dataclass
class _Evolution:
    """Columns of text that a table gets for fields that no column names."""

    known_columns: Callable[[], tuple[AbstractSet[str], AbstractSet[str]]]
    taken: AbstractSet[str]
    names: set[str] | None = None
    others: AbstractSet[str] = field(default_factory=frozenset)

    def columns_of(self, unknown: Sequence[bytes | None]) -> tuple[dict[str, pa.Array], list[bytes | None]]:
        """Return the evolved columns, and what is left of the fields."""
        if self.names is None:
            text, every = self.known_columns()
            self.names, self.others = set(text - self.taken), every - text
        rows = [_fields.decode(one) if one else {} for one in unknown]
        found: dict[str, list[str | None]] = {}
        for row, fields in enumerate(rows):
            columns = {column_name(name): name for name in reversed(fields)} | {name: name for name in fields}
            for column, name in columns.items():
                # Of two fields that would have one column, that of its very name has it, else the first one.
                if name in fields and self._evolves(column):
                    found.setdefault(column, [None] * len(rows))[row] = _text(fields.pop(name))
        evolved = {name: pa.array(values, pa.string()) for name, values in sorted(found.items())}
        return evolved, [_encoder.encode(fields) if fields else None for fields in rows]

    def _evolves(self, name: str) -> bool:
        names = self.names if self.names is not None else set()
        if name in names:
            return True
        is_free = EVOLVED_NAME.fullmatch(name) and not name.startswith("kafka_") and name not in self.taken
        if not is_free or name in self.others or len(names) >= MAX_EVOLVED_COLUMNS:
            return False
        names.add(name)
        return True


def _arrays(columns: Sequence[StreamColumn], decoded: Decoded) -> tuple[dict[str, pa.Array], Mapping[str, pl.Series]]:
    """Return the columns, and the texts and faults of their unreadable values."""
    arrays, texts = {}, {}
    for column, values in zip(columns, decoded.columns, strict=True):
        arrays[column.name], unreadable = array_of(column, values, is_typed=decoded.is_typed)
        if unreadable:
            shown: list[Any] = [unreadable.get(row) for row in range(len(values))]
            texts[TEXT_OF(column.name)] = pl.Series(shown, dtype=pl.String)
            if column.kind in {"integer", "number", "decimal"}:
                faults = [text and number_fault(text.strip('"'), column) for text in shown]
                texts[FAULT_OF(column.name)] = pl.Series(faults, dtype=pl.String)
    return arrays, texts


def _column_for_pandera(column: StreamColumn) -> StreamColumn:
    """Return a column as pandera sees it: a struct is a boolean (is it there?), and no field of it is required."""
    type_of = {"type": "boolean", "fields": ()} if column.fields else {}
    return column.model_copy(update={**type_of, "required": column.required and "." not in column.name})


def _missing_inside(name: str, arrays: Mapping[str, pa.Array], texts: Mapping[str, pl.Series]) -> list[int]:
    """Return the rows whose struct is there without a field; a value that cannot be read is not missing."""
    missing = pc.and_(pc.is_null(arrays[name]), pc.is_valid(arrays[name.rpartition(".")[0]]))
    rows = np.flatnonzero(missing.to_numpy(zero_copy_only=False)).tolist()
    text = texts.get(TEXT_OF(name))
    return rows if text is None else [row for row in rows if text[row] is None]


def _with_structs(column: StreamColumn, arrays: Mapping[str, pa.Array], name: str) -> pa.Array:
    """Return a column, or the struct that is made of the columns inside; null where it is not there."""
    if not column.fields:
        return arrays[name]
    inside = [_with_structs(one, arrays, f"{name}.{one.name}") for one in column.fields]
    return pa.StructArray.from_arrays(inside, fields=list(arrow_type(column)), mask=pc.is_null(arrays[name]))


def _contract_reason(reasons: Sequence[str]) -> str:
    more = "" if len(reasons) <= MAX_NAMED else f" and {len(reasons) - MAX_NAMED} more"
    return f"It breaks the contract: {', '.join(reasons[:MAX_NAMED])}{more}."


def _text(value: msgspec.Raw) -> str | None:
    """Return a JSON text as its characters, anything else as JSON."""
    decoded = bytes(value).strip()
    if decoded == b"null":
        return None
    return str(msgspec.json.decode(decoded)) if decoded.startswith(b'"') else decoded.decode()
