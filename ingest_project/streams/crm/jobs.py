"""The job that tries unidentified messages again, for a person who has fixed what kept them from being identified."""

import dagster as dg
from pydantic import Field

from ingest_project.streams.crm.assets import OPPORTUNITIES, PROJECTS
from ingest_project.streams.crm.resources import CrmResources
from ingest_project.streams.crm.unidentified import UNIDENTIFIED_MESSAGES, retry


class RetryConfig(dg.Config):
    """Which messages: their ids, or none for all that are open."""

    message_ids: list[str] = Field(default_factory=list)


@dg.op(description="Looks at unidentified messages again, by today's rules.")
def retry_unidentified_messages(
    context: dg.OpExecutionContext, config: RetryConfig, services: dg.ResourceParam[CrmResources]
) -> None:
    """Try again, and show on the assets what came of it."""
    done = retry(services.engine, config.message_ids or None)
    metadata = {"retried_and_identified": len(done.identified), "retried_and_still_not": len(done.unidentified)}
    context.log.info("%d identified, %d still not.", len(done.identified), len(done.unidentified))
    changed = [OPPORTUNITIES, PROJECTS] if done.identified else []
    for asset in (*changed, UNIDENTIFIED_MESSAGES):
        context.log_event(dg.AssetMaterialization(asset, metadata=metadata))


@dg.job(
    name="crm_retry_unidentified",
    description="Tries unidentified messages again after a fix: all that are open, or the ids in the configuration.",
)
def crm_retry_unidentified() -> None:
    """One step."""
    retry_unidentified_messages()
