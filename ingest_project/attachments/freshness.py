"""How old the newest attachment may be before Dagster says so. Every day brings some, also a quiet one."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

ATTACHMENTS_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=48), warn_window=timedelta(hours=30))
