"""The statistics of an hour are exact, also where its events do not fit into memory at once."""

from __future__ import annotations

import statistics
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.platform.delta import delta_location
from ingest_project.platform.delta.table import DeltaStore
from ingest_project.streams.user_activity import hours as hourly_statistics
from ingest_project.streams.user_activity.event_table import event_rows
from ingest_project.streams.user_activity.hours import percentile, statistics_of_hour
from ingest_project_tests.streams.user_activity.events import encoded, event, received

TEN = datetime(2026, 1, 15, 10, tzinfo=UTC)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=200))
def test_percentiles_are_those_of_the_sorted_values(values: list[int]) -> None:
    counts: Counter[float] = Counter(values)
    assert percentile(counts, 0.5) == pytest.approx(statistics.median(values))
    assert percentile(counts, 0.95) == pytest.approx(statistics.quantiles(values, n=20, method="inclusive")[18])


def test_an_empty_counter_has_no_percentile() -> None:
    assert percentile(Counter(), 0.5) is None


def test_results_are_equal_in_one_batch_and_in_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = [
        encoded(
            event(
                f"e{number % 170}",
                event_type=("click", "view")[number % 2],
                user_id=f"u{number % 13}",
                session_id=f"s{number % 29}",
                processing_info={"processing_ms": number % 170},
            )
        )
        for number in range(200)
    ]
    store = DeltaStore(delta_location(str(tmp_path / "events")), ["event_day"])
    store.append(event_rows(received(*payloads), "g").table, app_id="a", version=200)
    whole = statistics_of_hour(store, TEN)
    assert [(one.event_type, one.events, one.deliveries) for one in whole] == [("click", 85, 100), ("view", 85, 100)]
    assert whole[0].users == 13
    monkeypatch.setattr(hourly_statistics, "ROWS_AT_A_TIME", 30)
    assert statistics_of_hour(store, TEN) == whole


def test_an_hour_without_events_and_a_table_that_is_not_there_have_no_statistics(tmp_path: Path) -> None:
    assert statistics_of_hour(DeltaStore(delta_location(str(tmp_path / "none"))), TEN) == []
