"""Guess where a file names its device when no column does: in a line above the header, or in its own name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ingest_project.readers.profiles import first_group

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
