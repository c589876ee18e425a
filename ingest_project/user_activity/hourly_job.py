"""The job that counts a batch of hours: they need not follow one another, so it is not a run of partitions."""

import dagster as dg
from pydantic import Field

from ingest_project.hours import hour_of
from ingest_project.resources import Services
from ingest_project.user_activity.user_activity_hourly import make_statistics

HOURLY_OP = "count_hours"


class HoursConfig(dg.Config):
    """The hours to count, as partition keys, e.g. `2026-01-15-10:00`."""

    hours: list[str] = Field(default_factory=list)


@dg.op(name=HOURLY_OP, description="Makes the statistics of some hours anew.")
def count_hours(context: dg.OpExecutionContext, config: HoursConfig, services: dg.ResourceParam[Services]) -> None:
    """Count the hours of this run."""
    make_statistics(context, services, [hour_of(hour) for hour in config.hours])


@dg.job(description="Makes the statistics of hours anew whose events changed.")
def user_activity_hourly_batch() -> None:
    """One step for all hours."""
    count_hours()
