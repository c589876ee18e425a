"""The keys of hours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ingest_project.core.hours import end_of, hour_of, partition_of


def test_an_hour_begins_where_the_one_before_it_ends() -> None:
    last, first = hour_of("2026-02-28-23:00"), hour_of("2026-03-01-00:00")
    assert end_of(last) == first
    moments = (last, first - timedelta(microseconds=1), first)
    assert [partition_of(moment) for moment in moments] == ["2026-02-28-23:00"] * 2 + ["2026-03-01-00:00"]


def test_an_hour_has_one_key_wherever_its_time_was_written() -> None:
    assert partition_of(datetime.fromisoformat("2026-03-01T01:30:00+02:00")) == "2026-02-28-23:00"
    assert hour_of("2026-03-01-12:00") == datetime(2026, 3, 1, 12, tzinfo=UTC)
    with pytest.raises(ValueError, match="does not match"):
        hour_of("2026-03-01 12:00")
