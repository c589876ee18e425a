"""`opportunities`: each opportunity in its newest version."""

from __future__ import annotations

import dagster as dg

from ingest_project.crm.freshness import STREAM_FRESHNESS

OPPORTUNITIES = dg.AssetKey("opportunities")

opportunities = dg.AssetSpec(
    OPPORTUNITIES,
    description="Each opportunity in its newest version; an older one never overwrites a newer one.",
    group_name="crm",
    kinds={"postgres"},
    skippable=True,
    freshness_policy=STREAM_FRESHNESS,
)
