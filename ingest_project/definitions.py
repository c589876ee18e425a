"""The capabilities and their resources, merged: what Dagster loads. Importing this module opens nothing."""

from __future__ import annotations

import dagster as dg

import ingest_project.alerts.definitions
import ingest_project.attachments.definitions
import ingest_project.crm.definitions
import ingest_project.file_ingest.definitions
import ingest_project.polling.definitions
import ingest_project.retention.definitions
import ingest_project.user_activity.definitions
from ingest_project.logs import configure_logging
from ingest_project.private_files import keep_files_private
from ingest_project.resources import Services
from ingest_project.settings import current_settings

keep_files_private()
configure_logging(current_settings().logging)

defs = dg.Definitions.merge(
    ingest_project.polling.definitions.polling,
    ingest_project.file_ingest.definitions.file_ingest,
    ingest_project.user_activity.definitions.user_activity,
    ingest_project.crm.definitions.crm,
    ingest_project.attachments.definitions.attachments,
    ingest_project.alerts.definitions.alerts,
    ingest_project.retention.definitions.retention,
    dg.Definitions(
        resources={"services": Services(current_settings())},
        # One run is one process: a batch shares its memory and its connections between all steps.
        executor=dg.in_process_executor,
    ),
)
