"""The job that lets go of what is long done, every night."""

from datetime import UTC, datetime

import dagster as dg

from ingest_project.resources import Services
from ingest_project.retention.letting_go import removals


class RetentionConfig(dg.Config):
    """With `dry_run`, the run only says what it would remove."""

    dry_run: bool = False


@dg.op(description="Removes what is long done; see the settings under `retention`.")
def let_go(context: dg.OpExecutionContext, config: RetentionConfig, services: dg.ResourceParam[Services]) -> None:
    """One part after the other, each said in the log."""
    for removal in removals(services, context.instance, datetime.now(UTC)):
        if not config.dry_run:
            removal.remove()
        verb = "would be removed" if config.dry_run else "removed"
        context.log.info("%d %s %s.", removal.number, removal.what, verb)


@dg.job(name="retention", description="Lets go of partitions, runs and bytes that are long done.")
def retention_job() -> None:
    """All parts."""
    let_go()
