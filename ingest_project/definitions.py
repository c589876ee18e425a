"""The capabilities and their resources, merged: what Dagster loads. Importing this module opens nothing."""

from __future__ import annotations

import dagster as dg

import ingest_project.file_ingest.definitions
import ingest_project.polling.definitions
from ingest_project.logs import configure_logging
from ingest_project.resources import Services
from ingest_project.settings import current_settings

configure_logging(current_settings().logging)

defs = dg.Definitions.merge(
    ingest_project.polling.definitions.polling,
    ingest_project.file_ingest.definitions.file_ingest,
    dg.Definitions(
        resources={"services": Services(current_settings())},
        # One run is one process: a batch shares its memory and its connections between all steps.
        executor=dg.in_process_executor,
    ),
)
