"""Names as people type and copy them: what cannot be seen is taken off their ends, and refused inside.

A byte order mark, a no-break space or a stray quote would make a device of its own that nobody can tell from the real
one, and a sensor type that escapes its limits.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import polars as pl

# Letters and marks that leave no trace on paper, beside the controls, formats and separators that Unicode calls so.
UNSEEN = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0xFFFD, *range(0xFE00, 0xFE10)}
UNSEEN |= set(range(0xE0100, 0xE01F0))
QUOTES = "\"'`´‘’‚‛“”„‟«»‹›＂"  # noqa: RUF001 - the quotes that look alike are the point
# What most names are made of: nothing in here needs a closer look.
PLAIN_NAME = r"^[0-9A-Za-z](?:[0-9A-Za-z_.:/+#() -]*[0-9A-Za-z_.:/+#()-])?$"


# First and last of each run of Unicode white space and format characters, byte order marks among them; a constant,
# because asking Unicode for each of a million characters takes a third of a second.
TRIMMED_RANGES = (
    *((0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0xAD, 0xAD), (0x600, 0x605), (0x61C, 0x61C)),
    *((0x6DD, 0x6DD), (0x70F, 0x70F), (0x890, 0x891), (0x8E2, 0x8E2), (0x1680, 0x1680), (0x180E, 0x180E)),
    *((0x2000, 0x200F), (0x2028, 0x202F), (0x205F, 0x206F), (0x3000, 0x3000), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB)),
    *((0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A)),
    *((0xE0001, 0xE0001), (0xE0020, 0xE007F)),
)
TRIMMED = "".join(chr(code) for first, last in TRIMMED_RANGES for code in range(first, last + 1))


@lru_cache(maxsize=4_096)
def clean_name(name: str) -> str:
    """A name without what cannot be seen at its ends, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name.strip(TRIMMED))


@lru_cache(maxsize=4_096)
def is_suspicious(name: str) -> bool:
    """Whether a clean name holds what cannot be seen or printed, or quotes that do not belong to it."""
    if not name.isprintable() or any(ord(character) in UNSEEN for character in name):
        return True
    return name[:1] in QUOTES or name[-1:] in QUOTES or name.count('"') % 2 == 1


def odd_names(names: pl.Series) -> pl.Series:
    """The different names of a column that are not plain at first sight."""
    different = names.unique().drop_nulls()
    return different.filter(~different.str.contains(PLAIN_NAME))


@lru_cache(maxsize=4_096)
def matched_name(name: str) -> str:
    """A name as it is compared where upper and lower case do not matter; nothing that cannot be seen counts either."""
    seen = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
    return " ".join(seen.casefold().split())
