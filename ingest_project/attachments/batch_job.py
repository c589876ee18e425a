"""A batch of events, all the way: their addresses taken out, and what they lead to downloaded and stored, in one run.

These are jobs of operations and not of assets: one run of assets cannot have partitions of two kinds, hours and
attachments, and Dagster 1.13 refuses a run of a partitioned asset without a partition once the asset before it, which
is partitioned too, was ever materialised. What they make is reported on the partitions all the same.
"""

import dagster as dg

from ingest_project.attachments.attachment_events import extract
from ingest_project.attachments.onelake_attachments import download
from ingest_project.batches import BATCH_ID_TAG, ONELAKE_POOL, keys_of_run
from ingest_project.resources import Services


@dg.op(out=dg.Out(dg.Nothing), description="Takes the addresses out of the batch's events and announces the tasks.")
def take_addresses_out(context: dg.OpExecutionContext, services: dg.ResourceParam[Services]) -> None:
    """The first half of the batch."""
    extract(context, services, keys_of_run(context, services.attachment_events.batch), context.run.tags[BATCH_ID_TAG])


@dg.op(
    ins={"taken": dg.In(dg.Nothing)},
    pool=ONELAKE_POOL,
    description="Downloads and stores what the batch's events lead to.",
)
def download_and_store(context: dg.OpExecutionContext, services: dg.ResourceParam[Services]) -> None:
    """The second half of the batch."""
    download(context, services, services.attachments.batch(context.run.tags[BATCH_ID_TAG]))


@dg.job(description="Takes the addresses out of a batch of events, downloads and stores.")
def attachment_events_batch() -> None:
    """Both halves, one after the other."""
    download_and_store(take_addresses_out())


@dg.job(description="Downloads and stores a batch of attachments.")
def attachments_batch() -> None:
    """The second half alone, of tasks that came over Kafka or are due again."""
    download_and_store()
