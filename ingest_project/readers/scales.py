"""Conversion of scales as one exact fraction: a number x becomes (x * factor + addend) / divisor."""

from __future__ import annotations

from fractions import Fraction
from math import lcm
from typing import NamedTuple

import polars as pl

EXACT_INTEGERS = 2**53


class Scale(NamedTuple):
    """The conversion (x * factor + addend) / divisor: one rounding where the numbers are short."""

    factor: Fraction = Fraction(1)
    addend: Fraction = Fraction(0)

    def then(self, other: Scale) -> Scale:
        """Return this conversion, followed by another."""
        return Scale(self.factor * other.factor, self.addend * other.factor + other.addend)

    @property
    def keeps_decimals(self) -> bool:
        """True if the result of every decimal number is a decimal number: no third or ninth of it."""
        return all(10**18 % part.denominator == 0 for part in (self.factor, self.addend))

    def apply(self, numbers: pl.Series, places: pl.Series | None = None) -> pl.Series:
        """Convert a column of floats.

        Args:
            numbers: the nearest floats to decimal numbers.
            places: how many decimal places each has; null where that is unknown.

        Returns:
            the nearest floats to the exact results, where the numbers are short.
        """
        factor, addend = self.factor, self.addend
        divisor = lcm(factor.denominator, addend.denominator)
        parts = [int(factor * divisor), int(addend * divisor), divisor]
        if max(map(abs, parts)) > EXACT_INTEGERS:
            return numbers * float(factor) + float(addend)
        # Polars multiplies by the inverse of a scalar divisor: 3 / 10 would be 0.30000000000000004.
        divisors = pl.Series([float(divisor)]).new_from_index(0, len(numbers))
        rounded = (numbers * float(parts[0]) + float(parts[1])) / divisors
        if places is None:
            return rounded
        # In whole numbers only the division rounds: a tenth of 0.7, which no float is, would be 0.06999999999999999.
        powers = pl.Series([10.0]).new_from_index(0, len(numbers)) ** places.cast(pl.Float64)
        dividends = (numbers * powers).round() * float(parts[0]) + powers * float(parts[1])
        is_exact = (dividends.abs() <= EXACT_INTEGERS) & (divisors * powers <= EXACT_INTEGERS)
        return (dividends / (divisors * powers)).zip_with(is_exact.fill_null(value=False), rounded)
