"""Hours and their keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ingest_project.core.items import end_of, hour_key, parse_hour_key


def test_an_hour_begins_where_the_one_before_it_ends() -> None:
    last, first = parse_hour_key("2026-02-28-23:00"), parse_hour_key("2026-03-01-00:00")
    assert end_of(last) == first
    moments = (last, first - timedelta(microseconds=1), first)
    assert [hour_key(moment) for moment in moments] == ["2026-02-28-23:00"] * 2 + ["2026-03-01-00:00"]


def test_an_hour_has_one_key_wherever_its_time_was_written() -> None:
    assert hour_key(datetime.fromisoformat("2026-03-01T01:30:00+02:00")) == "2026-02-28-23:00"
    assert parse_hour_key("2026-03-01-12:00") == datetime(2026, 3, 1, 12, tzinfo=UTC)
    with pytest.raises(ValueError, match="does not match"):
        parse_hour_key("2026-03-01 12:00")
