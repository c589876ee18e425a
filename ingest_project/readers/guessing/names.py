"""Guess from a column's name what it measures and in which unit, and which column of a reading it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from ingest_project.readers.profile_parts import first_group
from ingest_project.readers.units import is_unit

SHORTEST_SUFFIX = 2
VOCABULARY = yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text(encoding="utf-8"))
# Spellings of units (case-folded, without brackets and blanks), and the spelling that readings get.
UNITS = {text: unit for unit, texts in VOCABULARY["units"].items() for text in (*texts, unit.casefold())}
# Whole names (case-folded), and the known sensor type that they mean.
TYPES = {text: kind for kind, texts in VOCABULARY["types"].items() for text in texts}
# Bracketed texts that name an aggregation, and units that may also be such a word or a letter.
STATISTICS = frozenset({"min", "max", "avg", "mean", "std", "sum", "count", "total", "raw"})
DOUBTFUL_UNITS = frozenset({"min", "count", "in", "at", "a", "day", "point"})
COMPOUND = re.compile(r"[/·*^²³⁻¹]")
BRACKETED = (r"(.*\S) *\[([^\[\]]+)\]\.?(?:_.*)?", r"(.*\S) *\(((?:[^()]|\([^()]*\))+)\)\.?(?:_.*)?")
LONGEST_UNIT = 12
LONGEST_NUMERATOR = 4
ROLES: dict[str, str] = VOCABULARY["roles"]
IGNORED: dict[str, str] = VOCABULARY["ignored"]


class NameGuess(NamedTuple):
    """Meaning of a column's name.

    Args:
        base: the name without its unit.
        unit: as readings write it; None for a name without one.
        known_type: the sensor type that the name means; None for a name of its own.
        doubt: a text of the name that may be a unit, for a person to decide.
    """

    base: str
    unit: str | None
    known_type: str | None
    doubt: str | None = None


def unit_of(text: str) -> str | None:
    """Return the common spelling of a unit, or a compound one such as `m³/s` as it is; None for any other text."""
    plain = unicodedata.normalize("NFC", text).casefold().replace(" ", "").strip(".[]")
    found = UNITS.get(plain)
    if found is None and COMPOUND.search(text) and is_unit(text.strip()):
        return text.strip()
    return found


def read_name(name: str) -> NameGuess:
    """Separate a unit from a name: `Temp, °C (S/N: 7)`, `Feuchte [%]`, `Temp °C` or `temp_c`."""
    plain = without_serial(name).strip()
    for pattern in BRACKETED:
        if match := re.fullmatch(pattern, plain):
            return _read_brackets(plain, match[1], match[2].strip())
    for pattern in (r"(.*\S) *, *([^,]+)", r"(.*\S) +(\S+)", r"(.*\S) */ *(\S+)"):
        match = re.fullmatch(pattern, plain)
        unit = match and unit_of(match[2])
        if match and unit:
            numerator = match[1].split()[-1]
            if pattern.endswith(r"/ *(\S+)") and " " in match[1] and len(numerator) <= LONGEST_NUMERATOR:
                # Of `Flow Nm3/s` the second is not the unit.
                return NameGuess(plain, None, _known_type(plain), f"{numerator}/{match[2]}")
            return NameGuess(match[1], unit, _known_type(match[1]))
    base, _, suffix = plain.rpartition("_")
    unit = unit_of(suffix) if base else None
    if unit and (len(suffix) >= SHORTEST_SUFFIX or _known_type(base)):
        return NameGuess(base, unit, _known_type(base))
    return NameGuess(plain, None, _known_type(plain))


def _read_brackets(name: str, base: str, text: str) -> NameGuess:
    """Take the text in brackets at the end of a name as a whole: a unit, a doubt, or a part of the name."""
    unit = unit_of(text)
    if unit is None and text.casefold() not in STATISTICS | DOUBTFUL_UNITS and is_unit(text):
        unit = text
    if unit is not None:
        return NameGuess(base, unit, _known_type(base))
    looks_like_one = " " not in text and len(text) <= LONGEST_UNIT and re.search(r"[^\W\d_]|[%°]", text)
    is_doubtful = looks_like_one and text.casefold() not in STATISTICS - DOUBTFUL_UNITS
    return NameGuess(name, None, _known_type(name), text if is_doubtful else None)


def without_serial(name: str) -> str:
    """Return a name without the serial numbers that some loggers add to it."""
    return re.sub(r" *\([^)]*S/N:.*", "", name)


def _known_type(base: str) -> str | None:
    plain = re.sub(r"[^a-z0-9]", "", base.casefold().replace("ü", "ue").replace("ö", "oe"))
    return TYPES.get(plain) or TYPES.get(re.sub(r"(?:avg|mean|sensor|value)$", "", plain))


def slug(text: str) -> str:
    """Return a name in lower case, digits and underscores."""
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss").replace("µ", "u")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")


def role_of(name: str) -> str | None:
    """Return the column of a reading that a name usually means, other than `timestamp`."""
    plain = " ".join(name.casefold().split())
    return next((role for role, pattern in ROLES.items() if re.fullmatch(pattern, plain)), None)


def why_ignored(name: str) -> str | None:
    """Return why a column of this name is usually no measurement; None for any other name."""
    plain = " ".join(name.casefold().split())
    return next((why for why, pattern in IGNORED.items() if re.fullmatch(pattern, plain)), None)


# Regular expressions that find the device in a file's name, the more specific first.
IN_NAME = (r"^\d{4}[-_.]?\d{2}[-_.\d]*[-_. ](.+)\.\w+$", r"^(.+?)[-_. ]+\d{4}[-_.]?\d{2}", r"^(.+)\.\w+$", r"^(.+)$")
LABEL = re.compile(
    "(?i)"
    r"(device|station|logger|sensor|site|location|plot title|unit|serial)"
    r"(?:[ _-]?(?:id|name|no|nr|number|serial))?(?: (?:id|name|no|nr|number))?\.?\"?"
    r"[ \t]*[:=,;\t][ \t]*\"?[^\",;\t\r\n]"
)
CAMPBELL = '^"?TOA5"?,"?([^",]+)'


class DeviceGuess(NamedTuple):
    """Where a file names its device.

    Args:
        part: of the profile, `from_lines_above` or `from_file_name`.
        pattern: a regular expression with one group.
        device: what it finds in this file.
    """

    part: str
    pattern: str
    device: str


def guess_device(above: Sequence[str], file_name: str) -> DeviceGuess | None:
    """Guess where a file names its device.

    Args:
        above: the lines above its header.
        file_name: its name.
    """
    text = "\n".join(above)
    for pattern in _patterns(text):
        if device := first_group(text, pattern):
            return DeviceGuess("from_lines_above", pattern, device)
    for pattern in IN_NAME:
        if device := first_group(file_name, pattern):
            return DeviceGuess("from_file_name", pattern, device)
    return None


def _patterns(text: str) -> Iterator[str]:
    if text.startswith(('"TOA5"', "TOA5")):
        yield CAMPBELL
    if match := LABEL.search(text):
        label = re.sub(r"[^\w ]", ".", match[0][:-1].rstrip(' \t":=,;'))
        yield rf'{label}"?[ \t]*[:=,;\t][ \t]*"?([^",;\t\r\n]*[^",;\t\r\n ])'
