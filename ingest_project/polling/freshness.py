"""How old the last look in a source may be before Dagster says so. Somebody asks for one every day, or every night."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

POLLING_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=48), warn_window=timedelta(hours=30))
