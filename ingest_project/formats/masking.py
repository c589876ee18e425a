"""Columns of which only some values are kept."""

from __future__ import annotations

import polars as pl


def kept(values: pl.Series, where: pl.Series) -> pl.Series:
    """The values where this is true, and null elsewhere: of the same type, which `Series.set` loses with the last."""
    if not len(values):
        return values
    nothing = pl.Series(values.name, [None], values.dtype).new_from_index(0, len(values))
    return values.zip_with(where.fill_null(value=False), nothing)
