"""`projects`: each project in its newest version."""

from __future__ import annotations

import dagster as dg

from ingest_project.crm.freshness import STREAM_FRESHNESS
from ingest_project.external_assets import topic_key

PROJECTS = dg.AssetKey("projects")

projects = dg.AssetSpec(
    PROJECTS,
    deps=[topic_key("sales_events")],
    description="Each project in its newest version; an older one never overwrites a newer one.",
    group_name="crm",
    kinds={"postgres"},
    skippable=True,
    freshness_policy=STREAM_FRESHNESS,
)
