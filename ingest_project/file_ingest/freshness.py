"""How old the newest file may be before Dagster says so. Some arrive every day; those of the night may be late."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

FILES_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=48), warn_window=timedelta(hours=30))
