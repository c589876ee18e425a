"""Guess from a column's name what it measures and in which unit, and which column of a reading it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ingest_project.readers.profile_parts import first_group
from ingest_project.readers.units import is_unit

SHORTEST_SUFFIX = 2
# Spellings of units (case-folded, without brackets and blanks), and the spelling that readings get.
UNITS = {
    **dict.fromkeys(("°c", "℃", "degc", "celsius", "c", "ºc", "gradc", "grdc"), "°C"),
    **dict.fromkeys(("°f", "degf", "fahrenheit", "f", "ºf"), "°F"),
    **dict.fromkeys(("k", "kelvin", "degk"), "K"),
    **dict.fromkeys(("%", "pct", "percent", "%rh", "prozent", "rh%"), "%"),
    **dict.fromkeys(("hpa", "mbar", "mb", "millibar"), "hPa"),
    **dict.fromkeys(("µg/m³", "μg/m³", "µg/m3", "μg/m3", "ug/m3", "µg/m^3", "ug/m^3", "ugm3"), "µg/m³"),
    **dict.fromkeys(("mg/m³", "mg/m3", "mg/m^3"), "mg/m³"),
    **dict.fromkeys(("m/s", "mps", "ms-1", "meters/second"), "m/s"),
    **dict.fromkeys(("km/h", "kmh", "kph"), "km/h"),
    **dict.fromkeys(("v", "volt", "volts"), "V"),
    **dict.fromkeys(("ampere", "amperes", "amps", "amp"), "A"),
    **dict.fromkeys(("watt", "watts"), "W"),
    **dict.fromkeys(("l/min", "lpm"), "L/min"),
    **dict.fromkeys(("deg", "degrees"), "°"),
    **dict.fromkeys(("w/m2", "w/m^2"), "W/m²"),
    "us/cm": "µS/cm",
}
# Units whose spelling here is the one that readings get.
COMMON = "Pa kPa bar psi mmHg inHg ppm ppb lux lx rpm mm cm km kg g m L s ° mV A mA W kW Wh kWh Hz kHz mph mm/h dB dBA"
UNITS |= {unit.casefold(): unit for unit in (*COMMON.split(), "dB(A)", "W/m²", "µS/cm")}
# Whole names (case-folded), and the known sensor type that they mean.
TYPES = {
    **dict.fromkeys(("temp", "temperature", "temperatur", "t", "ta", "tair", "airtemp", "airtc"), "temperature"),
    **dict.fromkeys(("airtemperature", "lufttemperatur", "outsidetemp", "temperature2m", "tempavg"), "temperature"),
    **dict.fromkeys(("rh", "hum", "humidity", "humid", "feuchte", "luftfeuchte", "relhum"), "humidity"),
    **dict.fromkeys(("relativehumidity", "relhumidity", "rhum", "luftfeuchtigkeit"), "humidity"),
    **dict.fromkeys(("press", "pres", "pressure", "baro", "barometer", "luftdruck", "airpressure"), "pressure"),
    **dict.fromkeys(("pm10", "pm100"), "pm10"),
    **dict.fromkeys(("pm25", "pm2p5"), "pm2_5"),
    **dict.fromkeys(("co2", "carbondioxide"), "co2"),
    **dict.fromkeys(("light", "lux", "illuminance", "licht"), "light"),
    **dict.fromkeys(("noise", "sound", "soundlevel"), "noise"),
    **dict.fromkeys(("windspeed", "wind", "wspd", "ws", "wspm", "windgeschwindigkeit"), "wind_speed"),
    **dict.fromkeys(("voltage", "volt", "volts", "batteryvoltage", "batt", "battv", "vbat", "battery"), "voltage"),
    **dict.fromkeys(("current", "strom"), "current"),
    **dict.fromkeys(("flowrate", "flow"), "flow_rate"),
}
# Bracketed texts that name an aggregation, and units that may also be such a word or a letter.
STATISTICS = frozenset({"min", "max", "avg", "mean", "std", "sum", "count", "total", "raw"})
DOUBTFUL_UNITS = frozenset({"min", "count", "in", "at", "a", "day", "point"})
COMPOUND = re.compile(r"[/·*^²³⁻¹]")
BRACKETED = (r"(.*\S) *\[([^\[\]]+)\]\.?(?:_.*)?", r"(.*\S) *\(((?:[^()]|\([^()]*\))+)\)\.?(?:_.*)?")
LONGEST_UNIT = 12
LONGEST_NUMERATOR = 4
ROLES = {
    "sensor_type": r"(?:sensor[ _-]?)?(?:type|kind|typ)|parameter|param|variable|var|metric|measure(?:ment)?|quantity"
    r"|datatype|element|indicator|pollutant|property|observedproperty|field|sensor|messgroesse|messgröße|signal|art",
    "value": r"(?:sensor[ _-]?)?(?:value|val|reading|result|wert|messwert|measured[ _-]?value|data|amount)",
    "unit": r"(?:sensor[ _-]?)?(?:unit|units|uom|einheit|unit[ _-]?of[ _-]?measure(?:ment)?|value[ _-]?unit)",
    "device_id": r"(?:device|sensor|station|stn|node|logger|dev|site|unit|machine|meter|entity|stations?|deveui|thing)"
    r"(?:[ _-]?(?:id|name|nr|no|number|code|eui|key|serial))?|id|serial(?:[ _-]?(?:no|number))?|name|host|location|loc"
    r"|eui|messstelle|geraet|gerät|wban",
}
IGNORED = {
    r"lat|lon|lng|long|latitude|longitude|alt|altitude|elevation|location|geo|x|y|z|breite|laenge": "a position",
    r"#|no|nr|row|index|idx|rec(?:ord)?[ _-]?(?:no|number|id)?|seq|f?_?cnt|counter|unnamed.*|line": "counts rows",
    r"f?_?port": "a port",
    r".*(?:flag|quality|status|anomaly|changepoint|label|outlier|error|eor|valid|qc|qf|qn.*)": "a mark of quality",
}


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
    return next((why for pattern, why in IGNORED.items() if re.fullmatch(pattern, plain)), None)


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
