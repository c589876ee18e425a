"""How old the crm tables may be before Dagster says so. CRM users sleep at night: a silent day is not normal."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

STREAM_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(hours=12))
