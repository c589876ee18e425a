"""`attachment_results`: the Delta table of how attempts ended. Runs commit their own; this commits what is left."""

from collections.abc import Iterator

import dagster as dg

from ingest_project.attachments.asset_events import results_reports
from ingest_project.attachments.catalog import (
    ANY_ATTACHMENT,
    ATTACHMENT_RESULTS,
    ATTACHMENTS_FRESHNESS,
    hourly_partitions,
)
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.attachments.results_table import commit_results
from ingest_project.platform.dagster.asset_events import keep_connections_open, outputs_without_events, report


@dg.multi_asset(
    name="attachment_commit",
    specs=[
        dg.AssetSpec(
            ATTACHMENT_RESULTS,
            deps=[ANY_ATTACHMENT],
            description="The Delta table of how each download attempt ended, by the hour in which it did.",
            group_name="attachments",
            kinds={"deltalake"},
            partitions_def=hourly_partitions,
            freshness_policy=ATTACHMENTS_FRESHNESS,
            skippable=True,
        )
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def attachment_results(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[AttachmentResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """Commit what is in no commit yet, and show the selected hours as they are now."""
    keep_connections_open(context.instance)
    hours = {*commit_results(services), *context.partition_keys}
    report(context, results_reports(services, sorted(hours)))
    yield from outputs_without_events(context)
