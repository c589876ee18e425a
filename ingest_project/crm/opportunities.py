"""`opportunities`: each opportunity in its newest version."""

from __future__ import annotations

import dagster as dg

from ingest_project.crm.freshness import STREAM_FRESHNESS
from ingest_project.external_assets import topic_key

OPPORTUNITIES = dg.AssetKey("opportunities")

opportunities = dg.AssetSpec(
    OPPORTUNITIES,
    deps=[topic_key("sales_events")],
    description="Each opportunity in its newest version; an older one never overwrites a newer one.",
    group_name="crm",
    kinds={"postgres"},
    skippable=True,
    freshness_policy=STREAM_FRESHNESS,
)
