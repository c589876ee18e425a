"""What CRM reads and stores: its topic and its tables."""

from __future__ import annotations

import dagster as dg

from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.external_assets import topic
from ingest_project.platform.dagster.stored_tables import SqlTable, StoredTable
from ingest_project.streams.crm.assets import OPPORTUNITIES, PROJECTS
from ingest_project.streams.crm.tables import opportunities, projects, unidentified_messages
from ingest_project.streams.crm.unidentified import UNIDENTIFIED_MESSAGES

STORED: dict[dg.AssetKey, StoredTable] = {
    OPPORTUNITIES: SqlTable(opportunities),
    PROJECTS: SqlTable(projects),
    UNIDENTIFIED_MESSAGES: SqlTable(unidentified_messages),
}


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the topic of CRM messages."""
    return [topic(settings, "sales_events", group="crm")]
