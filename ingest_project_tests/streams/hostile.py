"""Corrupted messages: JSON with values, names and bytes that decoders read differently."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

# Each is a value that replaces another one, in these very characters.
VALUES = [
    *("null", "true", "[]", "{}", '[1, "a"]', '["a"]', '{"a": 1, "a": 2}', '{"a": null}'),
    *(
        "0",
        "-0",
        "1.50",
        "-0.00",
        "1e5",
        "1E-30",
        "1e400",
        "9" * 25,
        "9" * 400,
        "0." + "1" * 25,
        "007",
        "+1",
        ".5",
        "1.",
    ),
    *("NaN", "Infinity", '"NaN"', '"12.5"', '""', '" "', '"x"', '"2024-06-30"', '"2024-06-31"', '"2024-6-3"'),
    *('"2024-03-24T20:40:35"', '"2024-03-24 20:40:35+02:00"', '"0001-01-01T00:00:00+14:00"', '"2024-03-24T24:00:00Z"'),
    *(
        r'"\ud800"',
        r'"\ud83d\ude00"',
        r'"\u0000"',
        r'"\\u0000"',
        r'"a\\"',
        r'"a\"b"',
        r'"a\\\"b"',
        r'"\u0022"',
        r'"\/"',
    ),
    *(
        '"\x00"',
        '"\x1f"',
        '"\x7f"',
        '"é\u2028"',
        '"opp_2"',
        '"proj_2"',
        '"' + "x" * 600 + '"',
        "[" * 2_000 + "]" * 2_000,
    ),
    *('{"a": 1}, "name": "b"', '"a", "event_id": "other"', '1, "amount": "2"', '1, "\\u0061mount": 2'),
]
SEPARATORS = [(",", ":"), (", ", ": "), (",\n\t", ": "), (" ,\r\n", " :\n")]
BYTES = [b"", b"\xff", b"\xef\xbb\xbf", b'"', b"\\", b"{", b"}", b",", b"\n", b"\x00", b"x", b"{}", b" \n"]


@st.composite
def messages(draw: st.DrawFn, good: Sequence[dict[str, Any]]) -> bytes:
    """Return a good message, or one in which a few things are otherwise."""
    fields = list(draw(st.sampled_from(good)).items())
    fields = draw(st.permutations(fields)) if draw(st.booleans()) else fields
    names = [name for name, value in fields]
    changed = draw(st.dictionaries(st.sampled_from([*names, "custom", "region"]), st.sampled_from(VALUES), max_size=2))
    inner = draw(
        st.dictionaries(st.sampled_from(["notes", "tags", "language", "b"]), st.sampled_from(VALUES), max_size=1)
    )
    texts: dict[str, str] = {}
    for name, value in fields:
        text = json.dumps(value, ensure_ascii=draw(st.booleans()))
        if isinstance(value, dict) and inner:
            (key, other), *_ = inner.items()
            text = f'{text[:-1]}{", " if value else ""}"{key}": {other}}}'
        texts[name] = text
    texts |= changed
    missing = draw(st.sets(st.sampled_from(names), max_size=1)) if draw(st.booleans()) else set()
    comma, colon = draw(st.sampled_from(SEPARATORS))
    raw = "{" + comma.join(f'"{name}"{colon}{text}' for name, text in texts.items() if name not in missing) + "}"
    found = raw.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        at, odd = draw(st.integers(0, len(found))), draw(st.sampled_from(BYTES))
        found = found[:at] + odd + found[at + draw(st.integers(0, 2)) :]
    return found
