"""A contract as a user writes it: a pandera model."""

from __future__ import annotations

from typing import Annotated

import pandera.polars as pa
import polars as pl


class Order(pa.DataFrameModel):
    """An order whose amount is no whole number."""

    order_id: str
    amount: float = pa.Field(le=10)
    placed_at: Annotated[pl.Datetime, "us", "UTC"]
    customer: str

    @pa.check("amount")
    def not_a_whole_number(cls, data: pa.PolarsData) -> pl.LazyFrame:  # noqa: N805 - pandera's class methods
        """Refuse whole numbers."""
        return data.lazyframe.select(pl.col(data.key) % 1 != 0)
