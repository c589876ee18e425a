"""Keys of items, and of hours."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest

from ingest_project.core.items import digest_of, end_of, hour_key, parse_hour_key


def test_a_digest_is_base32_of_the_first_half_of_a_sha_256() -> None:
    for number in range(1_000):
        parts = (number, "local:/data/Größe.csv", {"b": None, "a": [1.5]}, "\ud83d")
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        half = hashlib.sha256(text.encode()).digest()[:16]
        assert digest_of(*parts) == base64.b32encode(half).decode().rstrip("=").lower()


def test_an_hour_begins_where_the_one_before_it_ends() -> None:
    last, first = parse_hour_key("2026-02-28-23:00"), parse_hour_key("2026-03-01-00:00")
    assert end_of(last) == first
    moments = (last, first - timedelta(microseconds=1), first)
    assert [hour_key(moment) for moment in moments] == ["2026-02-28-23:00"] * 2 + ["2026-03-01-00:00"]


def test_an_hour_has_one_key_wherever_its_time_was_written() -> None:
    assert hour_key(datetime.fromisoformat("2026-03-01T01:30:00+02:00")) == "2026-02-28-23:00"
    assert parse_hour_key("2026-03-01-12:00") == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert parse_hour_key(hour_key(datetime(33, 4, 3, tzinfo=UTC))) == datetime(33, 4, 3, tzinfo=UTC)
    with pytest.raises(ValueError, match="does not match"):
        parse_hour_key("2026-03-01 12:00")
