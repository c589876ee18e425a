"""Conversion of units and scales as one exact fraction: a number x becomes (x * factor + addend) / divisor."""

from __future__ import annotations

import difflib
import re
from fractions import Fraction
from functools import cache
from math import lcm
from tokenize import TokenError
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

if TYPE_CHECKING:
    import pint

# pint computes powers: 9**9**9 would never end.
UNIT = re.compile(r"[^\W\d][\w ·*/^°℃℉%²³⁻¹().-]{0,39}|[°℃℉%µμ][\w/³² ]{0,39}")
HUGE_POWER = re.compile(r"[0-9]{3}|(?:\*\*|\^)[^*/^]*(?:\*\*|\^)|(?:\*\*|\^)\s*[^0-9\s-]")
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


def scale_of(scale: Fraction, offset: Fraction, unit: str | None, to: str | None) -> Scale:
    """Return the conversion by a scale and an offset, then from a unit to another where one is given.

    Raises:
        ValueError: a unit is unknown, the two measure different things, or their relation is no straight line.
    """
    own = Scale(scale, offset)
    return own.then(conversion(unit, to)) if unit and to else own


@cache
def conversion(unit: str, to: str) -> Scale:
    """Return the conversion between two units; see `scale_of`."""
    source, target = _unit(unit), _unit(to)
    if source.dimensionality != target.dimensionality:
        # Farad and coulomb, for pint.
        hint = "; degrees are degC and degF" if {unit, to} & {"C", "F"} else ""
        raise ValueError(f"{unit!r} cannot be converted to {to!r}: they measure different things{hint}")
    try:
        zero, one, two = (_converted(number, source, target) for number in (0, 1, 2))
    except (TypeError, ValueError, ArithmeticError):
        zero = one = two = None
    if zero is None or one is None or two is None or two - one != one - zero:
        raise ValueError(f"{unit!r} cannot be converted to {to!r} by a factor and an offset")
    return Scale(one - zero, zero)


def is_unit(name: str) -> bool:
    """Return True if a text such as `m³/s`, `m3/h` or `kWh` is wholly a unit."""
    try:
        _unit(re.sub(r"(?<=[A-Za-z])([23])(?![0-9A-Za-z])", r"**\1", name))
    except ValueError:
        return False
    return True


def _converted(number: int, source: pint.Unit, target: pint.Unit) -> Fraction | None:
    magnitude: object = _registry().Quantity(Fraction(number), source).to(target).magnitude
    return Fraction(magnitude) if isinstance(magnitude, int | Fraction) else None


@cache
def _registry() -> pint.UnitRegistry[Fraction]:
    import pint  # a second of import that most processes never need

    return pint.UnitRegistry(non_int_type=Fraction)


def _unit(name: str) -> pint.Unit:
    import pint  # as above

    if not UNIT.fullmatch(name) or HUGE_POWER.search(name):
        raise ValueError(f"{name!r} is no unit")
    registry = _registry()
    try:
        return registry.Unit(name)
    except pint.UndefinedUnitError as error:
        unknown = str(error.unit_names[0] if isinstance(error.unit_names, tuple) else error.unit_names)
        near = difflib.get_close_matches(unknown, dir(registry), n=3, cutoff=0.6)
        raise ValueError(f"{unknown!r} is no unit" + (f", did you mean {' or '.join(near)}?" if near else "")) from None
    except (pint.PintError, TokenError, ValueError, TypeError, SyntaxError):
        raise ValueError(f"{name!r} is no unit") from None
