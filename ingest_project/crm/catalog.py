"""What CRM reads and stores: its topic and its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest_project.crm.opportunities import OPPORTUNITIES
from ingest_project.crm.projects import PROJECTS
from ingest_project.crm.unidentified_messages import UNIDENTIFIED_MESSAGES
from ingest_project.database.crm_tables import opportunities, projects, unidentified_messages
from ingest_project.external_assets import topic
from ingest_project.stored_tables import SqlTable, StoredTable

if TYPE_CHECKING:
    import dagster as dg

    from ingest_project.settings import Settings

STORED: dict[dg.AssetKey, StoredTable] = {
    OPPORTUNITIES: SqlTable(opportunities),
    PROJECTS: SqlTable(projects),
    UNIDENTIFIED_MESSAGES: SqlTable(unidentified_messages),
}


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the topic of CRM messages."""
    return [topic(settings, "sales_events", group="crm")]
