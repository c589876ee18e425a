"""Conversion between units, by pint, which takes a second to import: most processes never need it."""

from __future__ import annotations

import difflib
import re
from fractions import Fraction
from functools import cache
from tokenize import TokenError

import pint

from ingest_project.readers.profile_parts import Scale

# pint computes powers: 9**9**9 would never end.
UNIT = re.compile(r"[^\W\d][\w ·*/^°℃℉%²³⁻¹().-]{0,39}|[°℃℉%µμ][\w/³² ]{0,39}")
HUGE_POWER = re.compile(r"[0-9]{3}|(?:\*\*|\^)[^*/^]*(?:\*\*|\^)|(?:\*\*|\^)\s*[^0-9\s-]")


@cache
def conversion(unit: str, to: str) -> Scale:
    """Return the conversion between two units.

    Raises:
        ValueError: a unit is unknown, the two measure different things, or their relation is no straight line.
    """
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
    return pint.UnitRegistry(non_int_type=Fraction)


def _unit(name: str) -> pint.Unit:
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
