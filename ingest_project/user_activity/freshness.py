"""How old the tables of user activity may be before Dagster says so. There is always somebody who clicks."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

EVENTS_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=2), warn_window=timedelta(hours=1))
HOURLY_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=3), warn_window=timedelta(hours=2))
